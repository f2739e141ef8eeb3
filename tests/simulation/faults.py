"""What goes wrong, and what operators do, as the dice of the seed choose. Everything is mended at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.model import Disk, Durability, NodeId, Phase, Request, RequestKind, View
from postgres.instance import Data
from tests.simulation.world import STORE

if TYPE_CHECKING:
    from tests.simulation.sim import Simulation
    from tests.simulation.sim_node import SimNode

Mend = Callable[[], None]


def nothing() -> None:
    """A fault that ends by itself."""


class Faults:
    """Breaks things for a while. Each fault is begun, and mended some seconds later by what `begin` gave back."""

    def __init__(self, sim: Simulation, focus: tuple[str, ...] = ()) -> None:
        self.sim = sim
        self.world = sim.world
        self.random = sim.world.random
        self.mends: list[Mend] = []
        self.wiped = False
        self.active = False
        self.asked = 0
        self.kinds: list[tuple[int, Callable[[SimNode], Mend]]] = [
            (10, self.kill_postgres),
            (6, self.freeze_postgres),
            (8, self.power),
            (4, self.blink),
            (7, self.kill_agent),
            (6, self.freeze_agent),
            (7, self.freeze),
            (7, self.cut_pair),
            (4, self.cut_from_primary),
            (7, self.isolate),
            (5, self.cut_from_nodes),
            (7, self.cut_from_store),
            (5, self.store_outage),
            (4, self.store_flaky),
            (3, self.disk_full),
            (2, self.flush_stalled),
            (3, self.recycle_wal),
            (7, self.stuck),
            (3, self.misroute),
            (3, self.slow_network),
            (3, self.slow_copy),
            (8, self.switchover),
            (4, self.failover),
            (3, self.restart),
            (3, self.reclone),
            (2, self.remove),
            (3, self.change_spec),
            (2, self.pause),
            (2, self.wipe),
            (3, self.kill_all_postgres),
        ]
        if focus:
            self.kinds = [(50 if begin.__name__ in focus else weight, begin) for weight, begin in self.kinds]

    def aftershock(self, view: View) -> None:
        """Misfortunes love company: what goes wrong while a change is under way is what the protocol must survive."""
        if self.active and (view.phase is not Phase.OPEN or len(view.rules) > 1) and self.world.chance(0.2):
            self.world.after(self.world.between(0.0, 0.3), self.strike)

    def schedule(self, first_s: float, last_s: float, count: int) -> None:
        self.active = True
        for _ in range(count):
            at = self.world.between(first_s, last_s)
            times = 2 if self.world.chance(0.3) else 1
            for _ in range(times):
                self.world.after(at + 0.5 * (times - 1) * self.random.random(), self.strike)

    def strike(self) -> None:
        if not self.active:
            return
        kinds = self.kinds
        begin = self.random.choices([k for _, k in kinds], [w for w, _ in kinds])[0]
        node = self.pick()
        for_s = self.random.choice((0.3, 1.0, 2.0, 4.0, 8.0, 13.0)) * (0.5 + self.random.random())
        self.strike_with(begin, node, for_s)

    def strike_with(self, begin: Callable[[SimNode], Mend], node: SimNode, for_s: float) -> None:
        self.world.say("****", f"{begin.__name__} {node.name} for {for_s:.1f} s")
        node.disturbed_at = self.world.now
        mend = begin(node)
        if mend is not nothing:
            self.mends.append(mend)
            self.world.after(for_s, self._mend, mend, node)

    def _mend(self, mend: Mend, node: SimNode) -> None:
        if mend in self.mends:
            self.mends.remove(mend)
            self.world.say("****", f"mended {mend.__name__} {node.name}")
            mend()
            for each in self.sim.nodes.values():
                each.disturbed_at = self.world.now

    def mend_all(self) -> None:
        self.active = False
        mends, self.mends = self.mends, []
        for mend in mends:
            mend()
        sim = self.sim
        sim.world.cuts.clear()
        self.unroute()
        sim.world.slow = 0.02
        sim.store.flaky = 0.0
        if sim.store.down:
            sim.store.set_down(False)
        for node in sim.nodes.values():
            node.thaw()
            node.thaw_agent()
            node.power_on()
            node.start_agent()
            node.server.signal_continue()
            node.server.disk_full = node.server.stuck = False
            node.server.flush_stalled_at = None
            node.slow_copy = 1.0
            node.disturbed_at = self.world.now
        if sim.store.spec.paused:
            sim.store.put_spec(replace(sim.store.spec, paused=False))
        self._look()

    def pick(self) -> SimNode:
        """Half of the time the primary."""
        view = self.sim.store.view
        if view is not None and view.primary is not None and self.world.chance(0.5):
            return self.sim.nodes[view.primary]
        return self.random.choice(list(self.sim.nodes.values()))

    def _look(self) -> None:
        self.sim.ledger.disturbed()
        for node in self.sim.nodes.values():
            node.wake(0.05)
            self.world.after(1.05, node.wake, 0.0)

    # -- processes and machines -----------------------------------------------------------------

    def kill_postgres(self, node: SimNode) -> Mend:
        node.server.halt(asked=False)
        self._look()
        return nothing

    def kill_all_postgres(self, node: SimNode) -> Mend:
        for each in self.sim.nodes.values():
            if self.world.chance(0.7):
                each.server.halt(asked=False)
        self._look()
        return nothing

    def freeze_postgres(self, node: SimNode) -> Mend:
        node.server.signal_stop()
        self._look()

        def mend() -> None:
            node.server.signal_continue()
            self._look()

        return mend

    def power(self, node: SimNode) -> Mend:
        node.power_off()
        self._look()
        return node.power_on

    def blink(self, node: SimNode) -> Mend:
        node.power_off()
        node.power_on()
        return nothing

    def kill_agent(self, node: SimNode) -> Mend:
        node.kill_agent()
        return node.start_agent

    def freeze_agent(self, node: SimNode) -> Mend:
        node.freeze_agent()
        return node.thaw_agent

    def freeze(self, node: SimNode) -> Mend:
        node.freeze()
        self._look()

        def mend() -> None:
            node.thaw()
            self._look()

        return mend

    def wipe(self, node: SimNode) -> Mend:
        """The machine is lost with its disks, and replaced by an empty one of the same name."""
        sim = self.sim
        view = sim.store.view
        if self.wiped or not sim.checker.quorum or view is None or view.primary is None or not view.rules:
            return nothing
        if any(rule.lone or (node.name in rule.voters and rule.k > 1) for rule in view.rules):
            return nothing
        others = [n for n in sim.nodes.values() if n is not node]
        if not any(n.member.may_lead for n in others):
            return nothing
        if not all(n.server.data is Data.PRESENT and not n.disk.durable.copying for n in others):
            return nothing
        if not all(sim.checker.must_keep.issubset(n.server.wal) for n in others):
            return nothing
        self.wiped = True
        node.power_off()
        server = node.server
        server.data, server.system_id, server.wal, server.history = Data.ABSENT, "", [], ()
        server.timeline, server.last_checkpoint, server.min_recovery = 1, 0, 0
        server.files.clear()
        server.slots = frozenset()
        server.data_generation += 1
        server.acting_term = 0
        server.ever_had.clear()
        node.disk.durable = node.disk.cached = Disk()
        self._look()
        return node.power_on

    # -- network and store ----------------------------------------------------------------------

    def _cut(self, pairs: list[tuple[str, str]]) -> Mend:
        for a, b in pairs:
            self.world.cut(a, b)
        self._look()

        def mend() -> None:
            for a, b in pairs:
                self.world.join(a, b)
            for node in self.sim.nodes.values():
                if node.client is not None:
                    node.client.dirty = True
            self._look()

        return mend

    def _others(self, node: SimNode) -> list[NodeId]:
        return [other for other in self.sim.nodes if other != node.name]

    def cut_pair(self, node: SimNode) -> Mend:
        return self._cut([(node.name, self.random.choice(self._others(node)))])

    def cut_from_primary(self, node: SimNode) -> Mend:
        view = self.sim.store.view
        primary = view.primary if view is not None else None
        return self._cut([(node.name, primary)] if primary not in (None, node.name) else [])

    def isolate(self, node: SimNode) -> Mend:
        return self._cut([(node.name, other) for other in (*self._others(node), STORE)])

    def cut_from_nodes(self, node: SimNode) -> Mend:
        return self._cut([(node.name, other) for other in self._others(node)])

    def cut_from_store(self, node: SimNode) -> Mend:
        return self._cut([(node.name, STORE)])

    def store_outage(self, node: SimNode) -> Mend:
        self.sim.store.set_down(True)

        def mend() -> None:
            self.sim.store.set_down(False)
            for each in self.sim.nodes.values():
                if each.client is not None:
                    each.client.dirty = True
                each.wake(0.1)

        return mend

    def store_flaky(self, node: SimNode) -> Mend:
        self.sim.store.flaky = 0.3

        def mend() -> None:
            self.sim.store.flaky = 0.0

        return mend

    def misroute(self, node: SimNode) -> Mend:
        """Another machine has got the address that replication goes to: whoever follows this node reaches that one."""
        other = self.random.choice(self._others(node))
        for name in self.sim.nodes:
            if name != other:
                self.sim.ledger.misrouted[name, node.name] = other

        def mend() -> None:
            self.unroute()

        return mend

    def unroute(self) -> None:
        self.sim.ledger.misrouted.clear()
        for link in list(self.sim.ledger.links):
            if link.above.node != link.upstream.host:
                link.below.ice.call(link.close_below)

    def slow_network(self, node: SimNode) -> Mend:
        self.world.slow = 0.3

        def mend() -> None:
            self.world.slow = 0.02

        return mend

    # -- disks and servers ----------------------------------------------------------------------

    def disk_full(self, node: SimNode) -> Mend:
        node.server.disk_full = True

        def mend() -> None:
            node.server.disk_full = False

        return mend

    def flush_stalled(self, node: SimNode) -> Mend:
        if node.server.writable:
            node.server.flush_stalled_at = self.world.now

        def mend() -> None:
            node.server.flush_stalled_at = None

        return mend

    def recycle_wal(self, node: SimNode) -> Mend:
        """Everybody removes what WAL it can, at the limit of what slots may keep, while a standby is away."""

        def mend() -> None:
            for each in self.sim.nodes.values():
                each.server.oldest = max(each.server.oldest, len(each.server.wal) - 1)

        node.power_off()
        self._look()

        def both() -> None:
            mend()
            node.power_on()

        return both

    def stuck(self, node: SimNode) -> Mend:
        """A recovery conflict, on every standby at once now and then."""
        nodes = list(self.sim.nodes.values()) if self.world.chance(0.4) else [node]
        for each in nodes:
            if each.server.recovery and each.server.receiver is not None:
                each.server.stuck = True

        def mend() -> None:
            for each in nodes:
                if each.server.stuck:
                    each.server.stuck = False
                    each.server.reattach()

        return mend

    def slow_copy(self, node: SimNode) -> Mend:
        node.slow_copy = 8.0

        def mend() -> None:
            node.slow_copy = 1.0

        return mend

    # -- operators ------------------------------------------------------------------------------

    def ask(self, kind: RequestKind, node: NodeId | None) -> None:
        self.asked += 1
        self.sim.store.add_request(Request(f"r{self.asked}", kind, node, "operator"))

    def switchover(self, node: SimNode) -> Mend:
        self.ask(RequestKind.SWITCHOVER, node.name if self.world.chance(0.5) else None)
        return nothing

    def switchover_away(self, node: SimNode) -> Mend:
        self.ask(RequestKind.SWITCHOVER, None)
        return nothing

    def failover(self, node: SimNode) -> Mend:
        self.ask(RequestKind.FAILOVER, None)
        return nothing

    def restart(self, node: SimNode) -> Mend:
        self.ask(RequestKind.RESTART, node.name)
        return nothing

    def reclone(self, node: SimNode) -> Mend:
        self.ask(RequestKind.RECLONE, node.name)
        return nothing

    def remove(self, node: SimNode) -> Mend:
        """The machine goes for good, and comes back all the same."""
        node.power_off()
        self._look()
        self.world.after(12.0, self.ask, RequestKind.REMOVE, node.name)
        return node.power_on

    def change_spec(self, node: SimNode) -> Mend:
        store = self.sim.store
        spec = store.spec
        if spec.durability is not Durability.ASYNC:
            choice = Durability.STRICT if spec.durability is Durability.QUORUM else Durability.QUORUM
            if self.world.chance(0.5) and len(self.sim.nodes) > 3:
                spec = replace(spec, k=3 - spec.k)
            else:
                if not any(n.member.nosync for n in self.sim.nodes.values()):  # strict without voters waits for ever
                    spec = replace(spec, durability=choice)
            store.put_spec(spec)
        return nothing

    def pause(self, node: SimNode) -> Mend:
        store = self.sim.store
        store.put_spec(replace(store.spec, paused=True))

        def mend() -> None:
            store.put_spec(replace(store.spec, paused=False))

        return mend
