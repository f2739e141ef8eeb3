"""What a keeper does next, as a table of stories: the view, the node's own state, and the step that must follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.adopt import rule_of
from agent.local import Local, RestartUnderWay
from agent.memory import Memory
from agent.plan import plan_next
from agent.steps import (
    ApplyRule,
    Barrier,
    Checkpoint,
    CheckWal,
    CloseRequest,
    Copy,
    CopyDone,
    Follow,
    GivePromise,
    HandOver,
    InitDb,
    KeepSlots,
    OpenGate,
    PromiseStopped,
    Promote,
    Publish,
    Restart,
    Rewind,
    StartPrimary,
    StartStandby,
    Step,
    Stop,
)
from cluster.model import (
    Fetch,
    Handover,
    HandoverStage,
    NodeId,
    Phase,
    Request,
    RequestKind,
    Rule,
    ServerState,
    Snapshot,
    Spec,
    lone_rule,
)
from postgres.instance import Data, InstanceState, Job, JobKind, Run
from tests.unit.stories import (
    TERM,
    A,
    B,
    C,
    as_primary,
    as_standby,
    at,
    control,
    disk,
    down,
    member,
    primary,
    promise,
    promoting,
    revoking,
    rule,
    slots,
    snap,
    standby,
    upstream,
    view,
)

NEXT = TERM + 1
SERVES = {"applied": rule(), "barrier_term": TERM, "roles_ready": True}
STOPPING = Handover(B, "r1", HandoverStage.STOP)
EMPTY = InstanceState(Data.ABSENT, Run.DOWN)
RESTART_A = Request("r2", RequestKind.RESTART, A, "ann")
NEW_RULE = rule(B, "c", term=NEXT)
GIVEN = promise(B, 900)


def local(node: str, inst: InstanceState, **known: object) -> Local:
    base = Local(me=A if node == "a" else B if node == "b" else C, instance=inst, disk=disk())
    return replace(base, **known)  # type: ignore[arg-type]


STORIES: list[tuple[str, Snapshot, Local, Step | None]] = [
    # nothing is done without a word of the cluster
    ("no cluster: nothing", snap(None), local("a", EMPTY), None),
    ("not a member: nothing", snap(view(members=(member(A),))), local("b", EMPTY), None),
    ("data of another system: nothing", snap(view(system_id="1")), local("b", down()), None),
    ("paused: nothing", snap(spec=Spec(paused=True)), local("a", down()), None),
    ("a job is running: nothing", snap(), local("b", replace(EMPTY, job=Job(JobKind.COPY, True))), None),
    ("etcd is silent: a primary is not started", snap(), local("a", down(), fresh=False), None),
    ("etcd is silent: a standby may come back", snap(), local("b", down(), fresh=False), StartStandby(None)),
    ("nor in a pause", snap(spec=Spec(paused=True)), local("b", down(), fresh=False), None),
    ("but not one that promised more", snap(), local("b", down(), fresh=False, disk=disk(NEXT)), None),
    # founding
    (
        "the founder creates the data",
        snap(view(term=1, phase=Phase.FOUNDING, rules=(lone_rule(1, A),))),
        local("a", EMPTY, disk=disk(0)),
        InitDb(),
    ),
    (
        "the others wait until it is open",
        snap(view(term=1, phase=Phase.FOUNDING, rules=(lone_rule(1, A),))),
        local("b", EMPTY, disk=disk(0)),
        None,
    ),
    (
        "the founder starts it",
        snap(view(term=1, phase=Phase.FOUNDING, rules=(lone_rule(1, A),))),
        local("a", down("shut down"), disk=disk(0)),
        StartPrimary(lone_rule(1, A)),
    ),
    # serving
    ("all is well", snap(), local("a", as_primary(), **SERVES), None),
    ("after an agent's restart the rule is proven again", snap(), local("a", as_primary()), ApplyRule(rule())),
    (
        "a changed rule is applied",
        snap(view(rules=(rule(), rule(voters="b")))),
        local("a", as_primary(), **SERVES),
        ApplyRule(rule(voters="b")),
    ),
    (
        "no clients before the barrier",
        snap(),
        local("a", as_primary(gate_open=False), applied=rule(), roles_ready=True),
        Barrier(rule()),
    ),
    ("clients after it", snap(), local("a", as_primary(gate_open=False), **SERVES), OpenGate()),
    (
        "its control file must show the timeline",
        snap(),
        local("a", as_primary(control=control(timeline=2)), **SERVES),
        Checkpoint(""),
    ),
    ("a slot for each member", snap(), local("a", as_primary(slots=slots(B)), **SERVES), KeepSlots(frozenset({B, C}))),
    (
        "no slot for a former one",
        snap(),
        local("a", as_primary(slots=slots(B, C, A)), **SERVES),
        KeepSlots(frozenset({B, C})),
    ),
    (
        "on another timeline it is stopped",
        snap(),
        local("a", as_primary(position=at(9, 2)), **SERVES),
        Stop(fast=False),
    ),
    ("it promised more: it does not serve", snap(), local("a", down(), disk=disk(NEXT)), None),
    ("its standbys can take over: they get a moment", snap(), local("a", down(died=True), down_since=99.0), None),
    ("they did not: it restarts in place", snap(), local("a", down(died=True), down_since=90.0), StartPrimary(rule())),
    (
        "nobody can take over: at once",
        snap(view(), primary(), standby(B)),
        local("a", down(died=True), down_since=100.0),
        StartPrimary(rule()),
    ),
    (
        "but not in a loop",
        snap(view(), primary(), standby(B)),
        local("a", down(died=True), down_since=100.0, last_start=98.0),
        None,
    ),
    ("as a standby it is started anew", snap(), local("a", as_standby()), Stop(fast=True)),
    # restart by hand
    (
        "a restart is announced and done",
        snap(view(), primary(), standby(B), standby(C), RESTART_A),
        local("a", as_primary(), **SERVES),
        Restart("r2"),
    ),
    (
        "down on purpose: up again at once",
        snap(),
        local("a", down("shut down"), restart=RestartUnderWay("r2", True), down_since=100.0),
        StartPrimary(rule()),
    ),
    (
        "a look that still sees the old server does not end the restart",
        snap(view(), primary(), standby(B), standby(C), RESTART_A),
        local("a", as_primary(), restart=RestartUnderWay("r2"), **SERVES),
        Restart("r2"),
    ),
    (
        "the new server ends it",
        snap(),
        local("a", as_primary(), restart=RestartUnderWay("r2", True), **SERVES),
        CloseRequest("r2", "done: a was restarted"),
    ),
    # switchover
    (
        "a CHECKPOINT first",
        snap(view(handover=Handover(B, "r1", HandoverStage.PREPARE))),
        local("a", as_primary(), **SERVES),
        Checkpoint("r1"),
    ),
    ("then stop in order", snap(view(handover=STOPPING)), local("a", as_primary(), **SERVES), HandOver(NEXT)),
    (
        "once the poolers' transactions have ended",
        snap(view(handover=STOPPING)),
        local("a", as_primary(), stop_seen=(STOPPING.request, 99.9), **SERVES),
        None,
    ),
    (
        "those of this node and of every other",
        snap(view(handover=STOPPING)),
        local("a", as_primary(), stop_seen=(STOPPING.request, 99.9), drained=STOPPING.request, **SERVES),
        None,
    ),
    (
        "when all say so it stops",
        snap(view(handover=STOPPING), replace(standby(B), drained="r1"), replace(standby(C), drained="r1")),
        local("a", as_primary(), stop_seen=(STOPPING.request, 99.9), drained=STOPPING.request, **SERVES),
        HandOver(NEXT),
    ),
    (
        "but not for ever",
        snap(view(handover=STOPPING), standby(B)),
        local("a", as_primary(), stop_seen=(STOPPING.request, 99.0), **SERVES),
        HandOver(NEXT),
    ),
    (
        "then promise with the end",
        snap(view(handover=STOPPING)),
        local("a", down("shut down")),
        PromiseStopped(NEXT, at(801)),
    ),
    ("a crash on the way is no end", snap(view(handover=STOPPING)), local("a", down(died=True)), None),
    ("called off: it serves again", snap(), local("a", down("shut down"), down_since=90.0), StartPrimary(rule())),
    (
        "the target waits for it",
        snap(view(handover=STOPPING)),
        local("b", as_standby(receiver=False, streaming=False)),
        None,
    ),
    (
        "and then promises",
        snap(view(handover=STOPPING), standby(B), promise(A, 900)),
        local("b", as_standby(receiver=False)),
        GivePromise(NEXT),
    ),
    (
        "not before it has all that the primary is still sending",
        snap(view(handover=STOPPING), standby(B), promise(A, 900)),
        local("b", as_standby(position=at(899))),
        None,
    ),
    (
        "unless nothing comes any more",
        snap(view(handover=STOPPING), standby(B), promise(A, 900)),
        local("b", as_standby(position=at(899), streaming=False)),
        GivePromise(NEXT),
    ),
    (
        "the others keep following",
        snap(view(handover=STOPPING), standby(B), promise(A, 900)),
        local("c", as_standby(slots=slots(A, B))),
        None,
    ),
    # revoking
    ("a standby promises", snap(revoking()), local("b", as_standby()), GivePromise(NEXT)),
    ("one that is down starts detached first", snap(revoking()), local("b", down()), StartStandby(None)),
    (
        "the old primary that has just died lets the others go first",
        snap(revoking()),
        local("a", down(), down_since=99.5),
        None,
    ),
    (
        "for a moment only: they may not be enough",
        snap(revoking()),
        local("a", down(), down_since=98.0),
        StartStandby(None),
    ),
    ("a standby does not wait", snap(revoking()), local("b", down(), down_since=99.5), StartStandby(None)),
    ("nor does the old primary follow yet", snap(promoting()), local("a", down(), down_since=99.5), None),
    (
        "unless the new one waits for it",
        snap(promoting(rules=(rule(), rule(B, "a", term=NEXT)))),
        local("a", down(), down_since=99.5),
        StartStandby(None),
    ),
    ("the old primary stops at once", snap(revoking()), local("a", as_primary()), Stop(fast=False)),
    ("and then says where it ended", snap(revoking()), local("a", as_standby()), GivePromise(NEXT)),
    (
        "below its floor it may not be counted",
        snap(revoking()),
        local("b", as_standby(), disk=disk(floor=at(901))),
        None,
    ),
    ("without data there is nothing to promise", snap(revoking()), local("b", EMPTY), None),
    ("nor in the middle of a copy", snap(revoking()), local("b", down(), disk=disk(copying=True)), None),
    ("what is on disk is told", snap(revoking()), local("b", as_standby(), disk=disk(NEXT, promise=GIVEN)), Publish()),
    ("once", snap(revoking(), standby(B), GIVEN), local("b", as_standby(), disk=disk(NEXT, promise=GIVEN)), None),
    (
        "a promise is not repeated for a term below",
        snap(revoking(), standby(B)),
        local("b", as_standby(), disk=disk(NEXT + 1)),
        None,
    ),
    (
        "it fetches from one that is further",
        snap(revoking(fetch=Fetch(B, C, at(950))), standby(B), GIVEN),
        local("b", as_standby(position=at(900)), disk=disk(NEXT, promise=GIVEN)),
        Follow(upstream(C, NEXT)),
    ),
    (
        "and promises again with it",
        snap(revoking(fetch=Fetch(B, C, at(950))), standby(B), GIVEN),
        local("b", as_standby(upstream(C, NEXT), position=at(950)), disk=disk(NEXT, promise=GIVEN)),
        GivePromise(NEXT),
    ),
    (
        "when that is called off it lets go, and promises again with what it has got",
        snap(revoking(), standby(B), GIVEN),
        local("b", as_standby(upstream(C, NEXT), position=at(920)), disk=disk(NEXT, promise=GIVEN)),
        GivePromise(NEXT),
    ),
    # promoting
    (
        "the chosen one is promoted",
        snap(promoting()),
        local("b", as_standby(), disk=disk(NEXT)),
        Promote(NEXT, 4, NEW_RULE),
    ),
    ("once", snap(promoting()), local("b", as_standby(), disk=disk(NEXT), promoting=NEXT), None),
    (
        "then the barrier",
        snap(promoting()),
        local("b", as_primary(position=at(950, 4)), disk=disk(NEXT), promoting=NEXT, asked=NEW_RULE),
        Barrier(NEW_RULE),
    ),
    (
        "the rule changed since promotion was asked for: it is applied first",
        snap(promoting(rules=(rule(), NEW_RULE, replace(NEW_RULE, voters=frozenset(), k=0, serial=1)))),
        local("b", as_primary(position=at(950, 4)), disk=disk(NEXT), promoting=NEXT, asked=NEW_RULE),
        ApplyRule(replace(NEW_RULE, voters=frozenset(), k=0, serial=1)),
    ),
    (
        "another timeline than allocated: stop",
        snap(promoting()),
        local("b", as_primary(position=at(950, 5)), disk=disk(NEXT), promoting=NEXT),
        Stop(fast=False),
    ),
    (
        "clients come in when its barrier has passed: routers send them from then on",
        snap(promoting()),
        local(
            "b",
            as_primary(position=at(950, 4), gate_open=False),
            disk=disk(NEXT),
            promoting=NEXT,
            applied=NEW_RULE,
            barrier_term=NEXT,
        ),
        OpenGate(),
    ),
    (
        "not before",
        snap(promoting()),
        local("b", as_primary(position=at(950, 4), gate_open=False), disk=disk(NEXT), promoting=NEXT, asked=NEW_RULE),
        Barrier(NEW_RULE),
    ),
    (
        "it died on the way, promoted already: again",
        snap(promoting()),
        local("b", down(), disk=disk(NEXT, was_primary=NEXT), known_end=at(950, 4)),
        StartPrimary(NEW_RULE),
    ),
    (
        "it died on the way: never as primary of the old timeline",
        snap(promoting()),
        local("b", down(), disk=disk(NEXT, was_primary=NEXT), known_end=at(900)),
        StartStandby(None),
    ),
    (
        "it turns out to have been promoted: its timeline is not left again",
        snap(promoting()),
        local("b", as_standby(position=at(950, 4)), disk=disk(NEXT, was_primary=NEXT)),
        Stop(fast=True),
    ),
    (
        "the others follow at once",
        snap(promoting()),
        local("c", as_standby(slots=slots(A, B))),
        Follow(upstream(B, NEXT)),
    ),
    ("one ahead of the fork is stopped", snap(promoting()), local("c", as_standby(position=at(901))), Stop(fast=False)),
    (
        "a voter without which the term cannot be opened is rewound before that",
        snap(promoting(), primary(B, term=NEXT, checkpoint_timeline=4)),
        local("c", down(), known_end=at(901)),
        Rewind(upstream(B, NEXT)),
    ),
    (
        "anybody else waits for the term to be open",
        snap(promoting(), primary(B, term=NEXT, checkpoint_timeline=4)),
        local("a", down(), known_end=at(901)),
        None,
    ),
    ("the deposed primary stops at once", snap(promoting()), local("a", as_primary()), Stop(fast=False)),
    # standby
    ("all is well for a standby", snap(), local("b", as_standby()), None),
    ("without data it copies", snap(), local("b", EMPTY), Copy(upstream())),
    (
        "a complete copy is noted",
        snap(),
        local("b", down(job=Job(JobKind.COPY, False)), disk=disk(copying=True)),
        CopyDone(),
    ),
    ("an interrupted one is begun again", snap(), local("b", down(), disk=disk(copying=True)), Copy(upstream())),
    (
        "a copy that failed waits",
        snap(),
        local("b", replace(EMPTY, job=Job(JobKind.COPY, False, "no space")), last_job_failed=95.0),
        None,
    ),
    ("after a crash it learns where it stands", snap(), local("b", down()), StartStandby(None)),
    (
        "after a clean stop as primary it follows",
        snap(promoting(phase=Phase.OPEN)),
        local("a", down("shut down", control=control("shut down", 3, 899)), disk=disk(TERM)),
        StartStandby(upstream(B, NEXT)),
    ),
    (
        "not when its agent ends: it would be stopped again at once, and clients need the processors",
        snap(promoting(phase=Phase.OPEN)),
        local("a", down("shut down", control=control("shut down", 3, 899)), disk=disk(TERM), ending=True),
        None,
    ),
    (
        "but others may need to know where its WAL ends, even then",
        snap(revoking()),
        local("a", down(), down_since=98.0, ending=True),
        StartStandby(None),
    ),
    (
        "a fork is rewound",
        snap(promoting(phase=Phase.OPEN), primary(B, checkpoint_timeline=4)),
        local("a", down(), known_end=at(901)),
        Rewind(upstream(B, NEXT)),
    ),
    (
        "so is a crashed primary whose recovery was broken off beyond the fork: elsewhere PostgreSQL goes on never",
        snap(promoting(phase=Phase.OPEN), primary(B, checkpoint_timeline=4)),
        local(
            "a",
            down(control=replace(control("in archive recovery"), min_recovery=at(901))),
            disk=disk(NEXT, floor=at(700), was_primary=TERM),
        ),
        Rewind(upstream(B, NEXT)),
    ),
    (
        "one that was broken off before it follows",
        snap(promoting(phase=Phase.OPEN), primary(B, checkpoint_timeline=4)),
        local(
            "a",
            down(control=replace(control("in archive recovery"), min_recovery=at(900))),
            disk=disk(NEXT, floor=at(700), was_primary=TERM),
        ),
        StartStandby(upstream(B, NEXT)),
    ),
    (
        "one that rewinding does not help is copied",
        snap(promoting(phase=Phase.OPEN), primary(B, checkpoint_timeline=4)),
        local("a", down(), known_end=at(901), rewound_from=at(901)),
        Copy(upstream(B, NEXT)),
    ),
    (
        "not before the new primary's control file shows its timeline",
        snap(promoting(phase=Phase.OPEN), primary(B, checkpoint_timeline=3)),
        local("a", down(), known_end=at(901)),
        None,
    ),
    (
        "what cannot be rewound is copied",
        snap(promoting(phase=Phase.OPEN), primary(B, checkpoint_timeline=4)),
        local("a", down(job=Job(JobKind.REWIND, False, "no common ancestor")), known_end=at(901)),
        Copy(upstream(B, NEXT)),
    ),
    (
        "a node that was rewound needs WAL from the primary before it lets anybody in",
        snap(promoting(phase=Phase.OPEN)),
        local("a", down("in archive recovery"), disk=disk(NEXT, floor=at(950, 4))),
        StartStandby(upstream(B, NEXT)),
    ),
    (
        "started detached, it would wait for that WAL for ever",
        snap(promoting(phase=Phase.OPEN)),
        local(
            "a",
            replace(down("in archive recovery"), run=Run.STARTING),
            disk=disk(NEXT, floor=at(950, 4)),
            waits_since=80.0,
        ),
        Stop(fast=False),
    ),
    (
        "but it is given time to recover",
        snap(promoting(phase=Phase.OPEN)),
        local(
            "a",
            replace(down("in archive recovery"), run=Run.STARTING),
            disk=disk(NEXT, floor=at(950, 4)),
            waits_since=99.0,
        ),
        None,
    ),
    (
        "a crashed primary that was once rewound is looked at alone: its WAL may have forked",
        snap(promoting(phase=Phase.OPEN)),
        local("a", down("in production"), disk=disk(NEXT, floor=at(950, 4))),
        StartStandby(None),
    ),
    (
        "a fresh copy says so too, in the control file of its source: it follows at once",
        snap(promoting(phase=Phase.OPEN)),
        local("a", down("in production", fresh_copy=True), disk=disk(NEXT, floor=at(950, 4))),
        StartStandby(upstream(B, NEXT)),
    ),
    (
        "a slow disk may keep a crashed primary from its WAL for long: stopping it would only begin that anew",
        snap(promoting(phase=Phase.OPEN)),
        local(
            "a", replace(down("in production"), run=Run.STARTING), disk=disk(NEXT, floor=at(950, 4)), last_start=10.0
        ),
        None,
    ),
    ("attached, but the gate is closed", snap(), local("b", as_standby(gate_open=False)), OpenGate()),
    (
        "it follows the term, not only the node",
        snap(),
        local("b", as_standby(upstream(A, TERM - 1))),
        Follow(upstream()),
    ),
    ("not streaming yet: a moment", snap(), local("b", as_standby(streaming=False), unattached_since=99.0), None),
    (
        "not streaming for long: is its WAL still there?",
        snap(),
        local("b", as_standby(streaming=False), unattached_since=90.0),
        CheckWal(upstream()),
    ),
    (
        "that is asked now and then only",
        snap(),
        local("b", as_standby(streaming=False), unattached_since=60.0, wal_checked=80.0),
        None,
    ),
    ("its WAL is gone: stop", snap(), local("b", as_standby(streaming=False), wal_lost=True), Stop(fast=True)),
    ("and copy", snap(), local("b", down("shut down in recovery"), wal_lost=True), Copy(upstream())),
    (
        "not from the repository again, which has led there",
        snap(),
        local("b", down("shut down in recovery", job=Job(JobKind.COPY, False, seeded="vs_x")), wal_lost=True),
        Copy(upstream(), seed=False),
    ),
    ("it promised more: it does not follow", snap(), local("b", as_standby(), disk=disk(NEXT)), None),
    ("a second primary stops at once", snap(), local("b", as_primary()), Stop(fast=False)),
    (
        "a restart that could not be announced is tried again",
        snap(view(), primary(), standby(B), Request("r3", RequestKind.RESTART, B, "ann")),
        local("b", as_standby(), restart=RestartUnderWay("r3")),
        Restart("r3"),
    ),
    (
        "copied afresh by hand: stop first",
        snap(view(), primary(), standby(B), Request("r4", RequestKind.RECLONE, B, "ann")),
        local("b", as_standby()),
        Stop(fast=True),
    ),
    (
        "then copy",
        snap(view(), primary(), standby(B), Request("r4", RequestKind.RECLONE, B, "ann")),
        local("b", down("shut down in recovery")),
        Copy(upstream()),
    ),
    (
        "not while the primary is away",
        snap(view(), primary(state=ServerState.CRASHED), standby(B), Request("r4", RequestKind.RECLONE, B, "ann")),
        local("b", as_standby()),
        None,
    ),
]


@pytest.mark.parametrize(("story", "seen", "node", "step"), STORIES, ids=[s[0] for s in STORIES])
def test_plan(story: str, seen: Snapshot, node: Local, step: Step | None) -> None:
    plan = plan_next(seen, node, member(node.me), now=100.0)
    assert plan.step == step, plan.why


def test_a_cluster_that_etcd_has_lost_is_a_problem_that_names_the_way_out() -> None:
    for seen in (None, snap()):
        plan = plan_next(seen, local("a", as_primary(), fresh=False, forgotten=True), member(A), now=100.0)
        assert plan.step is None and plan.problem
        assert f"up to term {TERM}" in plan.why and "flypg failover --accept-data-loss" in plan.why
    back = plan_next(snap(), local("b", down(), fresh=False, forgotten=True), member(B), now=100.0)
    assert back.step == StartStandby(None), "as when etcd does not answer"


RULES = [
    ("one of two", "ANY 1 (b_t7, c_t7)", Rule(7, A, frozenset({B, C}), 1)),
    ("quoted", 'ANY 2 ("b_t7", "c_t7", "d_t7")', Rule(7, A, frozenset({B, C, NodeId("d")}), 2)),
    ("nobody's is no rule", "ANY 1 (flypg_nobody)", None),
    ("of two terms it is none", "ANY 1 (b_t7, c_t8)", None),
    ("somebody else's is none", "FIRST 1 (b_t7)", None),
    ("none: alone", "", Rule(0, A, frozenset(), 0)),
]


def test_crash_recovery_is_no_waiting_however_long_it_takes() -> None:
    """A start was stopped after ten seconds, and begun anew, for ever: crash recovery always takes as long again."""
    memory = Memory()
    starting = replace(down("in production"), run=Run.STARTING)
    for now, state in ((10.0, "in production"), (11.0, "in crash recovery"), (40.0, "in crash recovery")):
        memory.update(replace(starting, control=control(state)), now)
        assert memory.waits_since is None
    for now in (41.0, 50.0):  # from here on it may lack WAL
        memory.update(replace(starting, control=control("in archive recovery")), now)
        assert memory.waits_since == 41.0
    memory.update(as_standby(), 51.0)
    assert memory.waits_since is None


@pytest.mark.parametrize(("story", "names", "expected"), RULES, ids=[r[0] for r in RULES])
def test_rule_of_a_server_that_was_found_running(story: str, names: str, expected: Rule | None) -> None:
    assert rule_of(names, A) == expected
