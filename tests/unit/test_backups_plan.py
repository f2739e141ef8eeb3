"""Which snapshot and which timelines a restore takes; as stories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from backups.catalog import SnapshotRecord
from backups.errors import ObjectMissing
from backups.layout import Fork, Segment
from backups.objects import ObjectInfo
from backups.repository import Path as RepositoryPath
from backups.restore_plan import Refused, RestorePlan, Target, TargetKind, describe, plan_restore
from backups.walget import WalFetcher
from tests.support.snapshots import DAY, SEGMENT, record

# timeline 1 up to the middle of segment 10, 2 from there to the middle of 20, then 3; 4 left 1 in segment 6: a dead end
HISTORIES = {
    2: (Fork(1, 10 * SEGMENT + 500),),
    3: (Fork(1, 10 * SEGMENT + 500), Fork(2, 20 * SEGMENT + 500)),
}
DEAD = {**HISTORIES, 4: (Fork(1, 6 * SEGMENT),)}
EARLY, ON_TWO, LATE = (
    record("a", day=1, segment=3),
    record("b", day=2, segment=12, timeline=2),
    record("c", day=3, segment=25, timeline=3),
)
ORPHAN = record("d", day=2.5, segment=14, timeline=1)  # of a primary that did not know it was replaced
FAILED = record("c", day=3, segment=25, timeline=3, verified=False)
ALL = [EARLY, ON_TWO, LATE]
WAL = frozenset(
    [Segment(1, n) for n in range(3, 10)]
    + [Segment(2, n) for n in range(10, 20)]
    + [Segment(3, n) for n in range(20, 30)]
)
LATEST = Target(TargetKind.LATEST)


def lsn(segment: float) -> Target:
    at = int(segment * SEGMENT)
    return Target(TargetKind.LSN, f"0/{at:X}", lsn=at)


def time(day: float) -> Target:
    at = day * DAY
    return Target(TargetKind.TIME, datetime.fromtimestamp(at, UTC).isoformat(), time=at)


def name() -> Target:
    return Target(TargetKind.NAME, "here")


STORIES = [
    ("the newest to the end", ALL, WAL, LATEST, {}, "c", 3),
    ("only an old one: across both failovers", [EARLY], WAL, LATEST, {}, "a", 3),
    ("a place between two", ALL, WAL, lsn(13.9), {}, "b", 3),
    ("a snapshot's WAL must be before the target", ALL, WAL, lsn(12.5), {}, "a", 3),
    ("a moment", ALL, WAL, time(2.9), {}, "b", 3),
    ("a snapshot's end must be before the moment", ALL, WAL, time(1.99), {}, "a", 3),
    ("a name may be anywhere: from the oldest", ALL, WAL, name(), {}, "a", 3),
    ("a name, and a snapshot that was named", ALL, WAL, name(), {"snapshot": LATE.id}, "c", 3),
    ("one that failed its restore test is passed over", [EARLY, ON_TWO, FAILED], WAL, LATEST, {}, "b", 3),
    ("unless it was asked for", [EARLY, FAILED], WAL, LATEST, {"snapshot": FAILED.id}, "c", 3),
    ("or there is no other", [FAILED], WAL, LATEST, {}, "c", 3),
    ("damaged pages, too", [EARLY, replace(LATE, damaged_pages=True)], WAL, name(), {}, "a", 3),
    ("also without WAL", [EARLY, FAILED], WAL, Target(TargetKind.SNAPSHOT), {}, "a", 1),
    ("an orphan is on nobody's line", [*ALL, ORPHAN], WAL, LATEST, {"timeline": 2}, "b", 2),
    ("the end of an older timeline", ALL, WAL, LATEST, {"timeline": 1}, "a", 1),
    ("only the snapshot, whatever is archived", ALL, frozenset(), Target(TargetKind.SNAPSHOT), {}, "c", 3),
    ("no WAL after the snapshot is said, not refused", [LATE], frozenset({Segment(3, 1)}), LATEST, {}, "c", 3),
]


@pytest.mark.parametrize(
    ("story", "snapshots", "wal", "target", "given", "expected", "timeline"), STORIES, ids=[s[0] for s in STORIES]
)
def test_plan(
    story: str,
    snapshots: list[SnapshotRecord],
    wal: frozenset[Segment],
    target: Target,
    given: dict[str, object],
    expected: str,
    timeline: int,
) -> None:
    plan = plan_restore(snapshots, HISTORIES, wal, target, **given)  # type: ignore[arg-type]
    assert isinstance(plan, RestorePlan), plan
    assert (plan.snapshot.id[3], plan.timeline) == (expected, timeline)
    assert describe(plan)


REFUSED = [
    ("nothing was ever taken", [], WAL, LATEST, {}, "no snapshot"),
    ("an id that is not there", ALL, WAL, LATEST, {"snapshot": "vs_zzzzzzzzzzzzzzzz"}, "no snapshot vs_z"),
    ("a moment before everything", ALL, WAL, time(0.5), {}, "before the end of vs_a"),
    ("a place before everything", ALL, WAL, lsn(3.5), {}, "before the end of vs_a"),
    ("a place that was not archived yet", ALL, WAL, lsn(31), {}, "WAL ends at"),
    (
        "a gap hides what came after",
        [EARLY],
        WAL - {Segment(2, 15)},
        LATEST,
        {},
        "00000002000000000000000F is not archived",
    ),
    ("a place beyond a gap", [EARLY], WAL - {Segment(2, 15)}, lsn(18), {}, "WAL ends at"),
    ("a timeline without its history", ALL, WAL, LATEST, {"timeline": 9}, "history file of timeline 9"),
    ("a named one on another branch", [*ALL, ORPHAN], WAL, LATEST, {"snapshot": ORPHAN.id}, "not on the line"),
]


@pytest.mark.parametrize(("story", "snapshots", "wal", "target", "given", "why"), REFUSED, ids=[s[0] for s in REFUSED])
def test_refused(
    story: str,
    snapshots: list[SnapshotRecord],
    wal: frozenset[Segment],
    target: Target,
    given: dict[str, object],
    why: str,
) -> None:
    plan = plan_restore(snapshots, HISTORIES, wal, target, **given)  # type: ignore[arg-type]
    assert isinstance(plan, Refused)
    assert why in plan.why


def test_a_gap_before_the_moment_is_a_warning() -> None:
    plan = plan_restore([EARLY], HISTORIES, WAL - {Segment(2, 15)}, time(1.5))
    assert isinstance(plan, RestorePlan)
    assert any("gap" in w for w in plan.warnings)
    assert plan.last_segment == Segment(2, 14)


def test_a_branch_that_died_is_followed_only_when_named() -> None:
    wal = WAL | {Segment(4, 6), Segment(4, 7)}
    plan = plan_restore([EARLY], DEAD, wal, LATEST, timeline=4)
    assert isinstance(plan, RestorePlan)
    assert (plan.timeline, plan.last_segment) == (4, Segment(4, 7))
    assert isinstance(plan_restore([EARLY], DEAD, wal, LATEST, timeline=3), RestorePlan)


def test_what_was_seen_in_the_archive() -> None:
    """When one of these is not there any more, the WAL has not ended."""
    plan = plan_restore([EARLY], HISTORIES, WAL, LATEST, streamed={Segment(3, 30): 100})
    assert isinstance(plan, RestorePlan), plan
    assert all(plan.has(s) for s in (*WAL, Segment(3, 30)))
    assert not any(plan.has(s) for s in (Segment(1, 2), Segment(1, 10), Segment(3, 19), Segment(3, 31)))


def test_what_was_seen_and_is_gone_stops_a_recovery(tmp_path: Path) -> None:
    """Whole segments and those in pieces; what nobody has seen ends the WAL."""
    (tmp_path / "data" / "pg_wal").mkdir(parents=True)

    class Gone:
        def wal_pieces(self, name: str) -> Iterator[bytes]:
            raise ObjectMissing(f"{name} is not there")

        def stored(self, prefix: str) -> list[ObjectInfo]:
            return []

    fetcher = WalFetcher(
        cast(RepositoryPath, Gone()),
        tmp_path / "data",
        highest_timeline=1,
        segment_bytes=SEGMENT,
        owner=None,
        planned=lambda segment: segment.number == 5,
    )
    asked = [fetcher.handle(["get", Segment(1, n).name(SEGMENT), str(tmp_path / "data/pg_wal/x")]) for n in (4, 5)]
    fetcher.stop()
    assert asked[0] == "no" and asked[1].startswith("stop the repository failed during recovery: 0000"), asked
