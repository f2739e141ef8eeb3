"""Writing small files so that a crash leaves the old or the new one, never half of one."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cluster.errors import InstanceError
from postgres.command import Account

T = TypeVar("T")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the volume refuses becomes an error that names the file."""
    try:
        yield
    except OSError as error:
        raise InstanceError(f"{path} cannot be written: {error.strerror or error}") from error


def fsync_directory(path: Path) -> None:
    """Make names that were created, renamed or removed in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_fresh_copy(pgdata: Path) -> bool:
    """Is it a base backup that no server has been started on yet? Its control file is that of a running primary."""
    return "\nBACKUP METHOD: streamed\n" in read_or_empty(pgdata / "backup_label")


def holds_files(path: Path) -> bool:
    """Is anything in the directory `path`? No when it does not exist, also when it is being removed at this moment."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False


def sync_volume(path: Path) -> None:
    """Put everything on disk that was written to the volume of `path`: one wait instead of one for each of the thousand
    files of a new data directory. Raises OSError when the volume fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


def sync_data(pgdata: Path) -> None:
    """`sync_volume` for each volume that a data directory is on: its own, that of its WAL, those of tablespaces."""
    places = [pgdata, pgdata / "pg_wal", *(pgdata / "pg_tblspc").iterdir()]
    for place in {place.stat().st_dev: place for place in places if place.is_dir()}.values():
        sync_volume(place)


def write_atomically(path: Path, text: str, *, owner: Account | None, durable: bool, mode: int = 0o600) -> None:
    """Replace `path` by a file with `text`. `durable`: return only when file and directory are on disk.

    Raises InstanceError when it cannot be written; the old file is still there then.
    """
    temporary = path.with_name(f".{path.name}.new")
    with _told(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            os.fchmod(descriptor, mode)
            if owner is not None:
                os.fchown(descriptor, owner.uid, owner.gid)
            data = text.encode()
            while data:
                data = data[os.write(descriptor, data) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        if durable:
            fsync_directory(path.parent)


def read_durably(path: Path) -> bytes:
    """What is in `path`, and will still be after a power cut. Raises FileNotFoundError when it does not exist."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        fsync_directory(path.parent)
        return os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def make_directory(path: Path, *, owner: Account | None, mode: int = 0o700) -> None:
    """Create `path` for the server's user, or make an existing one belong to it."""
    with _told(path):
        path.mkdir(parents=True, exist_ok=True, mode=mode)
        if owner is not None and path.stat().st_uid != owner.uid:
            os.chown(path, owner.uid, owner.gid)


def remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


class DiskThread:
    """Writes to a volume that may hang, in one thread of its own and with a deadline: we go on when it does not."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="flypg-disk")

    async def do(self, work: Callable[[], T], within_s: float = 5.0) -> T:
        """The answer of `work`. Raises InstanceError when the volume gives none within `within_s` seconds."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.wait_for(future, within_s)
        except TimeoutError:
            raise InstanceError(f"the volume does not answer: nothing was written within {within_s:g} s") from None

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


def read_or_empty(path: Path) -> str:
    """What is in `path`; "" when it does not exist."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def free_bytes(path: Path) -> int:
    """What an ordinary user may still write on the volume of `path`."""
    volume = os.statvfs(path)
    return volume.f_bavail * volume.f_frsize


def size_bytes(path: Path) -> int:
    """Size of the volume of `path`."""
    volume = os.statvfs(path)
    return volume.f_blocks * volume.f_frsize


def same_volume(one: Path, other: Path) -> bool:
    """Do both, which exist, lie on the same volume? Links are followed."""
    return one.stat().st_dev == other.stat().st_dev
