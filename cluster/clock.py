"""The clocks flypg reads, behind one interface so that a simulation can stand in for them."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks. Differences of `boottime` decide; `wall` is only ever shown to people."""

    def boottime(self) -> float:
        """Seconds since some fixed point, counting on while the machine sleeps (CLOCK_BOOTTIME)."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, for log lines and events; never compared with another node's."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()
