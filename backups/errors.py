"""What can go wrong with a repository, and who must act on it. Pure."""

from __future__ import annotations

from cluster.errors import FlypgError


class RepositoryError(FlypgError):
    """Something about the repository of snapshots and WAL; the message names the object."""


class RepositoryUnavailable(RepositoryError):
    """The repository did not answer, after retries: nothing is known to be stored; try again later."""


class RepositoryRefused(RepositoryError):
    """The repository says no (credentials, bucket, permission, full disk): an operator must act."""


class ObjectMissing(RepositoryError):
    """The object is not there."""


class ObjectDamaged(RepositoryError):
    """The object is not what was stored under its name: checksum, size, format or key do not fit."""


class DifferentContent(RepositoryError):
    """Something else is stored under this name already; it was kept, and the new content was refused."""


class SnapshotFailed(FlypgError):
    """A snapshot was abandoned; what it had uploaded is garbage that the next retention run removes."""


class RestoreRefused(FlypgError):
    """A restore was not begun: the message says what is missing or in the way."""


class RestoreFailed(FlypgError):
    """A restore was begun and did not reach its target; what is in the directory is left."""


class RestorePrevented(RestoreFailed):
    """This machine kept a restore from its target (a full disk, a directory in use): the snapshot may be good."""
