"""Restores a snapshot to see whether it can be, and how long that takes."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path as FilePath

from backups.base import Progress
from backups.catalog import SnapshotRecord, Verification
from backups.errors import ObjectDamaged, ObjectMissing, RestoreFailed, RestorePrevented, RestoreRefused
from backups.repository import Path
from backups.restore import restore
from backups.restore_plan import RestorePlan, Target, TargetKind
from backups.unpacked import NO_ROOM, private_home
from cluster.errors import CommandFailed, CommandTimedOut, InstanceError, PostgresUnavailable
from postgres.command import Account
from postgres.scratch import ScratchServer, find_programs

log = logging.getLogger("flypg.backups")
TOOL_S = 4 * 3600.0
AMCHECK_SINCE = 14  # the version of PostgreSQL that brought pg_amcheck


async def verify(
    path: Path,
    record: SnapshotRecord,
    scratch: FilePath,
    *,
    owner: Account | None,
    node: str,
    programs: str = "",
    wall: Callable[[], float] = time.time,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Restore `record` below `scratch`, look at everything in it, remove it, and write the result down.

    A snapshot that does not restore is a result, not an error; a repository that does not answer, or a full disk, is
    an error (RepositoryUnavailable, RestoreRefused, RestorePrevented): then nothing is known and nothing is written. So
    it is without the key or the programs that it takes.
    """
    if not path.opens(record):
        raise RestoreRefused(
            f"{record.id} is sealed with key {record.encrypted_with}, which was not given: it was not tested"
        )
    try:
        find_programs(record.major, programs)
    except InstanceError as error:
        raise RestoreRefused(f"{record.id} was not tested: {error}") from None
    began = time.monotonic()
    place = await asyncio.to_thread(_make_place, scratch, record.id)
    restore_s = 0.0
    try:
        plan = RestorePlan(record, Target(TargetKind.SNAPSHOT), record.timeline, (), None, None)
        result = await restore(path, plan, place / "data", owner=owner, programs=programs, progress=progress)
        restore_s = result.total_s
        text, ok = await _examine(place, record, owner, programs), True
    except RestorePrevented:
        raise
    except (RestoreFailed, ObjectDamaged, ObjectMissing, CommandFailed, CommandTimedOut, InstanceError) as error:
        if any(why in str(error) for why in NO_ROOM):
            raise RestorePrevented(f"{record.id} was not tested: {error}") from error
        text, ok = str(error), False
    except PostgresUnavailable as error:
        text, ok = f"the restored server: {error}", False
    finally:
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
    found = Verification(wall(), ok, round(restore_s, 2), round(time.monotonic() - began, 2), text, node)
    await asyncio.to_thread(path.record_verification, record.id, found)
    log.log(
        logging.INFO if ok else logging.ERROR,
        "verified",
        extra={"snapshot": record.id, "ok": ok, "restore_s": found.restore_s, "found": text},
    )
    return found


def _make_place(scratch: FilePath, snapshot: str) -> FilePath:
    try:
        scratch.mkdir(mode=0o711, parents=True, exist_ok=True)
        place = FilePath(tempfile.mkdtemp(prefix=f"{snapshot}-", dir=scratch))
    except OSError as error:
        raise RestoreRefused(f"{scratch} cannot be written: {error.strerror or error}") from None
    place.chmod(0o711)  # the server's user passes through
    return place


async def _examine(place: FilePath, record: SnapshotRecord, owner: Account | None, programs: str) -> str:
    """Start the restored cluster, check tables and indexes of every database, stop, check page checksums."""
    home = await asyncio.to_thread(private_home)
    server = ScratchServer(place / "data", home / "s", find_programs(record.major, programs), owner)
    try:
        await server.start({})
        await server.wait_until_open(timeout_s=600)
        names = await server.column("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1")
        relations = 0
        for name in names:
            (count,) = await server.row("SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'm', 'p')", name)
            relations += int(count)
        if record.major >= AMCHECK_SINCE:
            where = ("-h", str(server.home), "-U", "postgres", "-p", "5432")
            await server.tool("pg_amcheck", *where, "--all", "--install-missing", timeout_s=TOOL_S)
        await server.stop()
        if record.data_checksums:
            await server.tool("pg_checksums", "--check", "-D", server.data, timeout_s=TOOL_S)
    finally:
        await server.kill()
        await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)
    checked = ", pg_amcheck found nothing" if record.major >= AMCHECK_SINCE else ""
    sums = ", page checksums fit" if record.data_checksums else ""
    return f"{len(names)} databases, {relations} tables{checked}{sums}"
