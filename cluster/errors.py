"""What can go wrong outside our code, and who must act on it. Pure."""

from __future__ import annotations


class FlypgError(Exception):
    """Something outside our code went wrong: expected, handled, never a bug."""


class SettingsError(FlypgError):
    """The operator must change a named key; start-up ends with exit code 2."""

    def __init__(self, key: str, value: object, problem: str) -> None:
        super().__init__(f"{key}={value!r}: {problem}")
        self.key = key
        self.problem = problem


class StoreUnavailable(FlypgError):
    """A read failed: nothing changed, the next turn asks again."""


class ClusterForgotten(StoreUnavailable):
    """etcd answers, and has lost what it knew of a cluster that this node is part of."""


class StoreConflict(FlypgError):
    """Somebody else wrote first: normal, read again and decide again."""


class OutcomeUnknown(FlypgError):
    """The write may or may not have happened: read before trying again."""


class StoredFormatError(FlypgError):
    """A stored value is of a format this version does not know; refused by name."""


class CommandFailed(FlypgError):
    """A program ended with an error; the message carries its last words."""


class CommandTimedOut(FlypgError):
    """A program did not end within its deadline and was killed."""


class PostgresUnavailable(FlypgError):
    """The local or a remote PostgreSQL did not answer or refused; nothing is known of its state."""


class InstanceError(FlypgError):
    """A step on the local PostgreSQL could not be carried out; the message says what to do."""
