"""Carries out retention, and audits a repository against its catalogue."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from backups import layout
from backups.base import check_parts
from backups.catalog import SnapshotRecord
from backups.errors import ObjectMissing, RepositoryError
from backups.repository import Path, wal_name
from backups.restore_plan import line_to, timeline_at, unbroken_until
from backups.retention import GRACE_S, Keep, Retention, abandoned, needless_wal, retain
from backups.segments import wrong_with

log = logging.getLogger("flypg.backups")
AT_ONCE = 4  # WAL files that an audit holds in memory
BATCH = 100  # of them between two words about progress


@dataclass(frozen=True, slots=True)
class Swept:
    """What a retention run has removed."""

    retention: Retention
    wal_files: int
    wal_bytes: int
    garbage: tuple[str, ...]  # ids of snapshots that were never committed
    unreadable: tuple[tuple[str, str], ...] = ()  # (id, why): what they need is not known, so nothing of it goes


def sweep(path: Path, keep: Keep, *, wall: Callable[[], float] = time.time, dry_run: bool = False) -> Swept:
    """Delete what is older than asked; blocks. The record goes first, then the parts, WAL last.

    The WAL that stays is computed from what is listed after the deletions, so a run that was cut off is merely
    finished by the next.
    """
    now = wall()
    catalogue = path.catalogue()
    retention = retain(catalogue.snapshots, keep, now)
    parts = [(info.key.split("/")[1], info.modified) for info in path.stored("snapshots/")]
    listed = [*(s.id for s in catalogue.snapshots), *(i for i, _ in catalogue.damaged)]
    garbage = [i for i in abandoned(parts, listed, now) if not path.recorded(i)]
    wal = {wal_name(info.key): info for info in path.stored("wal/")}
    needless = set() if catalogue.damaged else set(needless_wal(wal, retention.keep))
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
    return Swept(retention, len(doomed), sum(info.size for info in doomed), tuple(garbage), catalogue.damaged)


def _old_pieces(path: Path, before: float) -> list[str]:
    """Pieces that nobody adds to any more: those of the newest segment stay, however old."""
    found = [(p, info) for info in path.stored("stream/") if (p := layout.piece_of(info.key)) is not None]
    newest = max((p.segment for p, _ in found), default=None)
    return [info.key for p, info in found if p.segment != newest and info.modified < before]


@dataclass(frozen=True, slots=True)
class Hole:
    """Moments that cannot be restored: WAL is missing, and a later snapshot begins after it."""

    from_lsn: int
    until_lsn: int
    segment: str  # the first one that is missing
    snapshot: str  # the one after it


@dataclass(frozen=True, slots=True)
class Reach:
    """The moments that can be restored, along the newest timeline."""

    timeline: int
    first_lsn: int
    last_lsn: int
    gap: str  # the first segment that is missing before later ones, with no snapshot after it; "" means there is none
    holes: tuple[Hole, ...] = ()  # gaps that a snapshot has closed


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
    """Compare what is listed with what is stored; blocks. `deep`: fetch and check every part and all WAL as well."""
    tell = progress or (lambda _: None)
    catalogue = path.catalogue()
    snapshots = list(catalogue.snapshots)
    problems = [f"{i}: its record cannot be read, its parts are kept: {why}" for i, why in catalogue.damaged]
    for record in snapshots:
        problems += _problems_of(path, record, deep, tell)
    listed = {s.id for s in snapshots} | {i for i, _ in catalogue.damaged}
    garbage = sorted({info.key.split("/")[1] for info in path.stored("snapshots/")} - listed)
    stored = list(path.stored("wal/"))
    names = [wal_name(info.key) for info in stored]
    problems += [f"{info.key}: is empty" for info in stored if not info.size]
    if deep:
        size = snapshots[-1].segment_bytes if snapshots else None
        problems += _damaged_wal(path, names, size, tell)
    else:
        problems += path.histories(names)[1]
    reach = reach_of(path, snapshots, names)
    if reach is not None and layout.HISTORY.match(reach.gap):
        lost = f"no restore follows timeline {reach.timeline} without it"
        problems.append(f"{reach.gap} is not archived: {lost}; the next archiver stores it again, if its pg_wal has it")
    elif reach is not None and reach.gap:
        problems.append(f"the WAL has a gap: {reach.gap} is not archived, later segments are; a snapshot closes it")
    conflicts = tuple(info.key for info in path.stored("conflict/"))
    problems.extend(f"WAL was refused because other content has its name: {key}" for key in conflicts)
    return Audit(tuple(snapshots), tuple(problems), tuple(garbage), conflicts, len(names), reach)


def _problems_of(path: Path, record: SnapshotRecord, deep: bool, tell: Callable[[str], None]) -> list[str]:
    """What speaks against one snapshot."""
    tell(f"snapshot {record.id}")
    problems = []
    try:
        check_parts(path, record)
        path.verification(record.id)
    except RepositoryError as error:
        problems.append(str(error))
    if not path.opens(record):
        problems.append(f"{record.id}: is sealed with key {record.encrypted_with}, which was not given")
    elif deep and not problems:
        done, count = 0, len(record.parts)
        for done, part in enumerate(record.parts, 1):
            try:
                path.get_part(part)
            except RepositoryError as error:
                problems.append(str(error))
            if done % 10 == 0:
                tell(f"snapshot {record.id}, {100 * done // count // 10 * 10} %")
    if record.damaged_pages:
        problems.append(f"{record.id}: the server had damaged pages when it was taken")
    if record.verification is not None and not record.verification.ok:
        problems.append(f"{record.id}: its restore test failed: {record.verification.text}")
    return problems


def _damaged_wal(path: Path, names: list[str], segment_bytes: int | None, tell: Callable[[str], None]) -> list[str]:
    """Fetch all archived WAL, some at a time; what does not open, or is not what its name says. Without a snapshot
    nobody has said how large a segment is (None): its header must fit its size then."""

    def look(name: str) -> str:
        try:
            content = path.get_wal(name)
            if layout.HISTORY.match(name):
                layout.parse_history(content.decode())
            elif layout.SEGMENT.match(name) or layout.PARTIAL.match(name):
                system = path.name.system_id
                size = segment_bytes or layout.possible_segment_bytes(len(content)) or layout.SEGMENT_BYTES
                return wrong_with(name, content[:64], len(content), system_id=system, segment_bytes=size)
        except ObjectMissing:
            return ""  # retention has removed it meanwhile
        except (RepositoryError, ValueError) as error:
            return str(error) if name in str(error) else f"{name}: {error}"
        return ""

    found = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(names), BATCH):
            tell(f"WAL, {100 * start // len(names) // 10 * 10} % of {len(names)} files")
            found += [problem for problem in pool.map(look, names[start : start + BATCH]) if problem]
    return found


def reach_of(path: Path, snapshots: list[SnapshotRecord], names: list[str]) -> Reach | None:
    """How far restores reach without a gap, from the oldest snapshot on the newest timeline's line."""
    if not snapshots:
        return None
    size = snapshots[-1].segment_bytes
    segments = frozenset(s for n in names if (s := layout.segment_of(n, size)))
    if not segments:
        return None
    histories, _ = path.histories(names)
    tip = max(s.timeline for s in segments)
    line = line_to(tip, histories)
    if line is None:
        return Reach(tip, 0, 0, f"{tip:08X}.history")
    own = {f.timeline for f in line} | {tip}
    on_line = [s for s in snapshots if s.timeline in own] or [snapshots[-1]]
    begin, gap, holes = on_line[0], "", []
    while True:
        beyond = unbroken_until(begin.start_lsn // size, size, tip, line, segments)
        last_lsn = max(beyond * size, begin.stop_lsn)
        if not any(s.number > beyond and s.timeline == timeline_at(s.number, size, tip, line) for s in segments):
            break
        name = layout.Segment(timeline_at(beyond, size, tip, line), beyond).name(size)
        after = next((s for s in on_line if s.start_lsn // size > beyond), None)
        if after is None:
            gap = name
            break
        holes.append(Hole(last_lsn, after.stop_lsn, name, after.id))
        begin = after
    return Reach(tip, on_line[0].stop_lsn, last_lsn, gap, tuple(holes))
