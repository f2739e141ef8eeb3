"""One node of the simulation: its machine, its server, and the agent with the real keeper and the real sentinel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from agent.keeper import Keeper, KeeperConfig
from agent.steps import Plan
from cluster.errors import FlypgError
from cluster.model import Member, NodeId, Phase, Ports
from sentinel.turn import Sentinel
from tests.simulation.server import Ledger, Server
from tests.simulation.sim_postgres import SimDisk, SimInstance
from tests.simulation.sim_store import TTL_S, SimStore, StoreClient
from tests.simulation.watch import SimFence, SimWatch
from tests.simulation.world import Process, SimClock, Task, World

TICK_S = 1.0
MARGIN_S = 2.0
RENEW_S = 3.0
LEAD_S = 1.5
LOG = logging.getLogger("simulation")
LOG.disabled = True


class TraceLog(logging.Logger):
    """Puts the real code's log lines into the trace of the run."""

    def __init__(self, world: World, node: str) -> None:
        super().__init__(node)
        self.world = world
        self.node = node

    def isEnabledFor(self, level: int) -> bool:
        return self.world.tracing

    def _log(self, level: int, msg: object, args: Any, extra: Any = None, **_: Any) -> None:  # type: ignore[override]
        self.world.say(self.node, f"{msg}: " + ", ".join(f"{v}" for v in (extra or {}).values()))


