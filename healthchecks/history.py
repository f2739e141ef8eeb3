"""Failovers and switchovers as counters, and how long each phase of one took.

The counters come from the cluster's history, so every node tells the same. The phases are timed here, by this node's
own clock, from the changes of the view that it was woken for: a node that was away has seen none and counts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram

from cluster.model import Event, Phase, Snapshot

BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CAUSES = ("failover", "switchover")  # kinds of events that begin a change of primary
REASONS = (  # the first words that occur in the text of the cause, and the reason that is counted
    ("asked for by", "operator"),
    ("has not come back", "restart_failed"),
    ("died", "postgres_died"),
    ("crash", "postgres_died"),
    ("refused", "postgres_refused"),
    ("hung", "postgres_silent"),
    ("no answer", "no_answer"),
    ("not answer", "postgres_silent"),
    ("promoted", "promotion_failed"),
    ("promised", "superseded"),
    ("went away", "node_lost"),
    ("volume", "disk"),
    ("disk", "disk"),
    ("fsync", "disk"),
    ("flush", "disk"),
)
PHASE_HELP = "Seconds a phase of a change of primary took, as this node saw it"


def reason(event: Event | None) -> str:
    """A bounded label for the free words of an event."""
    if event is None:
        return "other"
    if event.kind == "switchover":
        return "operator"
    text = event.text.lower()
    return next((name for words, name in REASONS if words in text), "other")


class History:
    """Counts each event once, however often the history is read."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counted = 1  # the first term has no change of primary before it
        self.counts: Counter[tuple[str, str]] = Counter()
        self.last_at: float | None = None  # wall clock of whoever wrote it
        self.term_read = -1
        self._phase: tuple[int, Phase] | None = None
        self._since = 0.0
        self._left_open_at: float | None = None
        labels = ("cluster", "node", "phase")
        self._seconds = Histogram(
            "flypg_failover_phase_seconds", PHASE_HELP, labels, buckets=BUCKETS, registry=registry
        )

    def count(self, events: Iterable[Event]) -> None:
        """Count the terms that were opened since the last call. `events`: oldest first, a part of the history."""
        cause: Event | None = None
        for event in events:
            if event.kind in CAUSES:
                cause = event
            if event.kind != "open":
                continue
            if event.term > self._counted:
                self._counted = event.term
                self.counts[cause.kind if cause is not None else "failover", reason(cause)] += 1
                self.last_at = event.at
            cause = None

    def observe(self, snapshot: Snapshot | None, now: float, cluster: str, node: str) -> None:
        """Note the phase of the view at `now` (seconds of a monotonic clock)."""
        view = snapshot.view if snapshot is not None else None
        if view is None:
            return
        current = (view.term, view.phase)
        before, self._phase = self._phase, current
        if before == current:
            return
        if before is not None:
            if before[1] in (Phase.REVOKING, Phase.PROMOTING):
                self._seconds.labels(cluster, node, str(before[1])).observe(now - self._since)
            elif before[1] is Phase.OPEN:
                self._left_open_at = now
            if view.phase is Phase.OPEN and self._left_open_at is not None:
                self._seconds.labels(cluster, node, "all").observe(now - self._left_open_at)
                self._left_open_at = None
        self._since = now
