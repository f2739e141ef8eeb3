"""Where 5432 and 5434 lead, as a table of stories."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.routing.target import Address, Route, choose_route
from cluster.model import (
    Handover,
    HandoverStage,
    Member,
    NodeId,
    NodeReport,
    Phase,
    Rule,
    ServerState,
    Spec,
    View,
)

N1, N2, N3, N4 = NodeId("n1"), NodeId("n2"), NodeId("n3"), NodeId("n4")
A1, A2, A3, A4 = (Address(f"10.0.0.{i}", 5433) for i in (1, 2, 3, 4))
MEMBERS = (
    Member(N1, "10.0.0.1", region="ams"),
    Member(N2, "10.0.0.2", region="ams"),
    Member(N3, "10.0.0.3", region="ams"),
    Member(N4, "10.0.0.4", region="syd"),
)
OPEN = View(7, Phase.OPEN, N1, 3, (), members=MEMBERS)
REVOKING = replace(OPEN, term=8, phase=Phase.REVOKING, primary=None)


RULE = Rule(8, N2, frozenset({N3}), 1)
PROMOTING = replace(REVOKING, phase=Phase.PROMOTING, primary=N2, rules=(Rule(7, N1, frozenset({N2, N3}), 1), RULE))
PASSED = NodeReport(MEMBERS[1], "run", ServerState.PRIMARY, term=8, applied=RULE, barrier_term=8)


def standby(node: NodeId, *, following: NodeId | None = N1, streaming: bool = True) -> NodeReport:
    member = next(m for m in MEMBERS if m.node == node)
    return NodeReport(member, "run", ServerState.STANDBY, following=following, streaming=streaming)


def reports(*given: NodeReport) -> dict[NodeId, NodeReport]:
    return {r.node: r for r in given}


ALL = reports(standby(N2), standby(N3), standby(N4))

#        story, view, reports, lag, me, primary, keep, readers
STORIES = [
    ("nothing known: all is held", None, {}, {}, N2, None, None, ()),
    ("open: to the primary, reads to this region", OPEN, ALL, {}, N2, A1, A1, (A2, A3)),
    ("from the other region, reads stay there", OPEN, ALL, {}, N4, A1, A1, (A4,)),
    ("revoking: held and cut, standbys still answer reads", REVOKING, ALL, {}, N2, None, None, (A2, A3)),
    (
        "promoting: no client is sent to the chosen one",
        replace(REVOKING, phase=Phase.PROMOTING, primary=N2),
        ALL,
        {},
        N2,
        None,
        None,
        (A2, A3),
    ),
    (
        "its barrier passed: clients need not wait until the term is called open",
        PROMOTING,
        reports(PASSED, standby(N3)),
        {},
        N2,
        A2,
        A2,
        (A3,),
    ),
    (
        "not with the barrier of another rule",
        PROMOTING,
        reports(replace(PASSED, applied=replace(RULE, serial=1)), standby(N3)),
        {},
        N2,
        None,
        None,
        (A3,),
    ),
    ("nor of another term", PROMOTING, reports(replace(PASSED, barrier_term=7)), {}, N2, None, None, ()),
    ("nor of another node", PROMOTING, reports(replace(PASSED, member=MEMBERS[2])), {}, N2, None, None, ()),
    ("founding: held", replace(OPEN, phase=Phase.FOUNDING), {}, {}, N1, None, None, ()),
    (
        "handover prepares: clients still work",
        replace(OPEN, handover=Handover(N2, "r", HandoverStage.PREPARE)),
        ALL,
        {},
        N2,
        A1,
        A1,
        (A2, A3),
    ),
    (
        "handover stops: new ones held, sessions are left to end",
        replace(OPEN, handover=Handover(N2, "r", HandoverStage.STOP)),
        ALL,
        {},
        N2,
        None,
        A1,
        (A2, A3),
    ),
    ("a lagging standby gets no reads", OPEN, ALL, {N3: 1 << 30}, N2, A1, A1, (A2,)),
    ("all of the region lag: any standby", OPEN, ALL, {N2: 1 << 30, N3: 1 << 30}, N2, A1, A1, (A2, A3, A4)),
    ("a standby that lost its stream gets none", OPEN, reports(standby(N2, streaming=False)), {}, N2, A1, A1, (A1,)),
    ("nor one that follows somebody else", OPEN, reports(standby(N2, following=N3)), {}, N2, A1, A1, (A1,)),
    ("alone: reads go to the primary", OPEN, {}, {}, N1, A1, A1, (A1,)),
    ("the primary is no member: held", replace(OPEN, primary=NodeId("n9")), {}, {}, N1, None, None, ()),
]


@pytest.mark.parametrize(
    ("view", "seen", "lag", "me", "primary", "keep", "readers"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES]
)
def test_choose_route(
    view: View | None,
    seen: dict[NodeId, NodeReport],
    lag: dict[NodeId, int],
    me: NodeId,
    primary: Address | None,
    keep: Address | None,
    readers: tuple[Address, ...],
) -> None:
    route = choose_route(view, seen, Spec(), me, lag)
    assert (route.primary, route.keep, route.readers) == (primary, keep, readers), route.why
    assert route.why


def test_reader_sessions_live_on_while_their_server_is_a_standby() -> None:
    route: Route = choose_route(OPEN, ALL, Spec(), N2, {N3: 1 << 30})
    assert route.readers_keep == {A1, A2, A3, A4}
    assert A1 not in choose_route(REVOKING, ALL, Spec(), N2).readers_keep, "a deposed primary may be stale"


def test_addresses_print_ipv6_in_brackets() -> None:
    assert str(Address("fdaa::1", 5433)) == "[fdaa::1]:5433"
