"""Small words to tell stories of a three-node cluster with: used by the tables of decide and plan_next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.model import (
    Answer,
    Branch,
    Disk,
    Leadership,
    Member,
    NodeId,
    NodeReport,
    Phase,
    Position,
    Promise,
    Rule,
    ServerState,
    Snapshot,
    Spec,
    StandbySeen,
    Upstream,
    Verdict,
    View,
    slot_name,
)
from postgres.instance import Control, Data, InstanceState, Run

A, B, C, D = NodeId("a"), NodeId("b"), NodeId("c"), NodeId("d")
NODES = (A, B, C)
TERM = 5
TIMELINE = 3
DEFAULTS = Spec()


def member(node: NodeId, **tags: Any) -> Member:
    return Member(node, f"host-{node}", **tags)


def rule(primary: NodeId = A, voters: str = "bc", k: int = 1, term: int = TERM) -> Rule:
    return Rule(term, primary, frozenset(NodeId(v) for v in voters), k if voters else 0)


def at(lsn: int, timeline: int = TIMELINE) -> Position:
    return Position(timeline, lsn)


BRANCHES = (Branch(1, 1, A, 0, 0, True), Branch(3, 2, B, 1, 400, True), Branch(TERM, TIMELINE, A, 2, 700, True))

VIEW = View(
    term=TERM,
    phase=Phase.OPEN,
    primary=A,
    timeline=TIMELINE,
    rules=(rule(),),
    members=tuple(member(n) for n in NODES),
    branches=BRANCHES,
    last_timeline=TIMELINE,
    system_id="7000",
)


def view(**changes: Any) -> View:
    return replace(VIEW, **changes)


def revoking(**changes: Any) -> View:
    """Term 6 is being opened after the loss of a."""
    return replace(view(term=TERM + 1, phase=Phase.REVOKING, primary=None, deposed=A, cause="a died"), **changes)


def promoting(**changes: Any) -> View:
    """b was chosen for term 6."""
    base = view(
        term=TERM + 1,
        phase=Phase.PROMOTING,
        primary=B,
        deposed=A,
        timeline=4,
        last_timeline=4,
        rules=(rule(), rule(B, "c", term=TERM + 1)),
        branches=(*BRANCHES, Branch(TERM + 1, 4, B, TIMELINE, 900)),
    )
    return replace(base, **changes)


def primary(node: NodeId = A, **changes: Any) -> NodeReport:
    base = NodeReport(
        member(node),
        run="r1",
        state=ServerState.PRIMARY,
        term=TERM,
        system_id="7000",
        applied=rule(),
        barrier_term=TERM,
        checkpoint_timeline=TIMELINE,
        standbys=tuple(StandbySeen(n, True) for n in NODES if n != node),
    )
    return replace(base, **changes)


def standby(node: NodeId, **changes: Any) -> NodeReport:
    base = NodeReport(
        member(node),
        run="r1",
        state=ServerState.STANDBY,
        term=TERM,
        system_id="7000",
        following=A,
        streaming=True,
        verdict=Verdict(TERM, A, Answer.OK),
    )
    return replace(base, **changes)


def lost(node: NodeId, answer: Answer, **changes: Any) -> NodeReport:
    """A standby whose stream ended and that gets this answer from a."""
    return standby(node, **{"streaming": False, "verdict": Verdict(TERM, A, answer), **changes})


def promise(node: NodeId, lsn: int, term: int = TERM + 1, timeline: int = TIMELINE) -> Promise:
    return Promise(node, term, Position(timeline, lsn))


def snap(of: View | None = VIEW, *said: Any, spec: Spec = DEFAULTS, leader: NodeId | None = B) -> Snapshot:
    """A snapshot with these reports, promises and requests; without reports: a well, b and c streaming from it."""
    reports = [s for s in said if isinstance(s, NodeReport)]
    promises = [s for s in said if isinstance(s, Promise)]
    requests = tuple(s for s in said if not isinstance(s, NodeReport | Promise))
    if not reports:
        reports = [primary(), standby(B), standby(C)]
    return Snapshot(
        revision=100,
        view=of,
        view_revision=90,
        spec=spec,
        spec_revision=0,
        reports={r.node: r for r in reports},
        promises={p.node: p for p in promises},
        requests=requests,
        leader=Leadership(leader, 7) if leader else None,
    )


def upstream(node: NodeId = A, term: int = TERM) -> Upstream:
    return Upstream(node, f"host-{node}", 5433, term)


def control(state: str = "in production", timeline: int = TIMELINE, checkpoint: int = 800) -> Control:
    return Control("7000", state, timeline, checkpoint)


def slots(*nodes: NodeId) -> frozenset[str]:
    return frozenset(slot_name(n) for n in nodes)


def as_primary(**changes: Any) -> InstanceState:
    """a's PostgreSQL, serving."""
    base = InstanceState(
        Data.PRESENT,
        Run.UP,
        control=control(),
        in_recovery=False,
        position=at(900),
        gate_open=True,
        slots=slots(B, C),
    )
    return replace(base, **changes)


def as_standby(of: Upstream | None = None, **changes: Any) -> InstanceState:
    """b's PostgreSQL, streaming from a."""
    base = InstanceState(
        Data.PRESENT,
        Run.UP,
        control=control("in archive recovery"),
        in_recovery=True,
        position=at(900),
        upstream=of or upstream(),
        receiver=True,
        streaming=True,
        gate_open=True,
        slots=slots(A, C),
    )
    return replace(base, **changes)


def down(state: str = "in production", **changes: Any) -> InstanceState:
    return replace(InstanceState(Data.PRESENT, Run.DOWN, control=control(state)), **changes)


def disk(promised: int = TERM, **changes: Any) -> Disk:
    return replace(Disk(promised=promised), **changes)
