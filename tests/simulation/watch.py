"""What a node gets when it asks the primary, and the fence beside its keeper: models of two small programs."""

from __future__ import annotations

from collections.abc import Callable

from cluster.model import Answer, NodeId, Upstream
from postgres.instance import Run
from tests.simulation.server import Ledger, Server
from tests.simulation.world import Ice, SimClock, World

SUSPECT_AFTER_S = 1.0
FOREVER = float("inf")


class SimWatch:
    """One node's watch of its primary: refused at once, silent only after a while without any answer."""

    def __init__(self, world: World, ledger: Ledger, me: NodeId) -> None:
        self.world = world
        self.ledger = ledger
        self.me = me
        self._target: Upstream | None = None
        self._answer = Answer.UNKNOWN
        self._silent_since: float | None = None

    def target(self, upstream: Upstream | None) -> None:
        if upstream != self._target:
            self._target, self._answer, self._silent_since = upstream, Answer.UNKNOWN, None

    def answer(self) -> Answer:
        if self._target is None:
            return Answer.UNKNOWN
        raw = self._raw(self.ledger.servers[self._target.host])
        if raw is Answer.SILENT:
            if self._silent_since is None:
                self._silent_since = self.world.now
            if self.world.now - self._silent_since < SUSPECT_AFTER_S:
                return self._answer
        else:
            self._silent_since = None
        if raw is not self._answer:
            self.world.say(self.me, f"finds {self._target.node} {raw.value}")
            self._answer = raw
        return raw

    def _raw(self, server: Server) -> Answer:
        if not self.world.talk(self.me, server.node) or server.ice.depth:
            return Answer.SILENT
        if server.state is Run.DOWN or server.stopping:
            return Answer.REFUSED
        return Answer.OK

    @property
    def undecided(self) -> bool:
        """Will its answer change by itself in a moment?"""
        return self._silent_since is not None and self._answer is not Answer.SILENT


class SimFence:
    """Stops a PostgreSQL that is primary once its authority has run out, whatever became of the keeper."""

    def __init__(self, world: World, server: Server, clock: SimClock) -> None:
        self.world = world
        self.server = server
        self.clock = clock
        self.ice = Ice(world)
        self.until = FOREVER
        self.inherited = False  # from an agent that has died
        self._checking = False
        self.fired: Callable[[], None] = lambda: None

    def arm(self, until: float) -> None:
        self.until, self.inherited = until, False
        self._later()

    def disarm(self) -> None:
        self.until, self.inherited = FOREVER, False

    def _later(self) -> None:
        if self.until != FOREVER and not self._checking:
            self._checking = True
            delay = max(self.until - self.clock.boottime(), 0.0) + 0.02
            self.world.after(delay, self.ice.call, self._check)

    def _check(self) -> None:
        self._checking = False
        if self.until == FOREVER:
            return
        if self.clock.boottime() < self.until:
            self._later()
        elif self.server.state is not Run.DOWN and not self.server.recovery:
            self.world.say(self.server.node, "the fence stops it: authority has run out")
            self.server.halt(asked=False)
            self.fired()
        else:
            self._checking = True
            self.world.after(0.5, self.ice.call, self._check)
