"""What retention keeps, as stories; and, over random histories, that every promised moment stays restorable."""

from __future__ import annotations

import random

import pytest

from backups.catalog import SnapshotRecord
from backups.layout import Segment
from backups.retention import GRACE_S, Keep, abandoned, needless_wal, retain
from tests.support.snapshots import DAY, SEGMENT, record

NOW = 100 * DAY
STORIES = [
    ("nothing to keep", [], Keep(), ""),
    ("all are young", [record("a", day=98), record("b", day=99)], Keep(window=False), "ab"),
    (
        "past five days they go",
        [record("a", day=90), record("b", day=96), record("c", day=99)],
        Keep(window=False),
        "bc",
    ),
    (
        "but two good ones stay, however old",
        [record(x, day=d) for x, d in zip("abc", (1, 2, 3), strict=True)],
        Keep(window=False),
        "bc",
    ),
    (
        "and the one before the window, so that all of it can be restored",
        [record("a", day=93), record("b", day=94), record("c", day=96), record("d", day=99)],
        Keep(),
        "bcd",
    ),
    (
        "a pinned one stays",
        [record("a", day=1, pinned=True), record("b", day=98), record("c", day=99)],
        Keep(window=False),
        "abc",
    ),
    (
        "a damaged one does not count as good",
        [record("a", day=1), record("b", day=2), record("c", day=3, damaged=True)],
        Keep(window=False),
        "ab",
    ),
    (
        "nor does one that failed its restore test",
        [record("a", day=1), record("b", day=2), record("c", day=3, verified=False)],
        Keep(window=False),
        "ab",
    ),
    (
        "the newest that was proven to restore stays",
        [record("a", day=1, verified=True), record("b", day=98), record("c", day=99)],
        Keep(window=False),
        "abc",
    ),
    (
        "one from the future stays: a clock was wrong",
        [record("a", day=98), record("b", day=99), record("c", day=200)],
        Keep(window=False, days=0.5),
        "bc",
    ),
]


@pytest.mark.parametrize(("story", "snapshots", "keep", "expected"), STORIES, ids=[s[0] for s in STORIES])
def test_retain(story: str, snapshots: list[SnapshotRecord], keep: Keep, expected: str) -> None:
    result = retain(snapshots, keep, NOW)
    assert "".join(s.id[3] for s in result.keep) == expected, result.reasons
    assert {*result.keep, *result.delete} == set(snapshots)
    assert not {*result.keep} & {*result.delete}


def names(*numbers: int, timeline: int = 1) -> list[str]:
    return [Segment(timeline, n).name() for n in numbers]


WAL_STORIES = [
    ("without snapshots all WAL stays", names(1, 2, 3), [], []),
    (
        "below the oldest start it goes",
        names(1, 2, 3, 4),
        [record("a", segment=3), record("b", segment=9)],
        names(1, 2),
    ),
    (
        "on every timeline",
        [*names(1), *names(2, 9, timeline=2)],
        [record("a", segment=3)],
        [*names(1), *names(2, timeline=2)],
    ),
    ("history files never", ["00000002.history", *names(1)], [record("a", segment=3)], names(1)),
    (
        "what belongs to a segment goes with it",
        [f"{names(1)[0]}.partial", f"{names(1)[0]}.00000028.backup", f"{names(3)[0]}.00000028.backup"],
        [record("a", segment=3)],
        [f"{names(1)[0]}.partial", f"{names(1)[0]}.00000028.backup"],
    ),
    (
        "a pinned snapshot keeps its own WAL, not all that followed",
        names(1, 2, 3, 4, 9),
        [record("a", segment=2, pinned=True), record("b", segment=9)],
        names(1, 4),
    ),
]


@pytest.mark.parametrize(("story", "wal", "kept", "expected"), WAL_STORIES, ids=[s[0] for s in WAL_STORIES])
def test_needless_wal(story: str, wal: list[str], kept: list[SnapshotRecord], expected: list[str]) -> None:
    assert needless_wal(wal, kept) == expected


@pytest.mark.parametrize("seed", range(200))
def test_every_moment_of_the_window_stays_restorable(seed: int) -> None:
    """Snapshots at random times, failures among them, a sweep after each: every moment of the last days is covered."""
    rng = random.Random(seed)
    keep = Keep(days=rng.uniform(1, 6), at_least=rng.randint(1, 3))
    snapshots: list[SnapshotRecord] = []
    wal: set[str] = set()
    now, segment, first = 10.0, 10, None
    for turn in range(40):
        now += rng.choice([0.2, 1.0, 1.0, 1.0, 4.0])
        wal |= set(names(*range(segment, segment + 5)))
        segment += 5
        if rng.random() < 0.8:
            new = record(
                chr(ord("A") + turn % 26) if turn < 26 else chr(ord("a") + turn - 26), day=now, segment=segment - 2
            )
            snapshots.append(new)
            first = first or new
            wal |= set(names(*range(segment, segment + 1)))
        result = retain(snapshots, keep, now * DAY)
        snapshots = list(result.keep)
        wal -= set(needless_wal(wal, snapshots))
        if first is None:
            continue
        begin = max(now - keep.days, first.finished_at / DAY)
        base = [s for s in snapshots if s.finished_at <= begin * DAY]
        assert base, f"nothing to restore day {begin} from, at day {now}"
        needed = names(*range(base[-1].start_lsn // SEGMENT, segment))
        assert not set(needed) - wal, f"WAL after {base[-1].id} was deleted"


def test_garbage_is_what_is_neither_listed_nor_young() -> None:
    parts = [("vs_old", 1.0), ("vs_old", 2.0), ("vs_listed", 1.0), ("vs_running", 1.0), ("vs_running", NOW - 5)]
    assert abandoned(parts, ["vs_listed"], NOW) == ["vs_old"]
    assert abandoned([("vs_x", NOW - GRACE_S + 1)], [], NOW) == []
