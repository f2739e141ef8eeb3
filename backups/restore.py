"""Carries out a restore: unpack a snapshot, check it, replay WAL up to the target, end with a clean data directory.

The recovery runs here, on a server that nobody can reach, and ends with an orderly stop. What is handed over needs no
repository any more: it is the data directory of a primary, on a timeline of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

from backups import layout
from backups.base import Progress
from backups.errors import RestoreFailed, RestorePrevented
from backups.repository import Path
from backups.restore_plan import Refused, RestorePlan, Target, TargetKind, plan_restore
from backups.stream import lengths
from backups.unpacked import unpacked
from backups.walget import WalFetcher
from backups.wire import LineServer, restore_command
from cluster.errors import CommandFailed, InstanceError, PostgresUnavailable
from cluster.model import format_lsn
from postgres.command import Account
from postgres.scratch import ScratchServer

log = logging.getLogger("flypg.backups")
RECOVERY_S = 24 * 3600.0
LAST_TRANSACTION = re.compile(r"last completed transaction was at log time (.+)")
TARGETS = {TargetKind.TIME: "time", TargetKind.LSN: "lsn", TargetKind.NAME: "name", TargetKind.XID: "xid"}


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What came out. Durations in seconds."""

    directory: FilePath
    timeline: int
    lsn: str  # where the restored cluster begins to write
    last_commit: str  # time of the last transaction that was replayed; "" when no WAL was
    unpack_s: float  # every file is compared with the manifest on the way
    check_s: float  # a second pass, where that could not be
    recovery_s: float

    @property
    def total_s(self) -> float:
        return self.unpack_s + self.check_s + self.recovery_s


def make_plan(
    path: Path, target: Target, *, snapshot: str = "latest", timeline: int | None = None
) -> RestorePlan | Refused:
    """Look at what a repository has, and choose; blocks."""
    snapshots = path.snapshots()
    if target.kind is TargetKind.SNAPSHOT:
        return plan_restore(snapshots, {}, frozenset(), target, snapshot=snapshot)
    size = snapshots[0].segment_bytes if snapshots else layout.SEGMENT_BYTES
    names = list(path.wal_names())
    histories, damaged = path.histories(names)
    segments = frozenset(s for n in names if (s := layout.segment_of(n, size)))
    plan = plan_restore(
        snapshots, histories, segments, target, snapshot=snapshot, timeline=timeline, streamed=lengths(path, size)
    )
    if isinstance(plan, Refused):
        return Refused("; ".join((plan.why, *damaged)))
    return replace(plan, warnings=(*plan.warnings, *damaged))


async def restore(
    path: Path,
    plan: RestorePlan,
    directory: FilePath,
    *,
    owner: Account | None,
    programs: str = "",
    inclusive: bool = True,
    progress: Callable[[Progress], None] | None = None,
    replaying: Callable[[int, int], None] = lambda done, count: None,
) -> RestoreResult:
    """Restore into the empty `directory`. `replaying` is told how many segments of WAL were asked for, and of how many.

    Raises RestoreRefused (nothing changed), RestoreFailed, RepositoryError.
    """
    try:
        async with unpacked(path, plan.snapshot, directory, owner=owner, programs=programs, progress=progress) as files:
            began = time.monotonic()
            timeline, lsn, commit = await _recover(files.server, path, plan, files.home, owner, inclusive, replaying)
        recovery_s = time.monotonic() - began
    except (InstanceError, CommandFailed, PostgresUnavailable) as error:
        raise RestoreFailed(f"restore into {directory} failed: {error}") from error
    return RestoreResult(directory, timeline, lsn, commit, files.unpack_s, files.check_s, recovery_s)


async def _recover(
    server: ScratchServer,
    path: Path,
    plan: RestorePlan,
    home: FilePath,
    owner: Account | None,
    inclusive: bool,
    replaying: Callable[[int, int], None],
) -> tuple[int, str, str]:
    """Replay to the target, promote, stop in order. Returns timeline, LSN, time of the last commit."""
    if plan.target.kind is TargetKind.SNAPSHOT:
        await server.start({})  # the WAL inside the snapshot, as after a crash
        return await _finish(server)
    size = plan.snapshot.segment_bytes
    fetcher = WalFetcher(
        path, server.data, highest_timeline=plan.timeline, segment_bytes=size, owner=owner, planned=plan.has
    )
    first, last = plan.first_segment, plan.last_segment

    def given(fields: list[str]) -> str:
        answer = fetcher.handle(fields)
        if first is not None and last is not None and fetcher.asked >= first.number:
            count = last.number - first.number + 1
            replaying(min(fetcher.asked - first.number, count), count)
        return answer

    lines = LineServer(home / "wal", given, owner)
    settings = {
        "restore_command": restore_command(home, home / "wal", owner),
        "recovery_target_timeline": str(plan.timeline),
        "recovery_target_action": "promote",
        "hot_standby": "off",  # nothing to read before the end, and one demand less on settings
    }
    if plan.target.kind in TARGETS:
        settings[f"recovery_target_{TARGETS[plan.target.kind]}"] = plan.target.text
        settings["recovery_target_inclusive"] = "on" if inclusive else "off"
    await asyncio.to_thread(lines.start)
    try:
        await asyncio.to_thread(write_signal, server.data / "recovery.signal", owner)
        await server.start(settings)
        try:
            found = await _finish(server)
        except InstanceError as error:
            raise _explain(plan, fetcher, server, error) from error
        end = plan.streamed or last
        if plan.target.kind is TargetKind.LATEST and end is not None and fetcher.asked < end.number:
            raise RestoreFailed(
                f"recovery ended in {fetcher.last or 'the snapshot'}, of which PostgreSQL could not read all, although"
                f" WAL is archived up to {end.name(size)}; look for what is damaged: flypg backups check --deep"
            )
        return found
    finally:
        lines.stop()
        await asyncio.to_thread(fetcher.stop)


def write_signal(file: FilePath, owner: Account | None) -> None:
    """An empty file that tells PostgreSQL how to begin."""
    file.touch(mode=0o600)
    if owner is not None:
        shutil.chown(file, owner.uid, owner.gid)


def _explain(plan: RestorePlan, fetcher: WalFetcher, server: ScratchServer, error: InstanceError) -> RestoreFailed:
    if fetcher.failure is not None:
        failure = fetcher.failure
        return failure if isinstance(failure, RestorePrevented) else RestoreFailed(str(failure))
    words = server.last_words()
    if "recovery ended before configured recovery target was reached" in words:
        ended = LAST_TRANSACTION.search(server.log.read_text(errors="replace"))
        return RestoreFailed(
            f"the archived WAL ends (last segment {fetcher.last or 'none'}, "
            + (f"last transaction at {ended[1]}" if ended else "no transaction in it")
            + f") before {plan.target}; without a target, all there is is restored"
        )
    return RestoreFailed(str(error))


async def _finish(server: ScratchServer) -> tuple[int, str, str]:
    await server.wait_until_open(timeout_s=RECOVERY_S)
    name, lsn, commit = await server.row(
        "SELECT pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_lsn()::text,"
        " pg_last_xact_replay_timestamp()::text"
    )
    await server.stop()
    control = (await server.control()).control
    if control.state != "shut down":
        raise InstanceError(f"the restored server did not stop in order: {control.state}")
    log.info("restored", extra={"directory": str(server.data), "lsn": format_lsn(control.checkpoint)})
    return int(str(name)[:8], 16), str(lsn), str(commit or "")
