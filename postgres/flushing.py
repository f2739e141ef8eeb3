"""Does what is written still reach the disk? Judged from what one look after the other shows. Pure.

Nothing says that a disk hangs: reads go on, and whoever writes waits, as on a slow disk. What tells them apart is that
for seconds no WAL at all is flushed while the same process waits to write, or whole pages of WAL do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STALLED_S = 3.5  # writes that have waited for so long will not come through soon; a failover takes half a second
STUCK_AFTER_S = 1.5  # nothing was flushed for so long: who waits to write?
STUCK_EVERY_S = 0.5  # how often that is asked while somebody does
WAL_PAGE = 8192
WALWRITER = 0  # stands for it among the pids: it takes whole pages within a fraction of a second


@dataclass(slots=True)
class Flushing:
    """Of one postmaster. Positions are WAL positions in bytes, times seconds of one monotonic clock."""

    flushed: int = 0
    flushed_since: float = 0.0
    stuck: dict[int, float] = field(default_factory=dict)  # who waits to write, and since when, while none is flushed
    asked_at: float = 0.0  # when that was last asked
    stalled: bool = False

    def asks(self, flushed: int, now: float) -> bool:
        """Note how far WAL is flushed. True: it is time to ask who waits to write, and to tell `saw`."""
        if flushed != self.flushed:
            self.flushed, self.flushed_since, self.stuck, self.stalled = flushed, now, {}, False
        every_s = STUCK_EVERY_S if self.stuck else STUCK_AFTER_S
        return now - self.flushed_since >= STUCK_AFTER_S and now - self.asked_at >= every_s

    def saw(self, waiting: frozenset[int], inserted: int, now: float) -> None:
        """`waiting`: pids that wait to write. `inserted`: the end of all WAL, flushed or not."""
        self.asked_at = now
        if inserted // WAL_PAGE * WAL_PAGE > self.flushed + WAL_PAGE:
            waiting |= {WALWRITER}
        # of a server that was idle, nobody knows for how long before now it has waited
        idle = now - self.flushed_since >= 2 * STUCK_AFTER_S
        self.stuck = {pid: self.stuck.get(pid, now if idle else self.flushed_since) for pid in waiting}
        self.stalled = now - min(self.stuck.values(), default=now) >= STALLED_S
