"""Were reads from the read-only port answered, and how old was what they saw? Pure."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence

from chaos.history import Read, Verdict, Write

STALE_S = 10.0  # as long as a lease: afterwards nobody sends readers to a server that was cut off
GAP_S = 10.0


def staleness(reads: Sequence[Read], writes: Sequence[Write], path: str = "steady") -> float:
    """The age of the oldest acknowledged write of one client that a read which began later did not see. Seconds."""
    acknowledged = sorted((w.id, w.done) for w in writes if w.path == path and w.acknowledged)
    ids = [number for number, _ in acknowledged]
    worst = 0.0
    for read in reads:
        at = bisect_right(ids, read.newest)
        if read.ok and at < len(ids):
            worst = max(worst, read.invoked - acknowledged[at][1])
    return worst


def gap(reads: Sequence[Read]) -> float:
    """The longest time without an answer, from the first question to the end of the last. Seconds."""
    if not reads:
        return 0.0
    began, ended = min(read.invoked for read in reads), max(read.done for read in reads)
    times = [began, *sorted(read.done for read in reads if read.ok), ended]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def fresh_reads(
    reads: Sequence[Read], writes: Sequence[Write], *, gap_s: float = GAP_S, stale_s: float = STALE_S
) -> Verdict:
    """Answered again in time, and never older than the bound."""
    answered = [read for read in reads if read.ok]
    if not answered:
        return Verdict("reads", None, "nobody could read from the read-only port")
    oldest_s, longest_s = staleness(reads, writes), gap(reads)
    servers = len({read.server for read in answered})
    text = f"{len(answered)} reads from {servers} servers, at most {oldest_s:.2f} s old (bound {stale_s:g} s)"
    text += f", at most {longest_s:.2f} s without one (bound {gap_s:g} s)"
    return Verdict("reads", oldest_s <= stale_s and longest_s <= gap_s, text)
