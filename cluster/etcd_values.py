"""What is asked of etcd and what it answers, as plain values. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import FlypgError


class LeaseGone(FlypgError):
    """The lease has run out or was revoked, and its keys are gone: take a new one."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    created: int  # revision at which the key came to be
    modified: int  # revision at which it was last written
    lease: int  # 0 means none


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key, or those from `key` up to before `end`."""

    key: str
    end: str = ""
    limit: int = 0  # 0 means all
    descending: bool = False
    keys_only: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key, or those from `key` up to before `end`."""

    key: str
    end: str = ""


@dataclass(frozen=True, slots=True)
class Modified:
    """Was `key` last written at `revision`? 0: it does not exist."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Created:
    """Did `key` come to be at `revision`? 0: it does not exist."""

    key: str
    revision: int


Operation = Get | Put | Delete
Comparison = Modified | Created


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a Get, read at `revision`."""

    revision: int
    items: tuple[KeyValue, ...]

    @property
    def first(self) -> KeyValue | None:
        return self.items[0] if self.items else None


@dataclass(frozen=True, slots=True)
class Changes:
    """What a watch has told: keys as they are now, and keys that are gone. Whole revisions, up to `revision`."""

    revision: int
    items: tuple[KeyValue, ...]
    gone: tuple[tuple[str, int], ...] = ()  # key, and the revision that deleted it


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a transaction: were all comparisons true, and what the Gets of the branch taken found, in order."""

    succeeded: bool
    revision: int
    found: tuple[Found, ...]


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What one member of etcd says of itself."""

    version: str
    member: int
    leader: int  # id of the member it takes for the leader; 0 means none
    raft_index: int
    db_bytes: int
