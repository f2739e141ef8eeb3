"""What must hold at every step (docs/protocol.md, section 8), checked where it could first be broken.

Exact, since every WAL record of a run is unique: a history contains another when its list of records does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.model import Durability, NodeId, Phase, Promise, RequestKind, Rule, View, unstamped
from postgres.instance import Data, Run
from tests.simulation.replication import Link
from tests.simulation.server import EMPTY, NOBODYS, Server, names_of
from tests.simulation.sim_store import REFRESH_S, TTL_S

if TYPE_CHECKING:
    from tests.simulation.sim import Simulation
    from tests.simulation.sim_node import SimNode

STOP_SLACK_S = 1.5
SERVE_SLACK_S = 6.0
OLD_VIEW_S = REFRESH_S + 3.0


class Checker:
    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.world = sim.world
        self.must_keep: set[int] = set()  # records that a client was told of, or could have read
        self.promoted: dict[int, NodeId] = {}  # term -> node
        self.timelines: dict[int, NodeId] = {1: NodeId("")}
        self.allocated: dict[int, int] = {}  # timeline -> term
        self.promises: dict[NodeId, Promise] = {}
        self.last_rules: dict[int, tuple[Rule, ...]] = {}  # by term, as last in the view
        self.opened_at = 0.0
        self.opened_terms: dict[int, float] = {}
        self.failovers = 0
        self.loss_accepted = False
        ledger, store = sim.ledger, sim.store
        ledger.acknowledged = self.acknowledged
        ledger.promoted = self.on_promoted
        ledger.flushed = self.on_flushed
        store.on_view = self.on_view
        store.on_promise = self.on_promise

    @property
    def quorum(self) -> bool:
        return self.sim.store.spec.durability is not Durability.ASYNC and not self.sim.was_async

    # -- the view -------------------------------------------------------------------------------

    def on_view(self, old: View | None, new: View) -> None:
        world, store = self.world, self.sim.store
        world.say(
            "view",
            f"term {new.term} {new.phase.value} primary {new.primary} timeline {new.timeline}"
            f" rules {'; '.join(map(str, new.rules))}: {new.why}",
        )
        if old is not None:
            if new.term < old.term:
                world.violated(f"the term went back from {old.term} to {new.term}")
            same = new.term == old.term and new.phase is not Phase.FOUNDING
            if same and old.primary is not None and new.primary != old.primary:
                world.violated(f"term {new.term} was given to {old.primary} and then to {new.primary}")
        if new.phase in (Phase.PROMOTING, Phase.OPEN):
            term = self.allocated.setdefault(new.timeline, new.term)
            if term != new.term:
                world.violated(f"timeline {new.timeline} was given to term {term} and to term {new.term}")
        if not new.rules and new.phase is not Phase.REVOKING and self.quorum:
            world.violated("the view has no rule")
        if old is not None and new.phase is Phase.REVOKING and not new.rules and old.rules:
            if not any(r.kind is RequestKind.FAILOVER and r.accept_data_loss for r in store.requests.values()):
                world.violated("rules were forgotten although nobody accepted data loss")
            self.loss_accepted = True
        if new.phase is Phase.PROMOTING and (old is None or old.phase is not Phase.PROMOTING or old.term != new.term):
            self._chosen(new)
        if new.phase is Phase.OPEN and (old is None or old.phase is not Phase.OPEN or old.term != new.term):
            self.opened_at = world.now
            self.opened_terms[new.term] = world.now
            self.failovers += 1
            if new.primary is not None:
                self._has_all(self.sim.ledger.servers[new.primary], "opened")
        if new.phase in (Phase.PROMOTING, Phase.OPEN):
            self.check_rules(new)
        self.last_rules[new.term] = new.rules
        self.sim.faults.aftershock(new)
        self.sim.stage.happened(f"{new.term} {new.phase.value}")

    def _chosen(self, view: View) -> None:
        """A primary was chosen: whoever was one may not be able to acknowledge anything any more."""
        assert view.primary is not None
        if not self.quorum:
            return
        if self.loss_accepted:
            self.must_keep &= set(self.sim.ledger.servers[view.primary].wal)
            return
        for server in self.sim.ledger.servers.values():
            if server.node != view.primary and server.acting_term < view.term:
                self._powerless(server, view.term)

    def _powerless(self, server: Server, term: int) -> None:
        if not server.writable or server.acting_term == 0:
            return
        if not server.flag:
            self.world.violated(f"{server.node} acknowledges alone while term {term} has another primary")
        names, wanted = server.conf
        for link in server.senders:
            names = names | link.names[0]
            wanted = min(wanted, link.names[1])
        left = 0
        for name in names:
            who = unstamped(name)
            if who is not None and who[1] == server.acting_term:
                promise = self.promises.get(who[0])
                left += promise is None or promise.term <= server.acting_term
        if left >= wanted:
            self.world.violated(f"{server.node} of term {server.acting_term} could still acknowledge in term {term}")

    def check_rules(self, view: View) -> None:
        """Every rule that any walsender of the primary may use is in the view."""
        if view.primary is None:
            return
        server = self.sim.ledger.servers[view.primary]
        if not server.writable or server.acting_term != view.term:
            return
        listed = {names_of(rule) for rule in view.rules if rule.term == view.term} | {NOBODYS}
        for names in {server.conf, *(link.names for link in server.senders), *(() if server.flag else (EMPTY,))}:
            if names not in listed:
                text = f"ANY {names[1]} {sorted(names[0])}" if names[1] else "nobody's confirmation"
                self.world.violated(f"{server.node} may acknowledge with {text}, which is not in the view")

    # -- promises -------------------------------------------------------------------------------

    def on_promise(self, promise: Promise) -> None:
        known = self.promises.get(promise.node)
        self.world.say("prom", f"{promise.node} promises term {promise.term} at {promise.position}")
        if known is not None and known.term > promise.term:
            self.world.violated(f"{promise.node} took its promise of term {known.term} back")
        self.promises[promise.node] = promise
        node = self.sim.nodes[promise.node]
        if node.disk.durable.promised < promise.term:
            self.world.violated(f"{promise.node} told its promise of term {promise.term} before it was on its disk")
        lost = (self.must_keep & node.server.ever_had).difference(node.server.wal)
        if lost and not self.loss_accepted and self.quorum:
            self.world.violated(f"{promise.node} promises without {len(lost)} acknowledged writes that it once had")

    def on_flushed(self, link: Link) -> None:
        """A standby has flushed something and is about to say so."""
        below = link.below
        if self.sim.nodes[below.node].disk.durable.promised < link.upstream.term:
            self.world.violated(f"{below.node} streams from term {link.upstream.term}, which is not on its disk")
        promise = self.promises.get(link.below.node)
        if promise is not None and promise.term > link.upstream.term:
            self.world.violated(
                f"{link.below.node} serves {link.above.node} of term {link.upstream.term}"
                f" after its promise of term {promise.term}"
            )

    # -- servers --------------------------------------------------------------------------------

    def on_promoted(self, server: Server) -> None:
        """It is writable from now on."""
        term, node = server.acting_term, server.node
        if self.promoted.setdefault(term, node) != node:
            self.world.violated(f"in term {term} both {self.promoted[term]} and {node} were promoted")
        if server.timeline != 1 and self.timelines.setdefault(server.timeline, node) != node:
            self.world.violated(f"both {self.timelines[server.timeline]} and {node} opened timeline {server.timeline}")
        view = self.sim.store.view
        if view is not None and view.term == term and view.phase is not Phase.FOUNDING:
            self._has_all(server, "promoted")

    def _has_all(self, server: Server, what: str) -> None:
        if self.quorum and server.data is Data.PRESENT:  # else its disk was lost a moment ago, and another has it all
            lost = self.must_keep.difference(server.wal)
            if lost:
                self.world.violated(
                    f"{server.node} was {what} without {len(lost)} acknowledged writes: {sorted(lost)[:5]}"
                )

    def acknowledged(self, server: Server, count: int, record: int, kind: str) -> None:
        view = self.sim.store.view
        assert view is not None
        if server.acting_term == view.term:
            self.check_rules(view)
        if kind != "client" or not self.quorum:
            return
        if view.term > server.acting_term and view.primary is not None:
            if self.loss_accepted:
                return
            if record not in self.sim.ledger.servers[view.primary].wal:
                self.world.violated(
                    f"{server.node} of term {server.acting_term} acknowledged a write that"
                    f" {view.primary}, primary of term {view.term}, does not have"
                )
        self._under_a_rule(server, count, record, view)
        self.must_keep.add(record)

    def _under_a_rule(self, server: Server, count: int, record: int, view: View) -> None:
        """Those who have it satisfy a rule in force: only so do enough promises always include one who has it."""
        rules = view.rules if view.term == server.acting_term else self.last_rules.get(server.acting_term, ())
        servers = self.sim.ledger.servers
        for rule in rules:
            if rule.primary == server.node and rule.term == server.acting_term:
                have = sum(1 for n in rule.voters if count <= len(w := servers[n].wal) and w[count - 1] == record)
                if have >= rule.k:
                    return
        if not self.loss_accepted:
            self.world.violated(f"{server.node} acknowledged a write that no rule in force allows: {rules}")

    # -- what keepers do ------------------------------------------------------------------------

    def touched(self, node: SimNode, what: str) -> None:
        """The keeper of `node` is about to change something."""
        client = node.client
        assert client is not None
        read = client.last_read
        if read is None or read.view is None:
            self.world.violated(f"{node.name}: {what} before anything was read")
            return
        read_at = client.read_at - node.clock.offset
        frozen_since = node.thawed_at > read_at  # between reading and acting: nobody can help that
        if what == "start_primary" and self.world.now - read_at > OLD_VIEW_S and not frozen_since:
            self.world.violated(f"{node.name} starts as primary on an old view")
        if read.spec.paused and read.view.phase is Phase.OPEN:
            self.world.violated(f"{node.name}: {what} although the cluster is paused")
        if what in ("copy", "rewind"):
            self._not_the_last(node.server, what)
        elif what == "open_gate":
            self._may_serve(node.server, read.view)

    def _not_the_last(self, server: Server, what: str) -> None:
        if not self.quorum or self.loss_accepted:
            return
        for other in self.sim.ledger.servers.values():
            if other is not server and other.data is Data.PRESENT and self.must_keep.issubset(other.wal):
                return
        self.world.violated(f"{what} on {server.node}: no other node has every acknowledged write")

    def _may_serve(self, server: Server, view: View) -> None:
        current = self.sim.store.view
        assert current is not None
        if not server.recovery:
            if not server.barrier_at:
                self.world.violated(f"{server.node} lets clients in before its barrier")
            if self.quorum and server.acting_term == current.term:
                self.must_keep.update(server.wal[: server.barrier_at])
            return
        if view.primary is not None and view.term == current.term and view.phase is Phase.OPEN:
            primary = self.sim.ledger.servers[view.primary]
            if primary.acting_term == view.term and server.is_forked_from(primary):
                self.world.violated(f"{server.node} lets readers in although its history has forked")

    # -- now and then ---------------------------------------------------------------------------

    def sweep(self) -> None:
        view = self.sim.store.view
        if view is None or view.primary is None:
            return
        now = self.world.now
        self.check_rules(view)
        for node in self.sim.nodes.values():
            server = node.server
            if server.state is not Run.UP or not server.gate_open or server.ice.depth or view.phase is not Phase.OPEN:
                continue
            quiet_since = max(self.opened_at, node.disturbed_at)
            if not server.recovery and server.acting_term < view.term:
                if now - quiet_since > TTL_S + STOP_SLACK_S and not self.loss_accepted:
                    self.world.violated(f"{server.node} still serves as primary of term {server.acting_term}")
            elif server.recovery and now - quiet_since > SERVE_SLACK_S and node.attentive:
                primary = self.sim.ledger.servers[view.primary]
                if (
                    not self.sim.store.spec.paused
                    and primary.acting_term == view.term
                    and server.is_forked_from(primary)
                ):
                    self.world.violated(f"{server.node} serves reads of a history that has forked")


__all__ = ["Checker"]
