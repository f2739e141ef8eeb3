"""When a disk counts as hung: looks every quarter of a second at a server whose disk does this or that."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from postgres.flushing import STALLED_S, STUCK_AFTER_S, STUCK_EVERY_S, WALWRITER, Flushing

LOOK_S = 0.25
NOBODY: frozenset[int] = frozenset()
ONE, OTHER = frozenset({71}), frozenset({72})

State = tuple[int, frozenset[int], int]  # flushed, who waits to write, inserted
Disk = Callable[[float], State]


def works(at: float) -> State:
    return int(at * 1000), NOBODY, int(at * 1000) + 300


def hangs(at: float) -> State:
    """At 5 s, under load."""
    return works(at) if at < 5 else (5000, ONE, 5300)


def hangs_after_idling(at: float) -> State:
    """Nothing is written for 20 s; then one commit waits."""
    return 5000, ONE if at >= 20 else NOBODY, 5000


def idles(at: float) -> State:
    return 5000, NOBODY, 5000


def crawls(at: float) -> State:
    """One flush takes three seconds."""
    return int(at / 3) * 3000, ONE, int(at / 3) * 3000 + 300


def waits_in_turn(at: float) -> State:
    """Different processes write data files and none waits for long; nothing is committed."""
    return 5000, ONE if int(at * 4) % 3 else OTHER, 5300


def asynchronous(at: float) -> State:
    """No client waits, since none is told: whole pages of WAL stay."""
    return works(at) if at < 5 else (5000, NOBODY, 5000 + 3 * 8192)


def comes_back(at: float) -> State:
    return hangs(at) if at < 12 else works(at)


# name, disk, since when it hangs, when that is known; None: never
STORIES: tuple[tuple[str, Disk, float, float | None], ...] = (
    ("works", works, 0, None),
    ("hangs under load", hangs, 5, STALLED_S + STUCK_EVERY_S),
    ("hangs after a long idle time: nobody knows since when", hangs_after_idling, 20, STALLED_S + STUCK_AFTER_S),
    ("idles", idles, 0, None),
    ("crawls, and gets on", crawls, 0, None),
    ("is busy with data files", waits_in_turn, 0, None),
    ("hangs, and no client waits", asynchronous, 5, STALLED_S + STUCK_EVERY_S),
    ("hangs for a while", comes_back, 5, STALLED_S + STUCK_EVERY_S),
)


@pytest.mark.parametrize(("disk", "since", "within"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES])
def test_a_disk(disk: Disk, since: float, within: float | None) -> None:
    known = [at for at, stalled in watched(disk) if stalled]
    if within is None:
        assert not known
        return
    assert since + STALLED_S - LOOK_S <= known[0] <= since + within + LOOK_S
    end = 12.0 if disk is comes_back else 60.0
    assert known == [at for at, _ in watched(disk) if known[0] <= at < end], "for as long as it hangs, and no longer"


def watched(disk: Disk) -> list[tuple[float, bool]]:
    flushing = Flushing()
    seen = []
    for step in range(240):
        at = step * LOOK_S
        flushed, waiting, inserted = disk(at)
        if flushing.asks(flushed, at):
            flushing.saw(waiting, inserted, at)
        seen.append((at, flushing.stalled))
    return seen


def test_an_idle_server_is_not_asked_at_each_look() -> None:
    flushing = Flushing()
    asked = 0
    for step in range(400):
        if flushing.asks(5000, step * LOOK_S):
            flushing.saw(NOBODY, 5000, step * LOOK_S)
            asked += 1
    assert asked <= 100 / STUCK_AFTER_S
    assert WALWRITER not in flushing.stuck
