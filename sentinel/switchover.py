"""A planned change of primary, and what else an operator may ask for. Pure.

prepare: the primary runs a CHECKPOINT while clients work. stop: routers hold clients, the primary stops in fast mode
(its walsenders wait until the standbys have everything) and promises the next term with the end of its WAL. When the
target has promised too and has reached that end, it is promoted. Whatever goes wrong before the primary's promise calls
the switchover off; after it, the term is opened like after a failure, and the old primary is one of the candidates.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.model import (
    Durability,
    Handover,
    HandoverStage,
    NodeId,
    Phase,
    Request,
    RequestKind,
    ServerState,
    Snapshot,
    View,
)
from cluster.quorum import missing
from sentinel.actions import Answer, Decision, PutView, wait
from sentinel.candidates import may_lead, may_vote, rule_for
from sentinel.observe import Observations
from sentinel.terms import promote, revoke

PREPARE_MAX_S = 60.0  # a CHECKPOINT may take long on a busy primary
PASSING_S = 3.0  # so long may last what passes by itself, before a switchover is refused for it
SETTLE_S = 2.0  # the target's promise follows the primary's within this, or the term is opened without a target


def begin(view: View, snap: Snapshot, request: Request, waited_s: float) -> Decision:
    """Start the switchover that was asked for, or refuse it with the reason. `waited_s`: since it was first seen; what
    may pass in a moment, as a standby that has just come back and is not in the rule yet, gets that moment."""
    target = request.node or best_target(view, snap)
    why = refuse_target(view, snap, target)
    if why or target is None:
        why = why or "no standby is in the rule and caught up"
        named = [request.node] if request.node else [m.node for m in view.members]
        if waited_s < PASSING_S and not all(_never(view, snap, node) for node in named):
            return wait(f"a switchover waits for {PASSING_S:g} s at most: {why}")
        return Decision(Answer(request.id, f"refused: {why}"), why)
    text = f"switchover from {view.primary} to {target}, asked for by {request.asked_by}"
    handover = Handover(target, request.id, HandoverStage.PREPARE)
    return Decision(PutView(replace(view, handover=handover, why=text), "switchover", text, target), text)


def best_target(view: View, snap: Snapshot) -> NodeId | None:
    able = [m for m in view.members if not refuse_target(view, snap, m.node)]
    return max(able, key=lambda m: (m.priority, m.node)).node if able else None


def refuse_target(view: View, snap: Snapshot, target: NodeId | None) -> str:
    """Why `target` cannot take over now; "" when it can."""
    if target is None:
        return "no standby is in the rule, caught up and allowed to be primary"
    return _never(view, snap, target) or _not_yet(view, snap, target)


def _never(view: View, snap: Snapshot, target: NodeId) -> str:
    """Why waiting would not help."""
    if target == view.primary:
        return f"{target} is the primary already"
    return may_lead(view.member(target), snap.spec)


def _not_yet(view: View, snap: Snapshot, target: NodeId) -> str:
    primary = snap.reports.get(view.primary) if view.primary else None
    if primary is None:
        return f"the agent of {view.primary} does not answer"
    if not any(s.node == target and s.caught_up for s in primary.standbys):
        return f"{target} is not streaming, or not caught up"
    if snap.spec.durability is not Durability.ASYNC and target not in view.rules[-1].voters:
        return f"{target} is not in the rule ({view.rules[-1]})"
    report = snap.reports.get(target)
    if report is None or report.state is not ServerState.STANDBY:
        return f"the agent of {target} does not answer, or its PostgreSQL is no standby"
    return ""


def call_off(view: View, why: str) -> Decision:
    assert view.handover is not None
    text = f"switchover to {view.handover.target} called off: {why}"
    outcome = ((view.handover.request, f"refused: {text}"),)
    return Decision(
        PutView(replace(view, handover=None, why=text), "switchover", text, view.handover.target, outcome), text
    )


def proceed(view: View, snap: Snapshot, seen: Observations, now: float) -> Decision:
    """The next step of the switchover that is under way."""
    handover, primary = view.handover, view.primary
    assert handover is not None and primary is not None and view.phase is Phase.OPEN
    report = snap.reports.get(primary)
    age_s = now - seen.stage_since
    if handover.stage is HandoverStage.PREPARE:
        if why := refuse_target(view, snap, handover.target):
            return call_off(view, why)
        if report is not None and report.handover_ready == handover.request:
            ready = replace(handover, stage=HandoverStage.STOP)
            text = f"{primary} is prepared: clients are held, it stops"
            return Decision(PutView(replace(view, handover=ready, why=text), "phase", text, primary), text)
        if age_s > PREPARE_MAX_S:
            return call_off(view, f"{primary} was not prepared within {PREPARE_MAX_S:g} s")
        return wait(f"{primary} prepares for the switchover to {handover.target}")
    given_s = now - seen.given_since if seen.given_since is not None else 0.0
    return _stopped(view, snap, age_s, given_s)


def _stopped(view: View, snap: Snapshot, age_s: float, given_s: float) -> Decision:
    """`age_s`: since clients are held. `given_s`: since the primary's promise was seen."""
    handover, primary = view.handover, view.primary
    assert handover is not None and primary is not None
    given = snap.promises.get(primary)
    taken = snap.promises.get(handover.target)
    if given is None or given.term <= view.term:
        if age_s > snap.spec.hold_max_s:
            return call_off(view, f"{primary} did not stop within {snap.spec.hold_max_s:g} s")
        return wait(f"{primary} is stopping for the switchover to {handover.target}")
    term = given.term
    if taken is not None and taken.term == term and taken.position >= given.position:
        lacking = missing(view.rules, {primary, handover.target})
        assert lacking is None, "the promise of the primary satisfies the rules of its own term"
        others = {
            n
            for n in view.rules[-1].voters
            if n != handover.target and n in snap.reports and may_vote(view.member(n), snap.spec)
        }
        if not others and may_vote(view.member(primary), snap.spec) and primary in snap.reports:
            others = {primary}  # it comes back as a standby in a moment; until then nothing is acknowledged alone
        rule = rule_for(view, snap.spec, term, handover.target, others)
        text = (
            f"{primary} stopped at {given.position}, {handover.target} has all of it and becomes primary of term {term}"
        )
        return Decision(
            PutView(
                promote(
                    replace(view, cause=f"switchover to {handover.target}"), snap, term, taken.position, rule, text
                ),
                "phase",
                text,
                handover.target,
                ((handover.request, f"done: {handover.target} is primary of term {term}"),),
            ),
            text,
        )
    if given_s > SETTLE_S:
        text = f"switchover to {handover.target} failed: it has not reached the end of {primary} at {given.position}"
        return Decision(
            PutView(revoke(view, snap, text), "failover", text, primary, ((handover.request, f"refused: {text}"),)),
            text,
        )
    return wait(f"{primary} has stopped; waiting for {handover.target} to have reached {given.position}")


