"""The models do what the real programs were measured to do (docs/protocol.md), traps included."""

from __future__ import annotations

import contextlib

import pytest

from cluster.errors import InstanceError, OutcomeUnknown, StoreConflict, StoreUnavailable
from cluster.model import NodeId, Position, Rule, Spec, Upstream, lone_rule
from postgres.instance import Data, Run
from tests.simulation.server import EMPTY, NOBODYS, Ledger, Server, lsn, names_of
from tests.simulation.sim_postgres import SimInstance, common_length, rewind
from tests.simulation.sim_store import SimStore, StoreClient
from tests.simulation.world import STORE, Process, SimClock, Task, World

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


class Lab:
    """A primary `a` of term 1 and standbys that follow it."""

    def __init__(self, *standbys: NodeId, k: int = 1) -> None:
        self.world = World(1)
        self.world.slow = 0.0
        self.ledger = Ledger(self.world)
        self.acknowledged: list[tuple[str, int]] = []
        self.ledger.acknowledged = lambda server, count, record, kind: self.acknowledged.append((server.node, record))
        self.rule = Rule(1, A, frozenset(standbys), k) if standbys else lone_rule(1, A)
        self.a = Server(self.world, self.ledger, A)
        self.a.initdb()
        self.standbys = [self.copy(node) for node in standbys]
        self.a.start(recovery=False, names=names_of(self.rule), upstream=None, acting_term=1)
        for server in self.standbys:
            server.start(recovery=True, names=NOBODYS, upstream=self.upstream(A, 1))
        self.pass_s(3.0)

    def copy(self, node: NodeId) -> Server:
        server = Server(self.world, self.ledger, node)
        server.data, server.system_id = Data.PRESENT, self.a.system_id
        server.replace(list(self.a.wal), self.a.timeline, self.a.history)
        return server

    def upstream(self, node: NodeId, term: int) -> Upstream:
        return Upstream(node, node, 5433, term)

    def pass_s(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    def write(self, server: Server | None = None) -> int:
        server = server or self.a
        count = server.insert("client")
        return server.wal[count - 1] if count else -1

    def acked(self, record: int) -> bool:
        return any(r == record for _, r in self.acknowledged)

    def do(self, server: Server, what: str, *arguments: object, **named: object) -> object:
        """Run one method of the instance to its end."""
        return self.drive(
            getattr(SimInstance(server, SimClock(self.world, 0.0), lambda w: None), what)(*arguments, **named)
        )

    def drive(self, coroutine: object) -> object:
        answers: list[tuple[object, object]] = []
        Task(Process(self.world), coroutine, lambda error, result: answers.append((error, result))).resume()  # type: ignore[arg-type]
        self.world.run(self.world.now + 30.0, stop=lambda: bool(answers))
        error, result = answers[0]
        if isinstance(error, Exception):
            raise error
        return result


def test_a_commit_waits_for_a_standby() -> None:
    lab = Lab(B)
    record = lab.write()
    assert not lab.acked(record)
    lab.pass_s(1.0)
    assert lab.acked(record) and lab.standbys[0].wal == lab.a.wal


def test_two_of_three_must_have_it() -> None:
    lab = Lab(B, C, k=2)
    lab.world.cut(A, C)
    record = lab.write()
    lab.pass_s(1.0)
    assert not lab.acked(record)
    lab.world.join(A, C)
    lab.ledger.disturbed()
    lab.pass_s(1.0)
    assert lab.acked(record)


def test_a_stuck_receiver_goes_on_acknowledging_when_its_configuration_is_cleared() -> None:
    lab = Lab(B)
    b = lab.standbys[0]
    b.stuck = True
    b.conninfo = None
    b.reattach()
    lab.pass_s(0.5)
    record = lab.write()
    lab.pass_s(1.0)
    assert lab.acked(record)


def test_detach_ends_even_a_stuck_receiver() -> None:
    lab = Lab(B)
    b = lab.standbys[0]
    b.stuck = True
    position = lab.do(b, "detach")
    record = lab.write()
    lab.pass_s(1.0)
    assert position == b.position and not lab.acked(record)


def test_a_standby_of_another_term_streams_but_is_not_counted() -> None:
    lab = Lab(B)
    lab.do(lab.standbys[0], "follow", lab.upstream(A, 2))
    lab.pass_s(1.0)
    record = lab.write()
    lab.pass_s(1.0)
    assert record in lab.standbys[0].wal and not lab.acked(record)


def test_emptying_the_list_lets_everybody_go() -> None:
    lab = Lab(B)
    lab.standbys[0].halt(asked=True)
    record = lab.write()
    lab.pass_s(1.0)
    assert not lab.acked(record)
    lab.a.set_names(EMPTY)
    lab.pass_s(3.0)
    assert lab.acked(record)


def test_from_nobody_to_somebody_takes_effect_late() -> None:
    for seed in range(60):
        lab = Lab()
        lab.world.random.seed(seed)
        lab.a.set_names(NOBODYS)
        lab.pass_s(0.1)
        if lab.acked(lab.write()):
            return
    pytest.fail("the checkpointer was never late")


def test_apply_rule_returns_only_when_commits_wait() -> None:
    for seed in range(30):
        lab = Lab()
        lab.world.random.seed(seed)
        with contextlib.suppress(InstanceError):  # not yet, it says: then nothing is promised
            lab.do(lab.a, "apply_rule", Rule(1, A, frozenset({B}), 1))
            assert not lab.acked(lab.write())


def test_old_and_new_voters_add_up_while_a_list_is_being_read() -> None:
    """One walsender still asks for one of b, the other counts itself under the new list: c's copy alone is enough."""
    lab = Lab(B, C, k=2)
    of_b, of_c = lab.a.senders if lab.a.senders[0].below.node == B else reversed(lab.a.senders)
    of_b.names = names_of(Rule(1, A, frozenset({B}), 1))
    of_c.names = names_of(Rule(1, A, frozenset({B, C}), 2))
    lab.world.cut(A, B)
    lab.ledger.disturbed()
    before = len(lab.a.wal)
    record = lab.write()
    lab.pass_s(0.5)
    assert record in lab.standbys[1].wal and not lab.acked(record)
    of_b._ack(before)
    assert lab.acked(record), "neither {b}, one of them, nor {b, c}, two of them, allows this"


def test_a_rule_of_more_than_one_goes_over_one_that_nobody_satisfies() -> None:
    lab = Lab(B, C)
    lab.a.set_names(names_of(Rule(1, A, frozenset({B}), 1)))
    lab.pass_s(2.0)
    seen = []
    lab.world.after(0.004, lambda: seen.append(lab.a.conf))
    with contextlib.suppress(InstanceError):
        lab.do(lab.a, "apply_rule", Rule(1, A, frozenset({B, C}), 2))
    assert seen == [NOBODYS]


def test_a_crash_publishes_what_nobody_acknowledged() -> None:
    lab = Lab(B)
    lab.standbys[0].halt(asked=True)
    record = lab.write()
    lab.a.halt(asked=False)
    lab.do(lab.a, "start_primary", lab.rule)
    lab.pass_s(3.0)
    assert lab.a.state is Run.UP and record in lab.a.wal and not lab.acked(record)


def test_a_clean_stop_ships_everything() -> None:
    lab = Lab(B)
    lab.write()
    lab.do(lab.a, "stop", fast=True)
    lab.pass_s(1.0)
    assert lab.a.state is Run.DOWN and lab.standbys[0].wal == lab.a.wal
    control = lab.a.control()
    assert control is not None and control.clean_primary and control.checkpoint < lab.standbys[0].position.lsn


def promoted(lab: Lab, server: Server, timeline: int, term: int) -> None:
    lab.do(server, "promote", timeline, lone_rule(term, server.node))
    lab.pass_s(3.0)
    assert server.timeline == timeline and not server.recovery


def test_stubs_make_postgresql_take_the_allocated_timeline() -> None:
    lab = Lab(B)
    lab.do(lab.standbys[0], "detach")
    promoted(lab, lab.standbys[0], 5, 2)


def test_two_branches_of_one_timeline_mix_without_an_error() -> None:
    lab = Lab(B, C)
    b, c = lab.standbys
    lab.do(b, "detach")
    lab.do(c, "detach")
    promoted(lab, b, 2, 2)
    lab.a.halt(asked=True)
    promoted(lab, c, 2, 3)
    for _ in range(3):
        lab.write(b)
    c.halt(asked=True)
    lab.do(c, "start_standby", lab.upstream(B, 2))
    lab.pass_s(3.0)
    assert c.receiver is not None, "PostgreSQL sees nothing wrong"
    assert c.is_forked_from(b), "but the histories differ"


def test_a_fork_is_refused_and_rewound_to_the_last_common_checkpoint() -> None:
    lab = Lab(B)
    b = lab.standbys[0]
    lab.a.checkpoint()
    common = lab.write()
    lab.pass_s(1.0)
    lab.do(b, "detach")
    promoted(lab, b, 2, 2)
    lab.write()
    lab.a.halt(asked=False)
    lab.a.start(recovery=True, names=NOBODYS, upstream=lab.upstream(B, 2))
    lab.pass_s(3.0)
    assert lab.a.receiver is None and "forked" in lab.a.stream_problem
    lab.a.halt(asked=True)
    assert common_length(lab.a, b) == b.history[0][1]
    rewind(lab.a, b)
    assert common not in lab.a.wal, "what it once acknowledged is gone until it streams again"
    lab.a.start(recovery=True, names=NOBODYS, upstream=lab.upstream(B, 2))
    lab.pass_s(3.0)
    assert lab.a.wal == b.wal and lab.a.timeline == 2


def test_rewinding_before_the_new_primarys_checkpoint_does_nothing() -> None:
    lab = Lab(B)
    b = lab.standbys[0]
    lab.do(b, "detach")
    lab.do(b, "promote", 2, lone_rule(2, B))
    while b.recovery:
        lab.pass_s(0.01)
    lab.write()
    lab.a.halt(asked=False)
    before = list(lab.a.wal)
    rewind(lab.a, b)
    assert lab.a.wal == before


def test_crash_recovery_as_primary_ends_with_a_checkpoint() -> None:
    """As PostgreSQL 15 does: who crashed between promotion and checkpoint shows the new timeline when it is back."""
    lab = Lab(B)
    server = lab.standbys[0]
    server.promote(2)
    while server.recovery:
        lab.pass_s(0.01)
    server.halt(asked=False)
    control = server.control()
    assert control is not None and control.timeline == 1
    server.start(recovery=False, names=EMPTY, upstream=None, acting_term=2)
    lab.pass_s(2.0)
    control = server.control()
    assert control is not None and control.timeline == 2


def test_a_late_acknowledgement_arrives_after_the_cut() -> None:
    lab = Lab(B)
    record = lab.write()
    while record not in lab.standbys[0].wal:
        lab.pass_s(0.0005)
    lab.world.cut(A, B)
    lab.ledger.disturbed()
    lab.pass_s(1.0)
    assert not lab.acked(record)
    lab.world.join(A, B)
    lab.ledger.disturbed()
    lab.pass_s(0.1)
    assert lab.acked(record)


def test_positions_are_of_the_timeline() -> None:
    lab = Lab(B)
    b = lab.standbys[0]
    lab.do(b, "detach")
    end = len(b.wal)
    promoted(lab, b, 3, 2)
    assert b.timeline_at(end - 1) == 1 and b.timeline_at(end) == 3
    assert b.position == Position(3, lsn(len(b.wal)))


# -- the store ----------------------------------------------------------------------------------


def test_store_compares_and_swaps() -> None:
    world = World(1)
    lab = Lab()
    store = SimStore(world, Spec())
    lab.world = world
    one, two = (StoreClient(store, node, f"{node}#1", SimClock(world, 0.0)) for node in ("a", "b"))
    lab.drive(one.put_spec(Spec(k=2), read_at=1))
    with pytest.raises(StoreConflict):
        lab.drive(two.put_spec(Spec(k=3), read_at=1))
    assert store.spec.k == 2


def test_store_loses_answers_of_a_node_that_is_cut_off() -> None:
    world = World(1)
    lab = Lab()
    lab.world = world
    client = StoreClient(SimStore(world, Spec()), "a", "a#1", SimClock(world, 0.0))
    world.cut("a", STORE)
    with pytest.raises(StoreUnavailable):
        lab.drive(client.read())
    with pytest.raises(OutcomeUnknown):
        lab.drive(client.put_spec(Spec(k=2), read_at=1))


def test_leases_end_and_take_the_lead_with_them() -> None:
    world = World(1)
    lab = Lab()
    lab.world = world
    store = SimStore(world, Spec())
    one, two = (StoreClient(store, node, f"{node}#1", SimClock(world, 0.0)) for node in ("a", "b"))
    assert lab.drive(one.campaign()) is not None
    assert lab.drive(two.campaign()) is None
    world.run(world.now + 8.0)
    assert store.leader is None
    assert lab.drive(two.campaign()) is not None
