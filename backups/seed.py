"""Makes the data of a new standby out of a repository: a snapshot, and the archived WAL that leads to its primary's.

The replay runs here, on a server that nobody can reach, in standby mode: it never leaves recovery, and so writes
nothing of its own. It is stopped as soon as the WAL that was planned is in the data directory and the backup is
consistent; what is handed over is the directory of a standby that was stopped in order. It is given exactly the WAL
that lies on the primary's history, and that history itself, so that it can be on no other branch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath

from backups import layout
from backups.base import Progress
from backups.errors import RestoreFailed, RestoreRefused
from backups.layout import Segment, segment_of
from backups.repository import Path
from backups.restore import RECOVERY_S, write_signal
from backups.restore_plan import Refused
from backups.seed_plan import Followed, SeedPlan, plan_seed, with_wal
from backups.unpacked import unpacked
from backups.walget import WalFetcher
from backups.wire import LineServer, restore_command
from cluster.errors import CommandFailed, InstanceError
from cluster.model import format_lsn
from postgres.command import Account
from postgres.controldata import ControlData
from postgres.files import read_or_empty, write_atomically
from postgres.scratch import ScratchServer

log = logging.getLogger("flypg.backups")
GB = 1 << 30
LOOK_S = 0.5  # between two looks at the replay
STALL_S = 300.0  # a replay that gets nowhere for so long has met WAL that it cannot read


@dataclass(frozen=True, slots=True)
class Seeded:
    """What a standby was made from. LSNs; durations in seconds."""

    snapshot: str
    until: int  # snapshot and archived WAL lead here
    unpack_s: float
    replay_s: float


def archived(path: Path, segment_bytes: int) -> frozenset[Segment]:
    """The segments that are archived whole; blocks."""
    return frozenset(s for name in path.wal_names() if (s := segment_of(name, segment_bytes)))


def choose(path: Path, followed: Followed) -> SeedPlan | Refused:
    """Look at what the repository has, and choose; blocks."""
    snapshots = path.snapshots()
    size = snapshots[-1].segment_bytes if snapshots else layout.SEGMENT_BYTES
    return plan_seed(snapshots, archived(path, size), followed)


async def seed(
    path: Path,
    followed: Followed,
    directory: FilePath,
    *,
    owner: Account | None,
    programs: str = "",
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Seeded:
    """Fill the empty `directory`. `progress`: of unpacking; `say`: what is done after that, for people.

    Raises RestoreRefused (no snapshot fits, nothing was changed), RestoreFailed or a RepositoryError (what is in the
    directory is of no use).
    """
    plan = await asyncio.to_thread(choose, path, followed)
    if isinstance(plan, Refused):
        raise RestoreRefused(plan.why)
    record = plan.snapshot
    try:
        async with unpacked(path, record, directory, owner=owner, programs=programs, progress=progress) as files:
            began = time.monotonic()
            more = await asyncio.to_thread(archived, path, record.segment_bytes)  # the archive has grown meanwhile
            plan = with_wal(record, more, followed)
            await _replay(files.server, path, plan, followed, files.home, owner, say)
    except (InstanceError, CommandFailed) as error:
        raise RestoreFailed(f"{record.id} does not make a standby: {error}") from error
    return Seeded(record.id, plan.until, files.unpack_s + files.check_s, time.monotonic() - began)


async def _replay(
    server: ScratchServer,
    path: Path,
    plan: SeedPlan,
    followed: Followed,
    home: FilePath,
    owner: Account | None,
    say: Callable[[str], None],
) -> None:
    """Replay what is archived, and stop in order while still in recovery. Raises InstanceError, CommandFailed."""
    size, data = plan.snapshot.segment_bytes, server.data
    settings_of_its_own = await asyncio.to_thread(read_or_empty, data / "postgresql.auto.conf")
    fetcher = WalFetcher(
        path,
        data,
        highest_timeline=followed.timeline,
        segment_bytes=size,
        owner=owner,
        only=plan.segments(followed),
    )
    lines = LineServer(home / "wal", fetcher.handle, owner)
    settings = {
        "restore_command": restore_command(home, home / "wal", owner),
        "recovery_target_timeline": str(followed.timeline),
        "wal_retrieve_retry_interval": "500ms",
        "hot_standby": "off",  # nobody reads here, and one demand less on settings
    }
    await asyncio.to_thread(lines.start)
    try:
        await asyncio.to_thread(_begin, data, followed, owner)
        await server.start(settings)
        await _replayed(server, fetcher, plan, say)
        await server.stop()
    finally:
        lines.stop()
        await asyncio.to_thread(fetcher.stop)
    _make_sure(await server.control(), followed)
    await asyncio.to_thread(
        write_atomically, data / "postgresql.auto.conf", settings_of_its_own, owner=owner, durable=False
    )
    log.info("seeded", extra={"directory": str(data), "snapshot": plan.snapshot.id, "until": format_lsn(plan.until)})


def _begin(data: FilePath, followed: Followed, owner: Account | None) -> None:
    if followed.timeline > 1:
        history = data / "pg_wal" / f"{followed.timeline:08X}.history"
        write_atomically(history, followed.history, owner=owner, durable=False)
    write_signal(data / "standby.signal", owner)


async def _replayed(server: ScratchServer, fetcher: WalFetcher, plan: SeedPlan, say: Callable[[str], None]) -> None:
    """Wait until recovery asks for what is not archived, and its base backup is consistent.

    Then all that was planned lies in the data directory, and whatever is not replayed yet is when it next starts.
    """
    size, seen, moved_at = plan.snapshot.segment_bytes, None, time.monotonic()
    until = time.monotonic() + RECOVERY_S
    while True:
        if fetcher.failure:
            raise InstanceError(str(fetcher.failure))
        if not server.alive():
            raise InstanceError(f"PostgreSQL ended during the replay: {server.last_words()}")
        control = await server.control()
        if fetcher.asked >= plan.beyond and control.control.min_recovery is not None and not control.backup_start:
            return
        last = segment_of(fetcher.last, size)
        done = last.number - plan.first + 1 if last is not None else 0
        count = max(1, plan.beyond - plan.first)
        say(f"replaying WAL, {100 * done // count} % of {count * size / GB:.1f} GB")
        now = (fetcher.last, control.control)
        if now != seen:
            seen, moved_at = now, time.monotonic()
        if time.monotonic() > min(until, moved_at + STALL_S):
            raise InstanceError(
                f"the replay got no further than {fetcher.last or 'the snapshot'}: {server.last_words()}"
            )
        await asyncio.sleep(LOOK_S)


def _make_sure(found: ControlData, followed: Followed) -> None:
    """Is it what the standby of this primary may be started with? Raises InstanceError."""
    control = found.control
    if control.system_id != followed.system_id:
        raise InstanceError(f"it belongs to system {control.system_id}")
    if control.state != "shut down in recovery" or found.backup_start:
        raise InstanceError(f"it did not stop in order as a standby: {control.state}")
    at = control.min_recovery
    left_at = {fork.timeline: fork.lsn for fork in followed.line}
    if at is None or (at.timeline != followed.timeline and at.lsn > left_at.get(at.timeline, -1)):
        raise InstanceError(f"at {at}, it is not on the history of timeline {followed.timeline}")
