"""What the sentinel chooses, as a table of stories: a row says what is seen and which view must follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.model import (
    Answer,
    Durability,
    Fetch,
    Handover,
    HandoverStage,
    NodeReport,
    Phase,
    Request,
    RequestKind,
    Rule,
    ServerState,
    Snapshot,
    Spec,
    StandbySeen,
    View,
    lone_rule,
)
from sentinel.actions import Answer as Answered
from sentinel.actions import Decision, PutView, Resign
from sentinel.decide import decide
from sentinel.observe import Observations, observe
from tests.unit.stories import (
    TERM,
    TIMELINE,
    A,
    B,
    C,
    D,
    at,
    lost,
    member,
    primary,
    promise,
    promoting,
    revoking,
    rule,
    snap,
    standby,
    view,
)

NEXT = TERM + 1
DEAD = primary(fault="the postmaster died", state=ServerState.CRASHED, standbys=())
SWITCH = Request("r1", RequestKind.SWITCHOVER, B, "ann")


def after(story: Snapshot, seconds: float, before: Snapshot | None = None) -> Decision:
    """What is decided when `story` has lasted so long (since a leader of long standing first saw it)."""
    seen = observe(Observations(since=0.0), before if before is not None else snap(), 50.0)
    seen = observe(seen, story, 100.0)
    seen = observe(seen, story, 100.0 + seconds)
    return decide(story, seen, 100.0 + seconds)


def new_view(decision: Decision) -> View:
    assert isinstance(decision.action, PutView), decision.why
    return decision.action.view


def waits(d: Decision) -> bool:
    return d.action is None


def revokes(d: Decision) -> bool:
    v = new_view(d)
    return v.phase is Phase.REVOKING and v.primary is None and v.term == NEXT and v.deposed == A


def promotes(node: str, voters: str, timeline: int = 4) -> Callable[[Decision], bool]:
    def check(d: Decision) -> bool:
        v = new_view(d)
        assert v.rule is not None
        return (
            (v.phase, v.primary, v.timeline) == (Phase.PROMOTING, node, timeline)
            and v.rule.voters == frozenset(voters)
            and v.branches[-1].timeline == timeline
        )

    return check


def rules(*expected: Rule) -> Callable[[Decision], bool]:
    """These rules, whatever their serials; a new one has a serial of its own."""

    def told(d: Decision) -> bool:
        found = new_view(d).rules
        serials = [r.serial for r in found if r.term == found[-1].term]
        return len(found) == len(expected) and all(map(Rule.same, found, expected)) and len({*serials}) == len(serials)

    return told


def refused(d: Decision) -> bool:
    return isinstance(d.action, Answered) and d.action.outcome.startswith("refused")


ALONE = (lone_rule(TERM, A),)
ASYNC = Spec(durability=Durability.ASYNC)
BACK = replace(rule(), serial=2)  # the rule that was in force before, and is to be again
JOINT = (rule(), rule(voters="b"))
GONE = standby(C, state=ServerState.ABSENT, following=None, streaming=False)  # its data was given up for a copy


def lost_unopened(own: Rule | None = None) -> View:
    """b was chosen for term 6 under `own` (ANY 1 (a, c)), on timeline 4 from 900 on, and lost before it was open."""
    chosen = promoting(rules=(rule(), own or rule(B, "ac", term=NEXT)))
    return replace(chosen, term=NEXT + 1, phase=Phase.REVOKING, primary=None, deposed=B, cause="b died")


STORIES: list[tuple[str, Snapshot, float, Callable[[Decision], bool]]] = [
    # evidence
    ("a healthy cluster is left alone", snap(), 100, waits),
    ("the postmaster died: at once", snap(view(), DEAD, standby(B), standby(C)), 0, revokes),
    (
        "an announced restart is no failure",
        snap(view(), replace(DEAD, restarting=True), standby(B), standby(C)),
        5,
        waits,
    ),
    (
        "a restart that never ends is one",
        snap(view(), replace(DEAD, restarting=True), standby(B), standby(C)),
        31,
        revokes,
    ),
    ("everybody is refused: at once", snap(view(), lost(B, Answer.REFUSED), lost(C, Answer.REFUSED)), 0, revokes),
    ("one is refused, one is served", snap(view(), primary(), lost(B, Answer.REFUSED), standby(C)), 60, waits),
    ("nobody gets an answer", snap(view(), lost(B, Answer.SILENT), lost(C, Answer.SILENT)), 0, revokes),
    (
        "nobody gets an answer, and the dead streams have not been given up yet",
        snap(view(), lost(B, Answer.SILENT, streaming=True), lost(C, Answer.SILENT, streaming=True)),
        0,
        revokes,
    ),
    ("one alone gets no answer", snap(view(), primary(), lost(B, Answer.SILENT), standby(C)), 60, waits),
    ("the agent is gone but its server serves", snap(view(), standby(B), standby(C)), 60, waits),
    ("a lone primary has no successor", snap(view(rules=ALONE), DEAD, standby(B), standby(C)), 60, waits),
    ("not enough are left to revoke it", snap(view(), DEAD, standby(B)), 60, waits),
    ("one of one voter is enough", snap(view(rules=(rule(voters="b"),)), DEAD, standby(B)), 0, revokes),
    ("both rules of a change must be met", snap(view(rules=(rule(), rule(voters="b"))), DEAD, standby(B)), 9, waits),
    (
        "nobody who may lead",
        snap(
            view(members=(member(A), member(B, nofailover=True), member(C, priority=0))),
            DEAD,
            standby(B, member=member(B, nofailover=True)),
            standby(C, member=member(C, priority=0)),
        ),
        9,
        waits,
    ),
    ("paused: nothing is done", snap(view(), DEAD, standby(B), standby(C), spec=Spec(paused=True)), 60, waits),
    ("its own promise ends its term", snap(view(), primary(), standby(B), standby(C), promise(A, 9)), 0, revokes),
    # revoking
    ("one promise of two voters is not enough", snap(revoking(), standby(B), standby(C), promise(B, 900)), 9, waits),
    (
        "the furthest is promoted",
        snap(revoking(), standby(B), standby(C), promise(B, 900), promise(C, 901)),
        0,
        promotes("c", "b"),
    ),
    (
        "a newer timeline beats a longer log",
        snap(revoking(), standby(B), standby(C), promise(B, 900), promise(C, 999, timeline=2)),
        0,
        promotes("b", ""),
    ),
    (
        "the old primary's own promise is enough",
        snap(revoking(), standby(A), standby(B), promise(A, 950), promise(B, 900)),
        0,
        promotes("a", "b"),
    ),
    (
        "even for a rule without voters",
        snap(revoking(rules=ALONE), standby(A), standby(B), promise(A, 950)),
        0,
        promotes("a", ""),
    ),
    (
        "what a lone primary did nobody else knows",
        snap(revoking(rules=ALONE), standby(B), standby(C), promise(B, 900), promise(C, 900)),
        60,
        waits,
    ),
    (
        "old promises do not count",
        snap(revoking(), standby(B), standby(C), promise(B, 900, TERM), promise(C, 9)),
        9,
        waits,
    ),
    (
        "of equals the higher priority",
        snap(
            revoking(members=(member(A), member(B, priority=200), member(C))),
            standby(B, member=member(B, priority=200)),
            standby(C),
            promise(B, 900),
            promise(C, 900),
        ),
        0,
        promotes("b", "c"),
    ),
    (
        "the furthest may not lead: another fetches first",
        snap(
            revoking(members=(member(A), member(B, nofailover=True), member(C))),
            standby(B, member=member(B, nofailover=True)),
            standby(C),
            promise(B, 950),
            promise(C, 900),
        ),
        0,
        lambda d: new_view(d).fetch == Fetch(C, B, promise(B, 950).position),
    ),
    (
        "and is promoted when it has everything",
        snap(
            revoking(members=(member(A), member(B, nofailover=True), member(C))),
            standby(B, member=member(B, nofailover=True)),
            standby(C),
            promise(B, 950),
            promise(C, 950),
        ),
        0,
        promotes("c", "b"),
    ),
    (
        "a promise given by one that has gone counts, if its end was reached",
        snap(revoking(), standby(C), promise(B, 900), promise(C, 900)),
        0,
        promotes("c", ""),
    ),
    ("or is waited for", snap(revoking(), standby(C), promise(B, 950), promise(C, 900)), 60, waits),
    (
        "a node of another region is no candidate",
        snap(
            revoking(members=(member(A, region="ams"), member(B, region="ams"), member(C, region="fra"))),
            standby(B, member=member(B, region="ams")),
            standby(C, member=member(C, region="fra")),
            promise(B, 900),
            promise(C, 900),
            spec=Spec(primary_region="ams"),
        ),
        0,
        promotes("b", ""),
    ),
    (
        "rules of terms that never opened count too",
        snap(
            revoking(rules=(rule(), rule(B, "c", term=TERM))), standby(A), standby(B), promise(A, 900), promise(B, 900)
        ),
        0,
        promotes("b", "a"),
    ),
    (
        "rules of terms that never opened are not forgotten",
        snap(
            revoking(rules=(rule(), rule(D, "c", term=TERM))), standby(A), standby(B), promise(A, 900), promise(B, 900)
        ),
        9,
        waits,
    ),
    (
        "who was chosen for a term that never opened has all: nobody else need promise for the terms before",
        snap(lost_unopened(), standby(A), standby(B), GONE, promise(B, 950, 7, 4)),
        0,
        promotes("b", "", 5),
    ),
    (
        "and so has who received from it, if the rule of that term is met",
        snap(lost_unopened(rule(B, "c", term=NEXT)), standby(A), standby(C), promise(C, 950, 7, 4)),
        0,
        promotes("c", "", 5),
    ),
    (
        "but not if others may have confirmed what it lacks",
        snap(lost_unopened(), standby(A), standby(C), promise(C, 950, 7, 4)),
        9,
        waits,
    ),
    (
        "who was chosen but never wrote on its timeline proves nothing",
        snap(lost_unopened(), standby(A), standby(B), GONE, promise(B, 900, 7, 3)),
        9,
        waits,
    ),
    (
        "nor does who stands before the beginning of that timeline",
        snap(lost_unopened(), standby(A), standby(B), GONE, promise(B, 890, 7, 4)),
        9,
        waits,
    ),
    (
        "a term with a lone rule does not speak for those before: it may have been async",
        snap(lost_unopened(lone_rule(NEXT, B)), standby(A), standby(B), GONE, promise(B, 950, 7, 4)),
        9,
        waits,
    ),
    # promoting
    ("no barrier, no clients", snap(promoting(), primary(B, term=NEXT, barrier_term=0), standby(C)), 1, waits),
    (
        "the barrier opens the term",
        snap(promoting(), primary(B, term=NEXT, barrier_term=NEXT, applied=rule(B, "c", term=NEXT)), standby(C)),
        0,
        lambda d: new_view(d).phase is Phase.OPEN and new_view(d).rules == (rule(B, "c", term=NEXT),),
    ),
    (
        "a barrier under another rule does not",
        snap(promoting(), primary(B, term=NEXT, barrier_term=NEXT, applied=rule()), standby(C)),
        1,
        waits,
    ),
    (
        "its only voter is gone: the rule shrinks, all are listed",
        snap(promoting(), primary(B, term=NEXT, barrier_term=0, standbys=())),
        5,
        rules(rule(), rule(B, "c", term=NEXT), lone_rule(NEXT, B)),
    ),
    # rules
    (
        "a standby that left goes, jointly",
        snap(view(), primary(standbys=(StandbySeen(B, True),)), standby(B)),
        3,
        rules(*JOINT),
    ),
    ("not at once", snap(view(), primary(standbys=(StandbySeen(B, True),)), standby(B)), 1, waits),
    (
        "not while it says that it cannot reach the primary",
        snap(view(), primary(standbys=(StandbySeen(B, True),)), standby(B), lost(C, Answer.SILENT)),
        3,
        waits,
    ),
    (
        "the primary applied it: only the new one counts",
        snap(view(rules=JOINT), primary(applied=JOINT[1], standbys=(StandbySeen(B, True),)), standby(B)),
        9,
        rules(JOINT[1]),
    ),
    (
        "it did not yet: both count",
        snap(view(rules=JOINT), primary(standbys=(StandbySeen(B, True),)), standby(B)),
        9,
        waits,
    ),
    (
        "async: who is near enough is noted",
        snap(view(rules=ALONE), primary(applied=ALONE[0]), standby(B), standby(C), spec=ASYNC),
        1,
        lambda d: new_view(d).near == {B, C},
    ),
    (
        "async: nobody further behind is chosen",
        snap(revoking(rules=ALONE), standby(B), promise(B, 900), standby(C), promise(C, 890), spec=ASYNC),
        9,
        waits,
    ),
    (
        "async: the furthest of those who were near",
        snap(
            revoking(rules=ALONE, near=frozenset({C})),
            *(standby(B), promise(B, 880), standby(C), promise(C, 890)),
            spec=ASYNC,
        ),
        9,
        lambda d: new_view(d).primary == C,
    ),
    (
        "async: unless somebody accepted the loss",
        snap(revoking(rules=()), standby(B), promise(B, 900), standby(C), promise(C, 890), spec=ASYNC),
        9,
        lambda d: new_view(d).primary == B,
    ),
    (
        "a rule that comes back is another: what was applied before proves nothing",
        snap(view(rules=(JOINT[1], BACK)), primary(applied=rule()), standby(B), standby(C)),
        1,
        waits,
    ),
    ("both standbys gone: alone, jointly", snap(view(), primary(standbys=())), 3, rules(rule(), lone_rule(TERM, A))),
    (
        "a restarting primary that nobody reaches may be lost: no rule is made that it may never run",
        snap(
            view(),
            primary(standbys=(), restarting=True),
            lost(B, Answer.REFUSED),
            lost(C, Answer.SILENT),
        ),
        9,
        waits,
    ),
    (
        "unless those who do not reach it could not take over",
        snap(view(), primary(standbys=(), restarting=True), lost(B, Answer.REFUSED)),
        9,
        rules(rule(), lone_rule(TERM, A)),
    ),
    (
        "back from its restart it may have to be alone, or its barrier never passes",
        snap(view(), primary(standbys=(), restarting=True, barrier_term=0, applied=None)),
        9,
        rules(rule(), lone_rule(TERM, A)),
    ),
    (
        "strict: never fewer than k",
        snap(view(), primary(standbys=()), spec=Spec(durability=Durability.STRICT)),
        60,
        waits,
    ),
    (
        "one that has caught up joins",
        snap(view(rules=(rule(voters="b"),)), primary(applied=rule(voters="b")), standby(B), standby(C)),
        0,
        rules(rule(voters="b"), rule()),
    ),
    (
        "one that has not does not",
        snap(
            view(rules=(rule(voters="b"),)),
            primary(applied=rule(voters="b"), standbys=(StandbySeen(B, True), StandbySeen(C, False))),
            standby(B),
            standby(C),
        ),
        60,
        waits,
    ),
    (
        "nosync does not vote",
        snap(
            view(rules=(rule(voters="b"),), members=(member(A), member(B), member(C, nosync=True))),
            primary(applied=rule(voters="b")),
            standby(B),
            standby(C, member=member(C, nosync=True)),
        ),
        60,
        waits,
    ),
    (
        "k grows with the spec",
        snap(view(), primary(), standby(B), standby(C), spec=Spec(k=2)),
        0,
        rules(rule(), rule(k=2)),
    ),
    # members
    (
        "a new node joins",
        snap(view(), primary(), standby(B), standby(C), standby(D, state=ServerState.ABSENT, system_id="")),
        0,
        lambda d: new_view(d).member(D) == member(D),
    ),
    (
        "one with the data of another system does not",
        snap(view(), primary(), standby(B), standby(C), standby(D, system_id="8000")),
        60,
        waits,
    ),
    # switchover
    (
        "a switchover is prepared first",
        snap(view(), primary(), standby(B), standby(C), SWITCH),
        0,
        lambda d: new_view(d).handover == Handover(B, "r1", HandoverStage.PREPARE),
    ),
    (
        "one that lags gets a moment to catch up",
        snap(view(), primary(standbys=(StandbySeen(B, False), StandbySeen(C, True))), standby(B), standby(C), SWITCH),
        2.9,
        waits,
    ),
    (
        "not to one that lags for longer",
        snap(view(), primary(standbys=(StandbySeen(B, False), StandbySeen(C, True))), standby(B), standby(C), SWITCH),
        3,
        refused,
    ),
    (
        "a switchover waits for one that is just being taken into the rule",
        snap(view(rules=(rule(voters="c"),)), primary(applied=rule(voters="c")), standby(B), standby(C), SWITCH),
        0,
        rules(rule(voters="c"), rule()),
    ),
    (
        "and while nobody is caught up",
        snap(view(), primary(standbys=()), standby(B), standby(C), replace(SWITCH, node=None)),
        1,
        waits,
    ),
    (
        "to nobody, when nobody comes",
        snap(view(), primary(standbys=()), standby(B), standby(C), replace(SWITCH, node=None)),
        3,
        refused,
    ),
    ("not to the primary", snap(view(), primary(), standby(B), standby(C), replace(SWITCH, node=A)), 0, refused),
    ("not to a stranger", snap(view(), primary(), standby(B), standby(C), replace(SWITCH, node=D)), 0, refused),
    ("not while paused", snap(view(), primary(), standby(B), SWITCH, spec=Spec(paused=True)), 0, refused),
    (
        "prepared: stop",
        snap(
            view(handover=Handover(B, "r1", HandoverStage.PREPARE)),
            primary(handover_ready="r1"),
            standby(B),
            standby(C),
            SWITCH,
        ),
        0,
        lambda d: new_view(d).handover == Handover(B, "r1", HandoverStage.STOP),
    ),
    (
        "the target has everything: promoted without a rewind",
        snap(
            view(handover=Handover(B, "r1", HandoverStage.STOP)),
            primary(state=ServerState.STOPPED, standbys=()),
            standby(B),
            standby(C),
            SWITCH,
            promise(A, 900),
            promise(B, 900),
        ),
        0,
        promotes("b", "c"),
    ),
    (
        "the target lacks something: not promoted",
        snap(
            view(handover=Handover(B, "r1", HandoverStage.STOP)),
            primary(state=ServerState.STOPPED, standbys=()),
            standby(B),
            standby(C),
            SWITCH,
            promise(A, 900),
            promise(B, 899),
        ),
        1.9,
        waits,
    ),
    (
        "the target does not answer: the term is opened for anybody",
        snap(
            view(handover=Handover(B, "r1", HandoverStage.STOP)),
            primary(state=ServerState.STOPPED, standbys=()),
            standby(C),
            SWITCH,
            promise(A, 900),
        ),
        2.1,
        revokes,
    ),
    (
        "the primary does not stop: called off",
        snap(view(handover=Handover(B, "r1", HandoverStage.STOP)), primary(), standby(B), standby(C), SWITCH),
        6,
        lambda d: new_view(d).handover is None and new_view(d).term == TERM,
    ),
    # requests
    (
        "a failover by hand",
        snap(view(), primary(), standby(B), standby(C), Request("r2", RequestKind.FAILOVER, None, "ann")),
        0,
        revokes,
    ),
    (
        "not one that could lose writes",
        snap(view(rules=ALONE), DEAD, standby(B), Request("r2", RequestKind.FAILOVER, None, "ann")),
        0,
        lambda d: waits(d) or refused(d),
    ),
    (
        "a live node is not removed",
        snap(view(), primary(), standby(B), standby(C), Request("r3", RequestKind.REMOVE, C, "ann")),
        0,
        refused,
    ),
    # the leader's place
    ("a leader on the primary's node hands over", snap(leader=A), 100, lambda d: isinstance(d.action, Resign)),
]


@pytest.mark.parametrize(("story", "seen", "seconds", "expected"), STORIES, ids=[s[0] for s in STORIES])
def test_decide(story: str, seen: Snapshot, seconds: float, expected: Callable[[Decision], bool]) -> None:
    decision = after(seen, seconds)
    assert expected(decision), f"{decision.action}\n{decision.why}"


LONELY = view(rules=ALONE)
LOSSES = {
    "its keeper says so": (DEAD, standby(B), standby(C)),
    "its machine is gone": (lost(B, Answer.SILENT), lost(C, Answer.SILENT)),
    "nothing listens there": (lost(B, Answer.REFUSED), lost(C, Answer.REFUSED)),
}


@pytest.mark.parametrize("said", LOSSES.values(), ids=LOSSES)
def test_a_lost_primary_that_was_alone_is_given_up_on_an_operators_word(said: tuple[Any, ...]) -> None:
    accepts = Request("r2", RequestKind.FAILOVER, None, "ann", accept_data_loss=True)
    assert waits(after(snap(LONELY, *said), 9))
    assert refused(after(snap(LONELY, *said, replace(accepts, accept_data_loss=False)), 9))
    opened = new_view(after(snap(LONELY, *said, accepts), 9))
    assert (opened.phase, opened.rules, opened.deposed) == (Phase.REVOKING, (), A)


def test_a_tag_that_is_lifted_while_the_primary_is_lost_lets_a_standby_take_over() -> None:
    tagged = view(rules=(rule(voters="c"),), members=(member(A), member(B), member(C, nofailover=True)))
    off = standby(B, state=ServerState.STOPPED, following=None, streaming=False)
    assert waits(after(snap(tagged, DEAD, off, standby(C, member=member(C, nofailover=True))), 9))
    taken_in = new_view(after(snap(tagged, DEAD, off, standby(C)), 9))
    assert taken_in.member(C) == member(C)
    assert revokes(after(snap(taken_in, DEAD, off, standby(C)), 9))


def test_accepting_data_loss_drops_the_rules_and_collects_promises() -> None:
    request = Request("r2", RequestKind.FAILOVER, None, "ann", accept_data_loss=True)
    lonely = view(rules=ALONE)
    opened = new_view(after(snap(lonely, standby(B), standby(C), request), 0))
    assert opened.phase is Phase.REVOKING
    assert opened.rules == ()
    assert waits(after(snap(opened, standby(B), standby(C), promise(B, 900)), 1))
    chosen = after(snap(opened, standby(B), standby(C), promise(B, 900), promise(C, 905)), 1)
    assert promotes("c", "b")(chosen), chosen.why


FETCHING = revoking(
    rules=ALONE,
    near=frozenset({B, C}),
    members=(member(A), member(B, nofailover=True), member(C)),
    fetch=Fetch(C, B, promise(B, 950).position),
)


def _fetching(spec: Spec, **c: Any) -> Snapshot:
    furthest = standby(B, member=member(B, nofailover=True))
    return snap(FETCHING, furthest, standby(C, **c), promise(B, 950), promise(C, 900), spec=spec)


@pytest.mark.parametrize(
    ("seconds", "spec", "given_up"),
    [(14, ASYNC, False), (16, ASYNC, True), (600, Spec(), False), (600, Spec(durability=Durability.STRICT), False)],
)
def test_what_cannot_be_fetched_is_given_up_where_loss_is_allowed(seconds: int, spec: Spec, given_up: bool) -> None:
    decision = after(_fetching(spec, streaming=False, following=B), seconds)
    assert waits(decision) is not given_up, decision.why
    if given_up:
        assert new_view(decision).fetch is None
        assert "is given up, as durability async allows" in decision.why


def test_what_is_being_fetched_is_waited_for() -> None:
    assert waits(after(_fetching(ASYNC, streaming=True, following=B), 600))


def test_after_a_fruitless_fetch_the_next_best_is_promoted_when_it_has_let_go() -> None:
    seen = observe(Observations(since=0.0), _fetching(ASYNC, streaming=False, following=B), 50.0)
    seen = observe(seen, _fetching(ASYNC, streaming=False, following=B), 70.0)
    given_up = replace(_fetching(ASYNC, streaming=False, following=B), view=replace(FETCHING, fetch=None))
    seen = observe(seen, given_up, 70.1)
    assert waits(decide(given_up, seen, 70.1)), "it may have received a little meanwhile"
    let_go = replace(_fetching(ASYNC, streaming=False, following=None), view=replace(FETCHING, fetch=None))
    seen = observe(seen, let_go, 70.2)
    decision = decide(let_go, seen, 70.2)
    assert promotes("c", "")(decision), decision.why
    new = observe(seen, replace(let_go, view=new_view(decision)), 70.3)
    assert not new.fruitless, "of that term only"


def test_a_second_failover_on_silence_waits_for_the_cooldown() -> None:
    silent = snap(revoking(cause="no answer from a, say b, c"), standby(B), standby(C))
    seen = observe(observe(Observations(since=0.0), snap(), 50.0), silent, 60.0)
    again = snap(view(term=NEXT, primary=B), *(replace(lost(n, Answer.SILENT)) for n in (A, C)))
    verdicts = {
        n: replace(r, verdict=replace(r.verdict, term=NEXT, primary=B)) for n, r in again.reports.items() if r.verdict
    }
    again = replace(again, reports=verdicts)
    seen = observe(seen, again, 62.0)
    assert waits(decide(again, seen, 62.0))
    assert not waits(decide(again, seen, 71.0))


def test_nodes_that_start_together_found_one_cluster() -> None:
    fresh = [standby(n, state=ServerState.ABSENT, system_id="", verdict=None, term=0) for n in (A, B, C)]
    story = snap(None, *fresh)
    assert waits(decide(story, observe(None, story, 10.0), 10.5))
    founded = new_view(decide(story, observe(None, story, 10.0), 11.5))
    assert (founded.term, founded.phase, founded.primary) == (1, Phase.FOUNDING, A)
    assert founded.rules == (lone_rule(1, A),)
    assert {m.node for m in founded.members} == {A, B, C}


def test_a_node_with_data_is_the_founder_and_two_systems_are_refused() -> None:
    empty = standby(A, state=ServerState.ABSENT, system_id="", verdict=None, term=0)
    story = snap(None, empty, standby(B, state=ServerState.STOPPED, system_id="7000", term=0))
    assert new_view(decide(story, observe(None, story, 0.0), 9.0)).primary == B
    story = snap(None, standby(A, system_id="7000", term=0), standby(B, system_id="8000", term=0))
    decision = decide(story, observe(None, story, 0.0), 9.0)
    assert waits(decision)
    assert "different systems" in decision.why


def forgotten(*said: Any) -> Decision:
    """etcd holds no view, and this; a sentinel has looked for a while."""
    story = snap(None, *said)
    return decide(story, observe(None, story, 0.0), 9.0)


HAD = [primary(position=at(900)), standby(B, position=at(950), served=TERM), standby(C, position=at(900), term=0)]
WORD = Request("r1", RequestKind.FAILOVER, None, "ann", accept_data_loss=True)


@pytest.mark.parametrize(
    "said",
    [HAD, HAD[:1], HAD[1:2], [*HAD[2:], standby(D, state=ServerState.STOPPED, term=0, served=1)]],
    ids=["all", "the primary alone", "a node that was started since", "stopped nodes"],
)
def test_a_cluster_that_etcd_has_lost_is_not_founded_anew(said: list[NodeReport]) -> None:
    decision = forgotten(*said)
    assert waits(decision)
    assert "etcd has lost this cluster" in decision.why and "flypg failover --accept-data-loss" in decision.why


def test_requests_of_a_lost_cluster_are_refused_but_for_the_one_that_takes_it_up() -> None:
    for kind in (RequestKind.SWITCHOVER, RequestKind.FAILOVER, RequestKind.RESTART):
        answered = forgotten(*HAD, Request("r1", kind, None, "ann")).action
        assert isinstance(answered, Answered) and answered.outcome.startswith("refused: etcd has lost")
    for bad in ([primary(), standby(B, system_id="8000")], [primary(member=member(A, nofailover=True))]):
        answered = forgotten(*bad, WORD).action
        assert isinstance(answered, Answered) and answered.outcome.startswith("refused: ")


def test_a_lost_cluster_is_taken_up_above_all_that_is_known_of_it_with_the_furthest() -> None:
    empty = standby(D, state=ServerState.ABSENT, system_id="", served=TERM, term=0)
    taken = new_view(forgotten(*HAD, empty, promise(B, 400, term=TERM + 2), WORD))
    assert (taken.phase, taken.primary, taken.system_id) == (Phase.REVOKING, None, "7000")
    assert taken.term > TERM + 2 + 1 and taken.last_timeline > TIMELINE + 1, "nodes that are away may have got others"
    assert {m.node for m in taken.members} == {A, B, C, D}
    first = [promise(A, 900, term=taken.term), promise(B, 950, term=taken.term)]
    story = snap(taken, *[replace(r, state=ServerState.STANDBY, term=taken.term) for r in HAD], empty, *first)
    decision = decide(story, observe(None, story, 0.0), 60.0)
    assert waits(decision) and "c must say first where the data ends there" in decision.why
    story = replace(story, promises={p.node: p for p in [*first, promise(C, 940, term=taken.term)]})
    chosen = new_view(decide(story, observe(None, story, 0.0), 60.0))
    assert (chosen.phase, chosen.primary, chosen.timeline) == (Phase.PROMOTING, B, taken.last_timeline + 1)
    assert chosen.rules[-1] == Rule(taken.term, B, frozenset({A, C}), 1)


def test_who_cannot_say_where_it_stands_is_given_up_on_a_second_word() -> None:
    taken = new_view(forgotten(*HAD, WORD))
    story = snap(taken, *[replace(r, term=taken.term) for r in HAD], promise(B, 950, term=taken.term), WORD)
    assert new_view(decide(story, observe(None, story, 0.0), 60.0)).rules == ()