class SimNode:
    def __init__(self, world: World, ledger: Ledger, store: SimStore, member: Member) -> None:
        self.world = world
        self.ledger = ledger
        self.store = store
        self.member = member
        self.name: NodeId = member.node
        self.clock = SimClock(world, world.between(0.0, 1e6))
        self.server = Server(world, ledger, self.name)
        self.disk = SimDisk(world)
        self.fence = SimFence(world, self.server, self.clock)
        self.up = True  # the machine
        self.frozen = False  # the machine
        self.agent_frozen = False
        self.restart_agent = True  # is it started again when it is killed
        self.slow_copy = 1.0
        self.life = 0
        self.process: Process | None = None
        self.keeper: Keeper | None = None
        self.sentinel: Sentinel | None = None
        self.client: StoreClient | None = None
        self.watch: SimWatch | None = None
        self.route: NodeId | None = None  # where this node's HAProxy sends clients
        self.busy = False
        self.woken = False
        self.thawed_at = 0.0
        self.disturbed_at = 0.0  # when something last happened to this node from outside
        self._turn_number = 0
        self._next_at = 0.0
        self.touched: Callable[[SimNode, str], None] = lambda node, what: None
        self.fence.fired = lambda: self.wake(0.01)

    # -- life -----------------------------------------------------------------------------------

    def start_agent(self) -> None:
        if not self.up or (self.process is not None and self.process.alive):
            return
        self.life += 1
        self.agent_frozen = False
        process = self.process = Process(self.world)
        if self.frozen:
            process.ice.freeze()
        log = TraceLog(self.world, self.name) if self.world.tracing else LOG
        self.client = StoreClient(self.store, self.name, f"{self.name}#{self.life}", self.clock)
        instance = SimInstance(self.server, self.clock, lambda what: self.touched(self, what))
        instance.slow_copy = self.slow_copy
        self.watch = SimWatch(self.world, self.ledger, self.name)
        self.keeper = Keeper(
            store=self.client,
            lease=self.client,
            instance=instance,
            disk=self.disk,
            clock=self.clock,
            member=self.member,
            watch=self.watch,
            fence=self.fence,
            log=log,
            config=KeeperConfig(ttl_s=TTL_S, margin_s=MARGIN_S, run=f"{self.name}#{self.life}"),
        )
        self.sentinel = Sentinel(self.client, self.clock, self.name, log)
        self.busy = self.woken = False
        self.fence.inherited = self.life > 1
        self.world.say(self.name, f"agent {self.life} starts")
        self._renew(process)
        self._lead(process)
        self._schedule(process, 0.01, anew=True)

    def kill_agent(self) -> None:
        if self.process is not None and self.process.alive:
            self.world.say(self.name, "agent killed")
            self.process.kill()
            self._turn_number += 1
            job = self.server.job
            if job is not None and job.running:  # a program of the agent's: it ends with it
                self.server.job = None

    def power_off(self) -> None:
        """The machine is lost: everything that ran on it, and what was not on its disk."""
        if not self.up:
            return
        self.world.say(self.name, "machine lost")
        self.up = False
        self.world.gone.add(self.name)
        self.thaw()
        self.kill_agent()
        self.server.halt(asked=False, silent=True)
        self.server.job = None
        self.fence.disarm()
        self.disk.machine_crashed()
        self.route = None
        self.ledger.disturbed()

    def power_on(self) -> None:
        if self.up:
            return
        self.world.say(self.name, "machine boots")
        self.up = True
        self.world.gone.discard(self.name)
        self.clock.offset = -self.world.now + self.world.between(0.0, 20.0)
        self.server.died = False
        self.ledger.disturbed()
        self.world.after(self.world.between(0.1, 1.0), self.start_agent)

    def freeze(self) -> None:
        if self.up and not self.frozen:
            self.world.say(self.name, "machine frozen")
            self.frozen = True
            for ice in self._ices():
                ice.freeze()
            self.ledger.disturbed()

    def thaw(self) -> None:
        if self.frozen:
            self.world.say(self.name, "machine goes on")
            self.frozen = False
            self.disturbed_at = self.thawed_at = self.world.now
            ices = self._ices()
            self.world.random.shuffle(ices)
            for ice in ices:
                ice.thaw()
            self.ledger.disturbed()

    def _ices(self) -> list[Any]:
        ices = [self.server.ice, self.fence.ice]
        if self.process is not None and self.process.alive:
            ices.append(self.process.ice)
        return ices

    def freeze_agent(self) -> None:
        if self.process is not None and self.process.alive and not self.agent_frozen:
            self.world.say(self.name, "agent frozen")
            self.agent_frozen = True
            self.process.ice.freeze()

    def thaw_agent(self) -> None:
        if self.agent_frozen and self.process is not None and self.process.alive:
            self.world.say(self.name, "agent goes on")
            self.thawed_at = self.world.now
            self.process.ice.thaw()
        self.agent_frozen = False

    @property
    def attentive(self) -> bool:
        """Does its agent run, and reach the store?"""
        return (
            self.up
            and not self.frozen
            and not self.agent_frozen
            and self.process is not None
            and self.process.alive
            and not self.store.down
            and self.world.talk(self.name, "etcd")
        )

    # -- the agent's loops ----------------------------------------------------------------------

    def _renew(self, process: Process) -> None:
        if process.alive and self.keeper is not None:
            Task(process, self.keeper.renew(), lambda error, _: self._renewed(process, error)).resume()

    def _renewed(self, process: Process, error: FlypgError | None) -> None:
        if error is None:
            self.world.after(RENEW_S, process.ice.call, self._renew, process)
        else:
            self.world.after(0.3, process.ice.call, self._renew, process)

    def _lead(self, process: Process) -> None:
        """Renew the lead while there is one."""
        if not process.alive or self.sentinel is None or self.client is None:
            return
        self.world.after(LEAD_S, process.ice.call, self._lead, process)
        if self.sentinel.leadership is not None:
            Task(process, self.client.keep_leadership(), lambda error, kept: None).resume()

    def store_changed(self) -> None:
        """The watch on the store: an event travels to this agent, unless it cannot."""
        process, client = self.process, self.client
        if process is not None and process.alive and client is not None and client.reachable():
            self.world.after(self.world.latency(), process.ice.call, self._event, process)

    def _event(self, process: Process) -> None:
        if process.alive and self.client is not None:
            self.client.dirty = True
            self.wake(0.001)

    def wake(self, delay_s: float) -> None:
        """Something the agent watches has changed."""
        process = self.process
        if process is None or not process.alive:
            return
        if self.busy:
            self.woken = True
        else:
            self._schedule(process, delay_s)

    def _schedule(self, process: Process, delay_s: float, *, anew: bool = False) -> None:
        at = self.world.now + delay_s
        if anew or at < self._next_at:
            self._next_at = at
            self._turn_number += 1
            self.world.after(delay_s, process.ice.call, self._turn, process, self._turn_number)

    def _turn(self, process: Process, number: int) -> None:
        if not process.alive or self.busy or number != self._turn_number:
            return
        assert self.keeper is not None
        self.busy, self.woken = True, False
        self._next_at = float("inf")
        Task(process, self._both(), lambda error, again: self._turned(process, error, again)).resume()

    async def _both(self) -> bool:
        keeper, sentinel = self.keeper, self.sentinel
        assert keeper is not None and sentinel is not None
        try:
            plan: Plan = await keeper.turn()
            again = plan.step is not None or plan.soon
        except FlypgError as error:
            self.world.say(self.name, f"turn failed: {error}")
            again = False
        if keeper.snap is not None and keeper.fresh:
            view = keeper.snap.view
            self.route = view.primary if view is not None and view.phase is Phase.OPEN else None
        if keeper.fresh and await sentinel.turn(None):
            again = True
        return again

    def _turned(self, process: Process, error: FlypgError | None, again: bool | None) -> None:
        if not process.alive:
            return
        if error is not None:
            self.world.say(self.name, f"sentinel's turn failed: {error}")
        self.busy = False
        if again or self.woken:
            delay = 0.005
        elif error is not None or (self.watch is not None and self.watch.undecided):
            delay = 0.2
        else:
            delay = TICK_S * (0.5 + 0.5 * self.world.random.random())
        self._schedule(process, delay, anew=True)


def member(number: int, **tags: Any) -> Member:
    name = NodeId(f"n{number}")
    return Member(name, name, Ports(), **tags)
