"""One run: a cluster is founded, things go wrong, everything is mended, and it must be whole again."""

from __future__ import annotations

from dataclasses import replace

from cluster.model import Durability, NodeId, Phase, Spec
from postgres.instance import Data, Run
from tests.simulation.clients import Clients
from tests.simulation.faults import Faults
from tests.simulation.invariants import Checker
from tests.simulation.scenes import Scene, Stage
from tests.simulation.server import Ledger, names_of
from tests.simulation.sim_node import SimNode, member
from tests.simulation.sim_store import SimStore
from tests.simulation.world import World

FOUNDED_WITHIN_S = 40.0
WHOLE_WITHIN_S = 90.0
SWEEP_S = 0.5


class Simulation:
    def __init__(
        self,
        seed: int,
        *,
        trace: bool = False,
        size: int | None = None,
        spec: Spec | None = None,
        focus: tuple[str, ...] = (),
        scenes: tuple[Scene, ...] = (),
        busy: bool = False,
    ) -> None:
        """`focus`: faults that are to happen more often. `scenes`: what happens instead of what the dice choose.
        `busy`: clients write much more."""
        world = self.world = World(seed, trace=trace)
        dice = world.random
        size = size or dice.choices((2, 3, 4, 5), (6, 74, 6, 14))[0]
        if spec is None:
            durability = dice.choices((Durability.QUORUM, Durability.STRICT, Durability.ASYNC), (78, 14, 8))[0]
            spec = Spec(durability=durability, k=2 if size > 3 and dice.random() < 0.5 else 1)
        self.was_async = spec.durability is Durability.ASYNC
        self.ledger = Ledger(world)
        self.store = SimStore(world, spec)
        self.nodes: dict[NodeId, SimNode] = {}
        for number in range(1, size + 1):
            tags = {}
            if number > 1 and dice.random() < 0.08 and not scenes:
                tags = dice.choice(({"nofailover": True}, {"nosync": True}, {"priority": 0}, {"priority": 200}))
                if spec.durability is Durability.STRICT and "nosync" in tags:
                    tags = {}  # or nobody might be left to wait for
            node = SimNode(world, self.ledger, self.store, member(number, **tags))
            self.nodes[node.name] = node
        self.checker = Checker(self)
        for node in self.nodes.values():
            node.touched = self.checker.touched
        self.clients = Clients(world, self.ledger, lambda node: self.nodes[node].route)
        if busy or scenes:
            self.clients.every_s = 0.02
        self.faults = Faults(self, focus)
        self.stage = Stage(self, scenes)
        self.scenes = scenes
        self.ledger.happened = self.stage.happened
        self.ledger.wake = lambda node: self.nodes[node].wake(0.003)
        self.store.watchers.append(self._store_changed)
        world.say("seed", f"{seed}: {size} nodes, {spec.durability.value}, k {spec.k}")

    def _store_changed(self, kind: str) -> None:
        for node in self.nodes.values():
            node.store_changed()

    def _sweep(self) -> None:
        self.checker.sweep()
        self.world.after(SWEEP_S, self._sweep)

    # -- the run --------------------------------------------------------------------------------

    def run(self) -> Simulation:
        world = self.world
        for node in self.nodes.values():
            world.after(0.5 * world.random.random(), node.start_agent)
        self.clients.start()
        world.after(1.0, self._sweep)
        hasty = world.chance(0.1) and not self.scenes
        if not hasty:
            self._until_whole(FOUNDED_WITHIN_S, "founded")
        for_s = world.between(5.0, 25.0)
        if self.scenes:
            for_s = 25.0
            self.stage.open = True
            self.clients.longest_gap_s = 0.0
            self.stage.happened("start")
        else:
            self.faults.schedule(0.5, for_s, world.random.randint(1, 7))
        world.run(world.now + for_s + world.between(0.0, 6.0))
        world.say("****", "everything is mended")
        self.faults.mend_all()
        self._until_whole(WHOLE_WITHIN_S, "whole again")
        return self

    def _until_whole(self, within_s: float, what: str) -> None:
        end = self.world.now + within_s
        while True:
            self.world.run(self.world.now + 0.5)
            lacking = self.lacking()
            if not lacking:
                return
            if self.world.now > end:
                self.world.violated(f"not {what} within {within_s:g} s: {lacking}")

    def lacking(self) -> str:
        """What the cluster still lacks to be whole; "" when it is."""
        view = self.store.view
        if view is None or view.phase is not Phase.OPEN or view.primary is None:
            return f"no open primary ({view.phase.value + ': ' + view.why if view else 'no view'})"
        if len(view.rules) != 1:
            return "the rule is being changed"
        primary = self.ledger.servers[view.primary]
        if not primary.writable or not primary.gate_open or primary.acting_term != view.term:
            return f"{view.primary} does not serve clients"
        voters = set()
        for node in self.nodes.values():
            if view.member(node.name) is None:
                return f"{node.name} is not a member"
            if node.name == view.primary:
                continue
            server = node.server
            if not node.member.nosync:
                voters.add(node.name)
            if server.data is not Data.PRESENT or server.state is not Run.UP or server.receiver is None:
                return f"{node.name} does not stream ({server.stream_problem or server.state.value})"
            if server.receiver.above is not primary or not server.receiver.streaming or not server.gate_open:
                return f"{node.name} does not follow {view.primary}, or lets no readers in"
            behind = len(primary.wal) - len(server.wal)
            if behind > 20 or server.wal != primary.wal[: len(server.wal)]:
                return f"{node.name} does not have what {view.primary} has"
            if node.keeper is None or node.keeper.words is None:
                return f"{node.name} has not looked"
        spec = self.store.spec
        rule = view.rules[0]
        if spec.durability is not Durability.ASYNC and (rule.voters != voters or rule.k != min(spec.k, len(voters))):
            return f"the rule is {rule}, not of all of {sorted(voters)}"
        if not primary.demonstrably(names_of(rule)):
            return "the rule is not applied"
        if self.clients.last_acknowledged_at < self.world.now - 2.0:
            return "no write was acknowledged lately"
        if any(not request.outcome for request in self.store.requests.values()):
            return "a request is unanswered"
        return ""


def run_seed(seed: int, *, trace: bool = False) -> Simulation:
    """Run one seed. Raises Violation; any other exception is a bug in the code under test or in the model."""
    return Simulation(seed, trace=trace).run()


__all__ = ["Simulation", "replace", "run_seed"]
