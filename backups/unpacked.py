"""What each restore begins with: a snapshot's files in a directory, checked, and a server that replays WAL on them."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath

from backups.base import Progress
from backups.catalog import SnapshotRecord
from backups.errors import RestoreFailed, RestorePrevented, RestoreRefused
from backups.extract import make_our_own, tablespaces, unpack
from backups.repository import Path
from backups.spaces import look_through
from cluster.errors import CommandFailed, InstanceError
from postgres.command import Account, run
from postgres.files import free_bytes
from postgres.scratch import ScratchServer, find_programs

CHECK_S = 3600.0
SYNC_S = 3600.0
NO_ROOM = ("No space left on device", "Disk quota exceeded", "Check free disk space")  # the kernel, and PostgreSQL


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A snapshot's files, and who may work on them. Durations in seconds."""

    server: ScratchServer
    home: FilePath  # short, of this restore alone, gone at its end
    unpack_s: float
    check_s: float


@asynccontextmanager
async def unpacked(
    path: Path,
    record: SnapshotRecord,
    directory: FilePath,
    *,
    owner: Account | None,
    programs: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> AsyncIterator[Unpacked]:
    """Unpack `record` into the empty `directory` and check every file; no server is left running at the end.

    What comes out is on the disk only when the block has ended well: a restore that is cut short is begun anew, so that
    nothing before that needs to be. Raises RestoreRefused (nothing changed), RestorePrevented, also for what the block
    raises when the disk is full, RepositoryError, InstanceError, CommandFailed.
    """
    try:
        binaries = find_programs(record.major, programs)
    except InstanceError as error:
        raise RestoreRefused(f"{error}; nothing was changed") from None
    await asyncio.to_thread(check_space, directory, record.raw_bytes)
    home = await asyncio.to_thread(private_home)
    server = ScratchServer(directory, home / "s", binaries, owner)

    cut_short = threading.Event()

    def tell(done: int) -> None:
        if cut_short.is_set():
            raise RestoreFailed("it was stopped")
        if progress is not None:
            progress(Progress(done, record.raw_bytes, record.stored_bytes))

    try:
        began = time.monotonic()
        try:
            checked = await asyncio.to_thread(unpack, path, record, directory, owner=owner, progress=tell)
        except asyncio.CancelledError:
            cut_short.set()  # a thread cannot be cancelled: else it would go on to the end of the snapshot
            raise
        written = time.monotonic()
        if not checked:
            await server.tool("pg_verifybackup", "--no-parse-wal", "--quiet", directory, timeout_s=CHECK_S)
        await asyncio.to_thread(make_our_own, directory, record, owner)
        await asyncio.to_thread(look_through, directory / "pg_wal")
        yield Unpacked(server, home, written - began, time.monotonic() - written)
        await asyncio.to_thread((directory / "backup_manifest").unlink, missing_ok=True)
        await sync(directory)
    except OSError as error:
        raise RestorePrevented(f"{error.filename or directory} cannot be written: {error.strerror or error}") from error
    except (InstanceError, CommandFailed, RestoreFailed) as error:
        if not isinstance(error, RestorePrevented) and any(why in str(error) for why in NO_ROOM):
            raise RestorePrevented(f"there is no room for {directory}: {error}") from error
        raise
    finally:
        await server.kill()
        await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)


async def sync(directory: FilePath) -> None:
    """Have all that was restored on the disk; one call for a whole file system, not one for each file."""
    places = [place for place in (directory, tablespaces(directory)) if place.exists()]
    await run(["sync", "--file-system", *places], timeout_s=SYNC_S)


def private_home() -> FilePath:
    """A new directory for a scratch server; below /tmp, since a socket's path must be short.

    Its name has our process id: what somebody who was killed has left behind is removed by the next.
    """
    for left in FilePath("/tmp").glob("flypg-*-*"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not FilePath(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)  # not if it is another user's
    home = FilePath(tempfile.mkdtemp(prefix=f"flypg-{os.getpid()}-", dir="/tmp"))
    home.chmod(0o711)  # the server's user passes through
    return home


def check_space(directory: FilePath, needed: int) -> None:
    place = directory
    while not place.exists():
        place = place.parent
    free = free_bytes(place)
    if free < needed * 1.1:
        raise RestoreRefused(f"{directory} needs {int(needed * 1.1) >> 20} MiB, only {free >> 20} MiB are free")
