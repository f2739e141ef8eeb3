"""Where the time of a failover went, and what role each node had when. Pure.

Moments are when a change became visible in etcd, on the clock that the clients used too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chaos.history import NEVER, Write
from cluster.model import NodeReport, Phase, Promise, View

NAMES = ("detect", "revoke", "choose", "promote", "open", "route")


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of each part of the first failover after a fault; None: it did not come to that."""

    term: int
    primary: str
    cause: str
    lengths: tuple[float | None, ...]  # as NAMES

    def named(self) -> dict[str, float | None]:
        return dict(zip(NAMES, self.lengths, strict=True))


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of time in which something stayed the same."""

    name: str  # a node
    began: float
    ended: float
    what: str  # e.g. "primary"
    term: int = 0


def failovers(views: Sequence[tuple[float, View]], *, since: float) -> list[tuple[float, View]]:
    """The first view of every term that was opened after `since`."""
    found: list[tuple[float, View]] = []
    last = max((view.term for at, view in views if at < since), default=0)
    for at, view in views:
        if at >= since and view.term > last:
            found.append((at, view))
            last = view.term
    return found


def phases(
    views: Sequence[tuple[float, View]],
    promises: Sequence[tuple[float, Promise]],
    reports: Sequence[tuple[float, NodeReport]],
    writes: Sequence[Write],
    *,
    fault: float,
) -> Phases | None:
    """The parts of the first failover after `fault`; None when there was none."""
    opened = failovers(views, since=fault)
    if not opened:
        return None
    revoking, first = opened[0]
    term = first.term
    of_term = [(at, view) for at, view in views if view.term == term and at >= revoking]
    chosen = _first(at for at, view in of_term if view.phase in (Phase.PROMOTING, Phase.OPEN))
    chosen_view = next((view for _, view in of_term if view.phase in (Phase.PROMOTING, Phase.OPEN)), first)
    given = [at for at, promise in promises if promise.term == term and (chosen is None or at <= chosen)]
    last_promise = max(given, default=None)
    promoted = _first(
        at for at, report in reports if report.node == chosen_view.primary and report.barrier_term == term
    )
    is_open = _first(at for at, view in of_term if view.phase is Phase.OPEN)
    routed = _first(w.done for w in writes if w.acknowledged and is_open is not None and w.done >= is_open)
    moments = [fault, revoking, last_promise, chosen, promoted, is_open, routed]
    lengths = []
    previous: float | None = fault
    for moment in moments[1:]:
        lengths.append(max(0.0, moment - previous) if moment is not None and previous is not None else None)
        previous = moment if moment is not None else previous
    return Phases(term, chosen_view.primary or "", first.cause, tuple(lengths))


def _first(moments: Iterable[float]) -> float | None:
    return min(moments, default=None)


def roles(reports: Sequence[tuple[float, NodeReport]], *, began: float, ended: float) -> list[Band]:
    """What each node said of itself, as bands of time."""
    bands: list[Band] = []
    open_bands: dict[str, Band] = {}
    for at, report in sorted(reports, key=lambda item: item[0]):
        node, what = str(report.node), report.state.value
        if report.state.value == "standby" and not report.streaming:
            what = "standby, not streaming"
        current = open_bands.get(node)
        if current is not None and (current.what, current.term) == (what, report.term):
            continue
        if current is not None:
            bands.append(Band(node, current.began, at, current.what, current.term))
        open_bands[node] = Band(node, at, NEVER, what, report.term)
    bands.extend(open_bands.values())
    clipped = [Band(b.name, max(b.began, began), min(b.ended, ended), b.what, b.term) for b in bands]
    return sorted((b for b in clipped if b.began < b.ended), key=lambda b: (b.name, b.began))