def answer(view: View, snap: Snapshot, request: Request, waited_s: float) -> Decision | None:
    """Deal with a request in an open term without a switchover under way; None: it is not the sentinel's to answer.
    `waited_s`: since it was first seen."""
    match request.kind:
        case RequestKind.SWITCHOVER:
            return begin(view, snap, request, waited_s)
        case RequestKind.REMOVE:
            return _remove(view, snap, request)
        case RequestKind.FAILOVER:
            return _failover(view, snap, request)
        case RequestKind.RESTART | RequestKind.RECLONE:
            if view.member(request.node) is None:
                return Decision(Answer(request.id, f"refused: {request.node} is not a member"), "unknown node")
            if request.kind is RequestKind.RECLONE and request.node == view.primary:
                return Decision(
                    Answer(request.id, f"refused: {request.node} is the primary; switch over first"), "primary"
                )
            return None


def _remove(view: View, snap: Snapshot, request: Request) -> Decision:
    node = request.node
    if view.member(node) is None:
        return Decision(Answer(request.id, f"refused: {node} is not a member"), "unknown node")
    if node == view.primary:
        return Decision(Answer(request.id, f"refused: {node} is the primary; switch over first"), "primary")
    if node in snap.reports:
        return Decision(Answer(request.id, f"refused: the agent of {node} is running; stop it first"), "running")
    if any(node in r.voters for r in view.rules):
        return wait(f"{node} is to be removed once it has left the rule")
    text = f"{node} was removed, asked for by {request.asked_by}"
    members = tuple(m for m in view.members if m.node != node)
    return Decision(
        PutView(replace(view, members=members, why=text), "member", text, str(node), ((request.id, f"done: {text}"),)),
        text,
    )


def _failover(view: View, snap: Snapshot, request: Request) -> Decision:
    there = {m.node for m in view.members if m.node in snap.reports and m.node != view.primary}
    cause = f"asked for by {request.asked_by}"
    lacking = missing(view.rules, there)
    able = [n for n in there if not may_lead(view.member(n), snap.spec)]
    if not able:
        return Decision(Answer(request.id, "refused: no other node is there that may be primary"), "nobody")
    if lacking is not None and not request.accept_data_loss:
        return Decision(Answer(request.id, f"refused: it could lose acknowledged writes: {lacking}"), "unsafe")
    new = revoke(view, snap, cause)
    if lacking is not None:
        cause += f", accepting data loss ({lacking})"
        new = replace(new, rules=(), cause=cause, why=cause)
    outcome = ((request.id, f"done: term {new.term} was opened"),)
    return Decision(PutView(new, "failover", cause, str(view.primary), outcome), cause)
