"""Carries out retention, and audits a repository against its catalogue."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from backups import layout
from backups.base import check_parts
from backups.catalog import SnapshotRecord
from backups.errors import ObjectDamaged, RepositoryError
from backups.repository import Path, wal_name
from backups.restore_plan import line_to, timeline_at, unbroken_until
from backups.retention import GRACE_S, Keep, Retention, abandoned, needless_wal, retain

log = logging.getLogger("flypg.backups")


@dataclass(frozen=True, slots=True)
class Swept:
    """What a retention run has removed."""

    retention: Retention
    wal_files: int
    wal_bytes: int
    garbage: tuple[str, ...]  # ids of snapshots that were never committed


def sweep(path: Path, keep: Keep, *, wall: Callable[[], float] = time.time, dry_run: bool = False) -> Swept:
    """Delete what is older than asked; blocks. The record goes first, then the parts, WAL last.

    The WAL that stays is computed from what is listed after the deletions, so a run that was cut off is merely
    finished by the next.
    """
    now = wall()
    retention = retain(path.snapshots(), keep, now)
    parts = [(info.key.split("/")[1], info.modified) for info in path.stored("snapshots/")]
    garbage = abandoned(parts, [s.id for s in (*retention.keep, *retention.delete)], now)
    wal = {wal_name(info.key): info for info in path.stored("wal/")}
    needless = set(needless_wal(wal, retention.keep))
    doomed = [info for name, info in wal.items() if name in needless]
    if not dry_run:
        for record in retention.delete:
            path.remove_snapshot(record.id)
            log.info("snapshot_deleted", extra={"snapshot": record.id})
        for snapshot in garbage:
            path.remove_parts(snapshot)
            log.info("garbage_deleted", extra={"snapshot": snapshot})
        path.remove_wal(info.key for info in doomed)
        path.remove_wal(_old_pieces(path, now - GRACE_S))
        path.tidy(now - GRACE_S)
    return Swept(retention, len(doomed), sum(info.size for info in doomed), tuple(garbage))


def _old_pieces(path: Path, before: float) -> list[str]:
    """Pieces that nobody adds to any more: those of the newest segment stay, however old."""
    found = [(p, info) for info in path.stored("stream/") if (p := layout.piece_of(info.key)) is not None]
    newest = max((p.segment for p, _ in found), default=None)
    return [info.key for p, info in found if p.segment != newest and info.modified < before]


@dataclass(frozen=True, slots=True)
class Reach:
    """The moments that can be restored, along the newest timeline."""

    timeline: int
    first_lsn: int
    last_lsn: int
    gap: str  # the first segment that is missing before later ones; "" means there is none


@dataclass(frozen=True, slots=True)
class Audit:
    """What `flypg backups check` found."""

    snapshots: tuple[SnapshotRecord, ...]
    problems: tuple[str, ...]
    garbage: tuple[str, ...]
    conflicts: tuple[str, ...]
    wal_files: int
    reach: Reach | None  # None: no snapshot, or no WAL


def audit(path: Path, *, deep: bool = False, progress: Callable[[str], None] | None = None) -> Audit:
    """Compare what is listed with what is stored; blocks. `deep`: fetch and check every part as well."""
    snapshots = path.snapshots()
    problems = []
    for record in snapshots:
        if progress is not None:
            progress(f"snapshot {record.id}")
        try:
            check_parts(path, record)
            if deep:
                for part in record.parts:
                    path.get_part(part)
        except (ObjectDamaged, RepositoryError) as error:
            problems.append(str(error))
        if record.damaged_pages:
            problems.append(f"{record.id}: the server had damaged pages when it was taken")
        if record.verification is not None and not record.verification.ok:
            problems.append(f"{record.id}: its restore test failed: {record.verification.text}")
    listed = {s.id for s in snapshots}
    garbage = sorted({info.key.split("/")[1] for info in path.stored("snapshots/")} - listed)
    names = [wal_name(info.key) for info in path.stored("wal/")]
    reach = reach_of(path, snapshots, names)
    if reach is not None and reach.gap:
        problems.append(f"the WAL has a gap: {reach.gap} is not archived, later segments are")
    conflicts = tuple(info.key for info in path.stored("conflict/"))
    problems.extend(f"WAL was refused because other content has its name: {key}" for key in conflicts)
    return Audit(tuple(snapshots), tuple(problems), tuple(garbage), conflicts, len(names), reach)


def reach_of(path: Path, snapshots: list[SnapshotRecord], names: list[str]) -> Reach | None:
    """How far restores reach without a gap, from the oldest snapshot on the newest timeline's line."""
    if not snapshots:
        return None
    size = snapshots[-1].segment_bytes
    segments = frozenset(s for n in names if (s := layout.segment_of(n, size)))
    if not segments:
        return None
    histories = {
        int(n[:8], 16): layout.parse_history(path.get_wal(n).decode()) for n in names if layout.HISTORY.match(n)
    }
    tip = max(s.timeline for s in segments)
    line = line_to(tip, histories)
    if line is None:
        return Reach(tip, 0, 0, f"{tip:08X}.history")
    own = {f.timeline for f in line} | {tip}
    first = next((s for s in snapshots if s.timeline in own), snapshots[-1])
    beyond = unbroken_until(first.start_lsn // size, size, tip, line, segments)
    later = any(s.number > beyond and s.timeline == timeline_at(s.number, size, tip, line) for s in segments)
    gap = layout.Segment(timeline_at(beyond, size, tip, line), beyond).name(size) if later else ""
    return Reach(tip, first.stop_lsn, max(beyond * size, first.stop_lsn), gap)
