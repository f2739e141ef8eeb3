"""Which snapshot a new standby may be made from, so that its primary still has all the WAL it then needs. Pure.

A snapshot is of use only when it lies on the history of the primary that is to be followed, and when the archived WAL
leads from it, without a gap, to WAL that this primary still has. The history is the primary's own word: what another
primary wrote beyond the point at which the history left it may be in the repository, and is not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backups.catalog import SnapshotRecord
from backups.layout import Fork, Segment, parse_history
from backups.restore_plan import Refused, on_line, timeline_at, unbroken_until
from cluster.model import format_lsn


@dataclass(frozen=True, slots=True)
class Followed:
    """The primary that a standby is to follow, by its own word. LSNs."""

    system_id: str
    major: int
    timeline: int
    history: str  # the content of its timeline's history file; "" on timeline 1
    oldest: int  # where the oldest WAL begins that it still has
    flushed: int  # where it stands

    @property
    def line(self) -> tuple[Fork, ...]:
        """The ancestors of its timeline. Raises ValueError when the history is none."""
        return parse_history(self.history)


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """A snapshot, and the archived WAL that is replayed on it."""

    snapshot: SnapshotRecord
    first: int  # number of the first segment that is needed
    beyond: int  # … and after the last one that is archived
    until: int  # LSN up to which snapshot and archive lead; the primary has what follows

    def segments(self, followed: Followed) -> frozenset[Segment]:
        """Exactly the segments that lie on the primary's history."""
        size, line = self.snapshot.segment_bytes, followed.line
        numbers = range(self.first, self.beyond)
        return frozenset(Segment(timeline_at(n, size, followed.timeline, line), n) for n in numbers)


def plan_seed(
    snapshots: Sequence[SnapshotRecord], segments: frozenset[Segment], followed: Followed
) -> SeedPlan | Refused:
    """The newest snapshot that fits (`snapshots`: oldest first). `segments`: what is archived whole."""
    if followed.timeline > 1 and not followed.line:
        return Refused(f"the primary has no history file of its timeline {followed.timeline}")
    first_why = ""
    for record in reversed(snapshots):
        plan = with_wal(record, segments, followed)
        why = _unfit(record, followed) or _gap(plan, followed)
        if not why:
            return plan
        first_why = first_why or f"{record.id} {why}"
    return Refused(f"no snapshot fits; the newest: {first_why}" if first_why else "there is no snapshot")


def with_wal(record: SnapshotRecord, segments: frozenset[Segment], followed: Followed) -> SeedPlan:
    """How far the archive leads on from `record`, along the primary's history."""
    size = record.segment_bytes
    first = record.start_lsn // size
    beyond = unbroken_until(first, size, followed.timeline, followed.line, segments)
    return SeedPlan(record, first, beyond, max(beyond * size, record.stop_lsn))


def _unfit(record: SnapshotRecord, followed: Followed) -> str:
    """Why it is no snapshot for a standby of this primary, whatever is archived; "" when it is one."""
    if record.system_id != followed.system_id:
        return f"is of another system, {record.system_id}"
    if record.major != followed.major:
        return f"is of PostgreSQL {record.major}, and the primary's is {followed.major}"
    if any(archive.name != "base.tar" for archive in record.archives):
        return "has tablespaces"
    if record.damaged_pages:
        return "was taken from a server with damaged pages"
    if record.verification is not None and not record.verification.ok:
        return "failed its restore test"
    if not on_line(record, followed.timeline, followed.line):
        return f"is not on the history of timeline {followed.timeline}"
    if record.timeline == followed.timeline and record.stop_lsn > followed.flushed:
        return f"ends at {format_lsn(record.stop_lsn)}, and the primary stands at {format_lsn(followed.flushed)}"
    return ""


def _gap(plan: SeedPlan, followed: Followed) -> str:
    """What is missing between the snapshot and the primary's own WAL; "" when nothing is."""
    record = plan.snapshot
    left = [fork for fork in followed.line if fork.timeline >= record.timeline]
    if left and plan.beyond * record.segment_bytes <= left[-1].lsn:
        # Its own WAL may go on beyond the fork: only that of the newest timeline says where it was left.
        return f"is older than timeline {followed.timeline}, whose beginning is not archived yet"
    if plan.until < followed.oldest:
        missing = f"{format_lsn(plan.until)} to {format_lsn(followed.oldest)}"
        return f"lacks WAL: {missing} is neither archived nor on the primary any more"
    return ""
