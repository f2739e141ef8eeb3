"""A repository in a directory: the default, and what a network file system or a mounted disk needs.

A write goes to a temporary file, is fsynced and then *linked* under its name: a link fails when the name exists, where
a rename would silently replace.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from backups.errors import ObjectMissing, RepositoryError, RepositoryRefused, RepositoryUnavailable
from backups.objects import ObjectInfo

TEMPORARY = ".tmp-"
NO_HELP = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}


class DirectoryStore:
    """Objects as files. `min_free_bytes`: refuse to write when less than this would stay free on the file system."""

    def __init__(self, root: Path, *, min_free_bytes: int = 0) -> None:
        self._root = root
        self._min_free_bytes = min_free_bytes

    @property
    def root(self) -> Path:
        return self._root

    def describe(self) -> str:
        return f"file://{self._root}"

    def _path(self, key: str) -> Path:
        assert key and not key.startswith("/") and ".." not in key.split("/"), f"a bug made the key {key!r}"
        return self._root / key

    def put(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        path = self._path(key)
        for attempt in (1, 2, 3):
            try:
                return self._put(path, data, if_absent=if_absent)
            except FileNotFoundError as error:  # a delete has just pruned the directory that we had found
                if attempt == 3:
                    raise self._error(key, error) from error
            except OSError as error:
                raise self._error(key, error) from error
        raise AssertionError("three attempts end in a result or an error")

    def _put(self, path: Path, data: bytes, *, if_absent: bool) -> bool:
        if if_absent and path.exists():
            return False
        _make(path.parent)
        self._leave_room(len(data))
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{os.urandom(6).hex()}")
        try:
            _write(temporary, data)
            if if_absent:
                os.link(temporary, path)
            else:
                temporary.replace(path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)
        return True

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError as error:
            raise ObjectMissing(f"{self.describe()}: {key} is not there") from error
        except OSError as error:
            raise self._error(key, error) from error

    def has(self, key: str) -> bool:
        """Is there such an object? Raises RepositoryError when that cannot be told."""
        try:
            self._path(key).stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._error(key, error) from error
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self._root / prefix.rpartition("/")[0]
        try:
            names = sorted(_walk(folder, self._root))
        except OSError as error:
            raise self._error(prefix, error) from error
        for name in names:
            if name.startswith(prefix):
                try:
                    status = (self._root / name).stat()
                except FileNotFoundError:
                    continue  # deleted meanwhile
                except OSError as error:
                    raise self._error(name, error) from error
                yield ObjectInfo(name, status.st_size, status.st_mtime)

    def delete(self, keys: Iterable[str]) -> None:
        folders = set()
        for key in keys:
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise self._error(key, error) from error
            folders.add(path.parent)
        for folder in sorted(folders, reverse=True):
            if folder.is_dir():
                try:
                    _sync(folder)
                except FileNotFoundError:
                    pass  # another delete has pruned it
                except OSError as error:
                    raise self._error(str(folder.relative_to(self._root)), error) from error
            self._prune(folder)

    def tidy(self, before: float) -> None:
        try:
            for at, file in _files(self._root):
                if file.startswith(TEMPORARY):
                    with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                        path = at / file
                        if path.stat().st_mtime < before:
                            path.unlink()
        except OSError as error:
            raise self._error("temporary files", error) from error

    def _prune(self, folder: Path) -> None:
        """Remove directories that have become empty; one that is in use again stays."""
        while folder != self._root and self._root in folder.parents:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _leave_room(self, size: int) -> None:
        if self._min_free_bytes:
            status = os.statvfs(self._root)
            free = status.f_bavail * status.f_frsize
            if free - size < self._min_free_bytes:
                raise RepositoryRefused(
                    f"{self.describe()}: only {free >> 20} MiB free, "
                    f"and {self._min_free_bytes >> 20} MiB are kept for PostgreSQL"
                )

    def _error(self, key: str, error: OSError) -> RepositoryError:
        kind = RepositoryRefused if error.errno in NO_HELP else RepositoryUnavailable
        return kind(f"{self.describe()}: {key}: {error.strerror or error}")


def _make(folder: Path) -> None:
    """Create a directory and its parents, durably, readable by nobody else."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(mode=0o700, exist_ok=True)
        _sync(new.parent)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) or 0 :]
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: Path, root: Path) -> Iterator[str]:
    for at, file in _files(folder):
        if not file.startswith(TEMPORARY):
            yield str((at / file).relative_to(root))


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files below `folder`, with their directories. A directory that cannot be read is an error: what is in it
    would seem to be gone, and a snapshot without its record would be swept away. One that is not there has nothing."""

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for at, _, files in os.walk(folder, onerror=failed):
        for file in files:
            yield Path(at), file
