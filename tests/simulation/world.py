"""Virtual time, processes that can be frozen or killed, and the network between nodes. One seed gives one run.

Theory of operation. Everything that happens is a callback in one heap, ordered by virtual time. The coroutines of the
real code are driven by hand: each simulated await yields a number of seconds, and the scheduler resumes the coroutine
that much later, unless its process was killed meanwhile (the coroutine is closed: all it knew is lost) or is frozen (it
goes on when it is thawed, while time has gone on without it).
"""

from __future__ import annotations

import heapq
import random
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from cluster.errors import FlypgError

STORE = "etcd"  # the network's name for the store


@types.coroutine
def sleep(delay_s: float) -> Generator[float, None, None]:
    """A point at which everything else may happen: go on `delay_s` later, or never."""
    yield delay_s


class Violation(AssertionError):
    """An invariant of docs/protocol.md does not hold."""


class Ice:
    """Something that can be frozen: what should happen to it meanwhile happens when it is thawed."""

    __slots__ = ("depth", "parked", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.depth = 0
        self.parked: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def freeze(self) -> None:
        self.depth += 1

    def thaw(self) -> None:
        self.depth -= 1
        if self.depth == 0:
            parked, self.parked = self.parked, []
            for function, arguments in parked:
                self.world.after(0.0, self.call, function, *arguments)

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        if self.depth:
            self.parked.append((function, arguments))
        else:
            function(*arguments)

    def melt(self) -> None:
        """It ended: nothing that waited for it will happen."""
        self.parked.clear()


class Process:
    """One run of an agent. Its coroutines end with it."""

    __slots__ = ("alive", "ice", "tasks", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.ice = Ice(world)
        self.tasks: dict[Task, None] = {}

    def kill(self) -> None:
        self.alive = False
        self.ice.melt()
        for task in list(self.tasks):
            task.coroutine.close()
        self.tasks.clear()


class Task:
    """A coroutine of a process; `ended` is called with the error of the outside world that ended it, or None."""

    __slots__ = ("coroutine", "ended", "process")

    def __init__(
        self, process: Process, coroutine: Coroutine[Any, Any, Any], ended: Callable[[FlypgError | None, Any], None]
    ) -> None:
        self.process = process
        self.coroutine = coroutine
        self.ended = ended
        process.tasks[self] = None

    def resume(self) -> None:
        process = self.process
        if not process.alive:
            return
        if process.ice.depth:
            process.ice.parked.append((self.resume, ()))
            return
        error: FlypgError | None = None
        result = None
        try:
            delay = self.coroutine.send(None)
        except StopIteration as stop:
            result = stop.value
        except FlypgError as caught:  # the world misbehaved; a bug is not caught and ends the run
            error = caught
        else:
            process.world.after(delay, self.resume)
            return
        process.tasks.pop(self, None)
        self.ended(error, result)


class World:
    """The clock, the dice, the heap of what is to happen, and who can talk to whom."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.tracing = trace
        self.trace: list[str] = []
        self.cuts: set[frozenset[str]] = set()
        self.gone: set[str] = set()  # machines that are off
        self.slow = 0.02  # share of messages that are late
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0
        self.events = 0

    def after(self, delay_s: float, function: Callable[..., Any], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, function, arguments))

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let things happen until `until`, or until `stop` says so after one of them (then True)."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            at, _, function, arguments = heapq.heappop(heap)
            self.now = at
            self.events += 1
            function(*arguments)
            if stop is not None and stop():
                return True
        self.now = max(self.now, until)
        return False

    def say(self, who: str, text: str) -> None:
        if self.tracing:
            self.trace.append(f"{self.now:9.4f} {who:4} {text}")

    def violated(self, text: str) -> None:
        self.say("!!!!", text)
        raise Violation(f"seed {self.seed} at {self.now:.3f} s: {text}")

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()

    def latency(self) -> float:
        """Seconds a message takes: usually a millisecond or so, now and then much longer."""
        dice = self.random.random()
        return 0.02 + dice * 10 if dice < self.slow else 0.0003 + 0.002 * dice

    def talk(self, a: str, b: str) -> bool:
        """Does a packet from `a` arrive at `b` now?"""
        if a == b:
            return a not in self.gone
        if self.gone and (a in self.gone or b in self.gone):
            return False
        return not self.cuts or frozenset((a, b)) not in self.cuts

    def cut(self, a: str, b: str) -> None:
        self.cuts.add(frozenset((a, b)))

    def join(self, a: str, b: str) -> None:
        self.cuts.discard(frozenset((a, b)))


class SimClock:
    """A node's clocks: its own origin, so that comparing two nodes' times shows."""

    __slots__ = ("offset", "world")

    def __init__(self, world: World, offset: float) -> None:
        self.world = world
        self.offset = offset

    def boottime(self) -> float:
        return self.world.now + self.offset

    def wall(self) -> float:
        return 1.7e9 + self.world.now
