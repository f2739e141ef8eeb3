"""When pooled clients are held, as stories of what an agent hears; and which pools are waited for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from agent.pooling import Pooling
from agent.routing.pooler import Pooler
from agent.routing.pooler_release import wanted
from agent.routing.target import Address
from cluster.clock import SystemClock
from cluster.model import Handover, HandoverStage, Member, NodeId, Phase, Snapshot, Spec, View

N1, N2 = NodeId("n1"), NodeId("n2")
N3 = NodeId("n3")
DOOR, HERE = Address("127.0.0.1", 5432), Address("10.0.0.1", 5433)
OPEN = View(7, Phase.OPEN, N1, 3, (), members=(Member(N1, "10.0.0.1"), Member(N2, "10.0.0.2")))
NEXT = replace(OPEN, term=8, primary=N2)
STOPPING = replace(OPEN, handover=Handover("r1", N2, HandoverStage.STOP))


@dataclass
class Recorder:
    """A pooler that notes how it is told to hold clients: at once, as soon as transactions have ended, or not."""

    told: list[str] = field(default_factory=list)

    def hold(self) -> None:
        self.told.append("at once")

    def route(
        self,
        primary: Address | None,
        spec: Spec,
        poolers: int,
        servers: tuple[Address, ...] = (),
        *,
        here: bool = False,
    ) -> None:
        assert here == (primary == HERE) or primary is None
        self.told.append({DOOR: "led", HERE: "straight", None: "held"}[primary])


def snap(view: View) -> Snapshot:
    return Snapshot(1, view, 1, Spec(), 1)


LED, HELD, AT_ONCE = ["led"], ["held"], ["at once", "held"]
# each step: what is heard (a view, and whether HAProxy leads to a primary; or a word and a term), what is told
STORIES = [
    ("a primary: led", [((OPEN, True), LED)]),
    ("none: held", [((OPEN, True), LED), ((NEXT, False), AT_ONCE), ((NEXT, True), LED)]),
    ("a planned change lets transactions end", [((STOPPING, False), HELD), ((NEXT, False), HELD), ((NEXT, True), LED)]),
    (
        "a doubt holds until the next primary",
        [((OPEN, True), LED), (("doubt", 7), AT_ONCE), ((OPEN, True), AT_ONCE), ((NEXT, True), LED)],
    ),
    ("or until it is found again", [((OPEN, True), LED), (("doubt", 7), AT_ONCE), (("certain", 7), LED)]),
    ("twice is once", [((OPEN, True), LED), (("doubt", 7), AT_ONCE), (("doubt", 7), [])]),
    ("of a primary that is past it is nothing", [((NEXT, True), LED), (("doubt", 7), [])]),
    (
        "that an earlier one is found does not end it",
        [((NEXT, True), LED), (("doubt", 8), AT_ONCE), (("certain", 7), [])],
    ),
    ("of a cluster that was never seen it is nothing", [(("doubt", 7), [])]),
    (
        "the end of the primary's PostgreSQL is doubt",
        [((OPEN, True), LED), (("ended", 1), AT_ONCE), ((NEXT, True), LED)],
    ),
    ("that of another node is not", [((OPEN, True), LED), (("ended", 2), [])]),
    ("nor that of one which is none any more", [((NEXT, True), LED), (("ended", 1), [])]),
]


def pooling_of(me: NodeId, clock: SystemClock | None = None) -> tuple[Pooling, Recorder]:
    pooling = Pooling(None, me, DOOR, clock or SystemClock(), lambda at, pid: None, lambda: None)
    recorder = Recorder()
    pooling.pooler = cast(Pooler, recorder)
    return pooling, recorder


@dataclass
class Watch(SystemClock):
    now: float = 100.0

    def boottime(self) -> float:
        return self.now


def test_the_primarys_own_node_goes_straight_to_its_server_after_a_while() -> None:
    """Another address is not loaded while clients wait; what is there serves them as well."""
    clock = Watch()
    pooling, recorder = pooling_of(N1, clock)
    for later in (0.0, 1.0, 1.0):
        clock.now += later
        pooling.route(snap(OPEN), there=True)
    assert recorder.told == ["led", "led", "straight"]
    recorder.told = []
    pooling.route(snap(NEXT), there=False)
    clock.now += 5
    pooling.route(snap(NEXT), there=True)
    again = replace(OPEN, term=9)
    pooling.route(snap(again), there=True)
    clock.now += 5
    pooling.route(snap(again), there=True)
    pooling.doubt(9)
    pooling.certain(9)
    assert recorder.told == [*AT_ONCE, "led", "led", "straight", *AT_ONCE, "led"]


@pytest.mark.parametrize(("story", "steps"), STORIES, ids=[s[0] for s in STORIES])
def test_when_clients_are_held(story: str, steps: list[tuple[tuple[View, bool] | tuple[str, int], list[str]]]) -> None:
    pooling, recorder = pooling_of(N3)
    for heard, expected in steps:
        recorder.told = []
        match heard:
            case ("doubt", int(term)):
                pooling.doubt(term)
            case ("ended", int(number)):
                pooling.ended(NodeId(f"n{number}"))
            case ("certain", int(term)):
                pooling.certain(term)
            case (View() as view, bool(there)):
                pooling.route(snap(view), there=there)
        assert recorder.told == expected, (story, heard)


def row(database: str, waiting: int, **servers: int) -> dict[str, str]:
    counts = {"sv_active": 0, "sv_idle": 0, "sv_used": 0, "sv_tested": 0, "sv_login": 0, **servers}
    return {"database": database, "user": "u", "cl_waiting": str(waiting)} | {k: str(v) for k, v in counts.items()}


def test_which_pools_are_waited_for() -> None:
    assert wanted([]) == (0, 0)
    assert wanted([row("pgbouncer", 1)]) == (0, 0), "the console's own"
    assert wanted([row("shop", 0), row("shop", 3, sv_login=1)]) == (1, 0), "a login under way is none that has worked"
    assert wanted([row("shop", 1, sv_active=1), row("bank", 2), row("lab", 0, sv_idle=1)]) == (2, 1)
