"""From which snapshot, along which timelines and how far: chosen before anything is touched. Pure.

A timeline is a branch of history. A restore goes along one *line*: from a timeline back through its ancestors, each
left where its history file says. A snapshot is of use only when it lies on that line, before the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from backups.catalog import SnapshotRecord
from backups.layout import Fork, Segment, segment_at
from backups.retention import good
from cluster.model import format_lsn

NOTHING: Mapping[Segment, int] = MappingProxyType({})


class TargetKind(StrEnum):
    LATEST = "latest"  # all the WAL there is
    SNAPSHOT = "snapshot"  # the moment the snapshot ends
    TIME = "time"
    LSN = "lsn"
    NAME = "name"  # pg_create_restore_point
    XID = "xid"


@dataclass(frozen=True, slots=True)
class Target:
    kind: TargetKind
    text: str = ""  # as PostgreSQL wants it: a time with zone, an LSN, a name, a transaction id
    time: float = 0.0  # seconds since 1970, for TIME
    lsn: int = 0  # for LSN

    def __str__(self) -> str:
        return {"latest": "the end of the archived WAL", "snapshot": "the end of the snapshot"}.get(
            self.kind, f"{self.kind} {self.text}"
        )


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore will do."""

    snapshot: SnapshotRecord
    target: Target
    timeline: int  # the line that is followed leads here
    line: tuple[Fork, ...]  # its ancestors and where they were left, oldest first
    first_segment: Segment | None  # WAL that is needed from the archive; None: none
    last_segment: Segment | None  # the last one that is there without a gap
    warnings: tuple[str, ...] = ()
    streamed: Segment | None = None  # the one after that, of which there are pieces

    def has(self, segment: Segment) -> bool:
        """Is it one of those that were seen in the archive, on the way?"""
        first, last, size = self.first_segment, self.last_segment, self.snapshot.segment_bytes
        if segment == self.streamed:
            return True
        if first is None or last is None or not first.number <= segment.number <= last.number:
            return False
        return segment.timeline == timeline_at(segment.number, size, self.timeline, self.line)


@dataclass(frozen=True, slots=True)
class Refused:
    why: str


def line_to(timeline: int, histories: Mapping[int, Sequence[Fork]]) -> tuple[Fork, ...] | None:
    """The ancestors of `timeline`; None when its history file is not archived."""
    if timeline == 1:
        return ()
    forks = histories.get(timeline)
    return None if forks is None else tuple(forks)


def on_line(record: SnapshotRecord, timeline: int, line: Sequence[Fork]) -> bool:
    """Does the snapshot lie on the line that leads to `timeline`?"""
    if record.timeline == timeline:
        return True
    return any(f.timeline == record.timeline and record.stop_lsn <= f.lsn for f in line)


def timeline_at(number: int, segment_bytes: int, timeline: int, line: Sequence[Fork]) -> int:
    """On which timeline a line's segment `number` is: the newest that had begun by the segment's end."""
    for fork in line:
        if number < fork.lsn // segment_bytes:
            return fork.timeline
    return timeline


def unbroken_until(
    first: int, segment_bytes: int, timeline: int, line: Sequence[Fork], have: frozenset[Segment]
) -> int:
    """The number after the last segment that is there without a gap, counting from `first`."""
    number = first
    while Segment(timeline_at(number, segment_bytes, timeline, line), number) in have:
        number += 1
    return number


def plan_restore(
    snapshots: Sequence[SnapshotRecord],
    histories: Mapping[int, Sequence[Fork]],
    segments: frozenset[Segment],
    target: Target,
    *,
    snapshot: str = "latest",
    timeline: int | None = None,
    streamed: Mapping[Segment, int] = NOTHING,
) -> RestorePlan | Refused:
    """Choose. `snapshot`: an id, or "latest" for the newest that serves. `timeline`: None means the newest archived.

    `streamed`: how many bytes there are of segments that are not archived whole.
    """
    if not snapshots:
        return Refused("there is no snapshot")
    chosen = next((s for s in snapshots if s.id == snapshot), None)
    if snapshot != "latest" and chosen is None:
        return Refused(f"there is no snapshot {snapshot}; the newest is {snapshots[-1].id}")
    if target.kind is TargetKind.SNAPSHOT:
        record = chosen or _trusted(snapshots)[-1]
        return RestorePlan(record, target, record.timeline, (), None, None, _about(record, snapshots))
    tip = timeline or max(
        [*histories, *(s.timeline for s in snapshots), *(s.timeline for s in segments), *(s.timeline for s in streamed)]
    )
    line = line_to(tip, histories)
    if line is None:
        return Refused(f"the history file of timeline {tip} is not archived; choose another with --timeline")
    usable = [s for s in snapshots if on_line(s, tip, line) and (chosen is None or s.id == chosen.id)]
    if not usable:
        what = f"snapshot {chosen.id}" if chosen else "no snapshot"
        return Refused(f"{what} is not on the line to timeline {tip}; choose another with --timeline")
    before = [s for s in usable if _before(s, target)]
    if not before:
        return Refused(
            f"{target} is before the end of {usable[0].id} ({format_lsn(usable[0].stop_lsn)}), "
            "the oldest snapshot that could serve"
        )
    # a name or a transaction may lie anywhere: from the oldest snapshot on it is certainly found
    unknown = target.kind in (TargetKind.NAME, TargetKind.XID)
    trusted = _trusted(before)
    return _with_wal(trusted[0] if unknown else trusted[-1], before, segments, target, tip, line, streamed)


