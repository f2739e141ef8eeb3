"""Is a node's history a prefix of the current one? Pure.

Every timeline was allocated to a term and is listed as a Branch with the point at which it left its parent. A position
on an ancestor of the current timeline is on the line when it is not beyond the point at which the line left that one.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.model import Branch, Position


def fork_of(branches: Sequence[Branch], timeline: int, current: int) -> int | None:
    """The LSN at which the line that leads to `current` left `timeline`; None when `timeline` is not on that line.

    The list of branches is bounded: a line older than it knows is taken as left where the oldest known branch began.
    """
    by_timeline = {b.timeline: b for b in branches}
    at = current
    while at != timeline:
        branch = by_timeline.get(at)
        if branch is None or branch.parent == 0:
            return None
        if branch.parent == timeline:
            return branch.fork
        at = branch.parent
    return None


def on_line(branches: Sequence[Branch], position: Position, current: int) -> bool:
    """May a node that stands at `position` follow the primary of timeline `current` as it is?"""
    if position.timeline == current:
        return True
    fork = fork_of(branches, position.timeline, current)
    return fork is not None and position.lsn <= fork
