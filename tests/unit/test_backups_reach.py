"""How far restores reach, where WAL is missing: a table of stories. A snapshot's WAL begins in its segment."""

from __future__ import annotations

import pytest

from backups.layout import Segment
from backups.upkeep import Hole, Reach, reach_of
from flypg.commands.backups import holes
from tests.support.memory import MemoryStore, path_on
from tests.support.snapshots import SEGMENT, record


def names(*numbers: int) -> list[str]:
    return [Segment(1, n).name(SEGMENT) for n in numbers]


# name, segments in which snapshots begin, segments archived: up to which one restores reach, gap, holes
STORIES: tuple[tuple[str, tuple[int, ...], tuple[int, ...], int, str, list[tuple[int, int]]], ...] = (
    ("everything", (1,), (1, 2, 3, 4), 5, "", []),
    ("the newest is not there yet", (1, 4), (1, 2, 3, 4), 5, "", []),
    ("a gap", (1,), (1, 2, 5, 6), 3, names(3)[0], []),
    ("a gap that a snapshot has closed", (1, 6), (1, 2, 5, 6, 7), 8, "", [(3, 7)]),
    ("a snapshot that begins in what is missing closes nothing", (1, 4), (1, 2, 3, 5, 6), 4, names(4)[0], []),
    ("one gap is closed, one is not", (1, 6), (1, 2, 5, 6, 7, 9), 8, names(8)[0], [(3, 7)]),
    ("two gaps are closed", (1, 6, 10), (1, 2, 5, 6, 7, 9, 10, 11, 12), 13, "", [(3, 7), (8, 11)]),
)


@pytest.mark.parametrize(
    ("snapshots", "archived", "until", "gap", "closed"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES]
)
def test_reach(
    snapshots: tuple[int, ...], archived: tuple[int, ...], until: int, gap: str, closed: list[tuple[int, int]]
) -> None:
    taken = [record(chr(65 + i), segment=s) for i, s in enumerate(snapshots)]
    found = reach_of(path_on(MemoryStore()), taken, names(*archived))
    assert found is not None
    assert (found.timeline, found.first_lsn, found.last_lsn) == (1, taken[0].stop_lsn, until * SEGMENT)
    assert found.gap == gap
    assert [(h.from_lsn, h.until_lsn) for h in found.holes] == [
        (first * SEGMENT, last * SEGMENT + 300) for first, last in closed
    ]


def test_a_hole_is_told_with_the_snapshot_after_it() -> None:
    hole = Hole(3 * SEGMENT, 7 * SEGMENT + 300, "000000010000000000000003", "vs_B")
    (line,) = holes(Reach(1, 0, 9 * SEGMENT, "", (hole,)))
    assert line == (
        "but not between 0/3000000 and 0/700012C: WAL from 000000010000000000000003 on is not archived,"
        " vs_B begins after it"
    )