def _trusted(snapshots: Sequence[SnapshotRecord]) -> Sequence[SnapshotRecord]:
    """Those that nothing speaks against; all of them when there is no such."""
    return [s for s in snapshots if good(s)] or snapshots


def _before(record: SnapshotRecord, target: Target) -> bool:
    if target.kind is TargetKind.TIME:
        return record.finished_at <= target.time
    return target.kind is not TargetKind.LSN or record.stop_lsn <= target.lsn


def _about(record: SnapshotRecord, others: Sequence[SnapshotRecord]) -> tuple[str, ...]:
    """What is to be known of a snapshot that was chosen, also of newer `others` that were passed over."""
    passed = [s for s in others if good(record) and not good(s) and s.finished_at > record.finished_at]
    notes = [f"{s.id} is newer, but {_doubt(s)}" for s in passed]
    if not good(record):
        notes.append(f"{record.id} {_doubt(record)}")
    if record.verification is None:
        notes.append(f"{record.id} was never restored before")
    return tuple(notes)


def _doubt(record: SnapshotRecord) -> str:
    if record.verification is not None and not record.verification.ok:
        return f"failed its last restore test: {record.verification.text}"
    return "was taken from a server with damaged pages"


def _with_wal(
    record: SnapshotRecord,
    others: Sequence[SnapshotRecord],
    segments: frozenset[Segment],
    target: Target,
    tip: int,
    line: tuple[Fork, ...],
    streamed: Mapping[Segment, int],
) -> RestorePlan | Refused:
    """Is the WAL there that leads from `record` to `target`?"""
    size = record.segment_bytes
    first = record.start_lsn // size
    beyond = unbroken_until(first, size, tip, line, segments)
    first_segment = segment_at(record.timeline, record.start_lsn, size)
    last = Segment(timeline_at(beyond - 1, size, tip, line), beyond - 1) if beyond > first else None
    opened = Segment(tip, beyond)
    covered = max(beyond * size + streamed.get(opened, 0), record.stop_lsn)
    if target.kind is TargetKind.LSN and target.lsn > covered:
        return Refused(f"the archived WAL ends at {format_lsn(covered)}, before {target.text}")
    later = sorted(s for s in segments if s.number > beyond and s.timeline == timeline_at(s.number, size, tip, line))
    notes = list(_about(record, others))
    if later and target.kind is not TargetKind.LSN:
        missing = Segment(timeline_at(beyond, size, tip, line), beyond).name(size)
        gap = f"the WAL has a gap: {missing} is not archived, later segments are"
        if target.kind is TargetKind.LATEST:
            return Refused(f"{gap}; restore up to it with --to-lsn {format_lsn(covered)}, or from a snapshot after it")
        notes.append(f"{gap}; a target beyond it will not be reached")  # PostgreSQL then refuses to open
    if last is None:
        notes.append("no WAL is archived after the snapshot")
    in_pieces = opened if streamed.get(opened) else None
    return RestorePlan(record, target, tip, line, first_segment, last, tuple(notes), in_pieces)


def describe(plan: RestorePlan) -> list[str]:
    """The plan, for people, a line each."""
    record = plan.snapshot
    line = " → ".join(str(t) for t in (*(f.timeline for f in plan.line), plan.timeline))
    lines = [
        f"snapshot   {record.id} of {record.cluster}, taken on {record.node} ({record.role}), "
        f"PostgreSQL {record.major}, {record.raw_bytes >> 20} MiB",
        f"to         {plan.target}",
        f"timelines  {line}",
    ]
    if plan.first_segment is not None:
        size = record.segment_bytes
        last = plan.last_segment.name(size) if plan.last_segment else "none"
        lines.append(f"WAL        {plan.first_segment.name(size)} … {last}")
    return [*lines, *(f"warning    {w}" for w in plan.warnings)]
