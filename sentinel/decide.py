"""What the leading sentinel does next: the one function that chooses for the cluster. Pure.

One guard a line, each leaving with its reason. At most one action a turn; the next turn sees the world after it.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.model import Durability, NodeId, Phase, RequestKind, ServerState, Snapshot, View
from cluster.quorum import barrier_passed, missing
from sentinel.actions import Answer, Decision, PutView, Resign, wait
from sentinel.candidates import Chosen, choose, may_lead, standing_promises
from sentinel.evidence import Evidence, Weight, evidence
from sentinel.founding import begin
from sentinel.observe import Observations
from sentinel.rules import adjust
from sentinel.switchover import answer, call_off, proceed
from sentinel.terms import opened, promote, revoke

FOUNDER_LOST_S = 60.0
PROMOTING_MAX_S = 60.0
COLLECT_S = 3.0  # after data loss was accepted, everybody who is there gets so long to promise
MIND_CHANGE_S = 5.0  # a leader on the primary's node hands over only after it has led for so long


def decide(snap: Snapshot, seen: Observations, now: float) -> Decision:
    """Choose the next change to the cluster. `now`: seconds, on the boottime that stamped `seen`."""
    view = snap.view
    if view is None:
        return begin(snap, seen, now)
    if snap.spec.paused and view.phase in (Phase.OPEN, Phase.FOUNDING):
        return _paused(snap)
    match view.phase:
        case Phase.FOUNDING:
            return _founding(view, snap, seen, now)
        case Phase.REVOKING:
            return _revoking(view, snap, seen, now)
        case Phase.PROMOTING:
            return _promoting(view, snap, seen, now)
        case Phase.OPEN:
            return _open(view, snap, seen, now)


def _paused(snap: Snapshot) -> Decision:
    assert snap.view is not None
    if snap.view.handover is not None:
        return call_off(snap.view, "the cluster was paused")
    for request in snap.requests:
        if not request.outcome and request.kind in (RequestKind.SWITCHOVER, RequestKind.FAILOVER, RequestKind.REMOVE):
            return Decision(Answer(request.id, "refused: the cluster is paused: flypg resume"), "paused")
    return wait("the cluster is paused by an operator")


def _founding(view: View, snap: Snapshot, seen: Observations, now: float) -> Decision:
    assert view.primary is not None
    report = snap.reports.get(view.primary)
    if report is not None and report.barrier_term == view.term and report.state is ServerState.PRIMARY:
        text = f"{view.primary} is primary of a new cluster"
        new = replace(opened(view, text), system_id=report.system_id)
        return Decision(PutView(new, "open", text, view.primary), text)
    if (joined := _members(view, snap)) is not None:
        return joined
    if report is None and seen.absent_for(view.primary, now) > FOUNDER_LOST_S and snap.reports:
        able = sorted(r.node for r in snap.reports.values() if not may_lead(r.member, snap.spec))
        if able:
            text = f"{view.primary} went away before it had founded the cluster"
            term = view.term + 1
            rules = tuple(replace(r, term=term, primary=able[0]) for r in view.rules)
            branches = tuple(replace(b, term=term, primary=able[0]) for b in view.branches)
            new = replace(view, term=term, primary=able[0], rules=rules, branches=branches, system_id="", why=text)
            return Decision(PutView(new, "founding", text, able[0]), text)
    return wait(f"{view.primary} founds the cluster" + (f": {report.problem}" if report and report.problem else ""))


def _revoking(view: View, snap: Snapshot, seen: Observations, now: float) -> Decision:
    if (joined := _members(view, snap)) is not None:
        return joined
    for request in snap.requests:
        if request.kind is RequestKind.FAILOVER and not request.outcome and request.accept_data_loss and view.rules:
            lacking = missing(view.rules, set(standing_promises(view, snap)))
            text = f"asked for by {request.asked_by}, accepting data loss" + (f" ({lacking})" if lacking else "")
            new = replace(revoke(view, snap, text), rules=())
            done = ((request.id, f"done: term {new.term} was opened"),)
            return Decision(PutView(new, "failover", text, str(view.deposed), done), text)
        if request.kind is RequestKind.SWITCHOVER and not request.outcome:
            return Decision(Answer(request.id, "refused: a failover is under way"), "failover under way")
    if snap.spec.durability is Durability.ASYNC and (early := _async_wait(view, snap, seen, now)):
        return wait(early)
    lost_rules = not view.rules or snap.spec.durability is Durability.ASYNC
    if lost_rules and now - seen.stage_since < COLLECT_S and not _all_promised(view, snap):
        return wait("every node that is there gets a moment to promise: the furthest is to be chosen")
    counted, among, without = view, None, frozenset[NodeId]()
    if snap.spec.durability is Durability.ASYNC:
        counted, without = replace(view, rules=()), seen.fruitless
        if view.rules:  # nobody has accepted more than the operator's limit
            among = view.near | ({view.deposed} if view.deposed is not None else set())
        if (given_up := _give_up_fetching(view, snap, seen)) is not None:
            return given_up
    chosen = choose(counted, snap, among, without)
    if isinstance(chosen, Chosen):
        rule = chosen.rule
        promised = ", ".join(
            f"{p.node} at {p.position}" for p in sorted(standing_promises(view, snap).values(), key=_name)
        )
        text = f"promised: {promised}; {rule.primary} is furthest and becomes primary of term {view.term} under {rule}"
        new = promote(view, snap, view.term, chosen.promise.position, rule, text)
        return Decision(PutView(new, "phase", text, rule.primary), text)
    if chosen.fetch is not None and chosen.fetch != view.fetch:
        return Decision(
            PutView(replace(view, fetch=chosen.fetch, why=chosen.why), "phase", chosen.why, chosen.fetch.node),
            chosen.why,
        )
    return wait(chosen.why)


def _give_up_fetching(view: View, snap: Snapshot, seen: Observations) -> Decision | None:
    """Durability async only: what the furthest node has and cannot hand on (its WAL was removed, its port is closed) is
    given up, within `max_lag_bytes`: no failover waits for it. The candidate promises anew with what it has got."""
    fetch = view.fetch
    if fetch is not None and fetch.source in seen.fruitless:
        text = (
            f"{fetch.node} could not fetch what {fetch.source} has up to {fetch.until}:"
            " it is given up, as durability async allows"
        )
        return Decision(PutView(replace(view, fetch=None, why=text), "phase", text, fetch.source), text)
    for node in sorted(standing_promises(view, snap)) if fetch is None else ():
        report = snap.reports.get(node)
        if report is not None and report.state is ServerState.STANDBY and report.following in seen.fruitless:
            return wait(f"{node} lets go of {report.following}, and then says where it stands")
    return None


def _name(p: object) -> str:
    return str(getattr(p, "node", ""))


def _all_promised(view: View, snap: Snapshot) -> bool:
    return all(n in standing_promises(view, snap) for n in snap.reports if view.member(n) is not None)


def _async_wait(view: View, snap: Snapshot, seen: Observations, now: float) -> str:
    """With asynchronous durability only the end of the old primary's authority, or its own word, allows a successor."""
    deposed = view.deposed
    if deposed is None or deposed in standing_promises(view, snap):
        return ""
    report = snap.reports.get(deposed)
    if report is not None and report.state in (ServerState.CRASHED, ServerState.STOPPED):
        return ""
    if report is not None:
        return f"{deposed} still holds its lease: with durability async its end is waited for"
    return ""


def _promoting(view: View, snap: Snapshot, seen: Observations, now: float) -> Decision:
    assert view.primary is not None
    report = snap.reports.get(view.primary)
    if barrier_passed(view, report):
        text = f"{view.primary} has passed its barrier in term {view.term}: clients are served"
        return Decision(PutView(opened(view, text), "open", text, view.primary), text)
    if any(p.term > view.term for p in snap.promises.values()):
        return _revoke(view, snap, f"a node has promised a later term than {view.term}")
    found_out = evidence(view, snap, seen, now)
    if found_out.weight > Weight.NONE and _can_fail_over(view, snap):
        return _revoke(view, snap, f"{found_out.why} while it was being promoted")
    if report is None and seen.absent_for(view.primary, now) > PROMOTING_MAX_S / 4:
        return _revoke(view, snap, f"{view.primary} went away while it was being promoted")
    if now - seen.stage_since > PROMOTING_MAX_S:
        return _revoke(view, snap, f"{view.primary} was not primary within {PROMOTING_MAX_S:g} s")
    if (joined := _members(view, snap)) is not None:
        return joined
    if report is not None and report.state is ServerState.PRIMARY and now - seen.stage_since > snap.spec.shrink_after_s:
        shrunk = adjust(view, snap, seen, now)
        if shrunk.action is not None:
            return shrunk
    return wait(f"{view.primary} is being promoted in term {view.term}")


def _open(view: View, snap: Snapshot, seen: Observations, now: float) -> Decision:
    if view.primary in snap.promises and snap.promises[view.primary].term > view.term and view.handover is None:
        return _revoke(view, snap, f"{view.primary} has promised not to serve term {view.term} any more")
    if view.handover is not None:
        handed = proceed(view, snap, seen, now)
        if handed.action is not None or view.handover.stage.value == "stop":
            return handed
    found_out = evidence(view, snap, seen, now)
    if found_out.weight > Weight.NONE:
        return _lost(view, snap, seen, found_out, now)
    if (joined := _members(view, snap)) is not None:
        return joined
    if view.handover is not None:
        return wait(f"switchover to {view.handover.target} is being prepared")
    for request in snap.requests:
        if (
            not request.outcome
            and (answered := answer(view, snap, request, seen.asked_for(request.id, now))) is not None
            and answered.action is not None
        ):
            return answered
    adjusted = adjust(view, snap, seen, now)
    if adjusted.action is not None:
        return adjusted
    if (removed := _remove_dead(view, snap, seen, now)) is not None:
        return removed
    if _should_move(view, snap, seen, now):
        return Decision(
            Resign(), f"this sentinel lives on the primary's node {view.primary}: another one takes the lead"
        )
    return adjusted if found_out.why.endswith("is well") else wait(found_out.why)


def _lost(view: View, snap: Snapshot, seen: Observations, found_out: Evidence, now: float) -> Decision:
    """The primary is lost: open a new term if somebody can take over."""
    if not _can_fail_over(view, snap):
        if (changed := _members(view, snap)) is not None:  # an operator may have lifted a tag
            return changed
        for request in snap.requests if view.handover is None else ():
            if request.kind is RequestKind.FAILOVER and not request.outcome:
                answered = answer(view, snap, request, seen.asked_for(request.id, now))
                assert answered is not None, "a failover is the sentinel's to answer"
                return answered
        there = {m.node for m in view.members if m.node in snap.reports and m.node != view.primary}
        lacking = missing(view.rules, there) or "no node is there that may be primary"
        return wait(f"{found_out.why}, but nobody can take over: {lacking}")
    if found_out.weight is Weight.OBSERVED and seen.silent_failover_at is not None:
        left_s = seen.silent_failover_at + snap.spec.cooldown_s - now
        if left_s > 0:
            return wait(f"{found_out.why}; the last failover without first-hand evidence was too short ago")
    if view.handover is not None:
        outcome = ((view.handover.request, f"refused: {found_out.why}; a failover was begun"),)
        new = revoke(view, snap, found_out.why)
        return Decision(PutView(new, "failover", found_out.why, str(view.primary), outcome), found_out.why)
    return _revoke(view, snap, found_out.why)


def _revoke(view: View, snap: Snapshot, cause: str) -> Decision:
    return Decision(PutView(revoke(view, snap, cause), "failover", cause, str(view.primary)), cause)


def _can_fail_over(view: View, snap: Snapshot) -> bool:
    """Are those who are there enough to revoke the primary, and may one of them lead?"""
    there = {
        m.node
        for m in view.members
        if m.node != view.primary
        and (r := snap.reports.get(m.node)) is not None
        and (r.state is ServerState.STANDBY or m.node in standing_promises(view, snap))
    }
    able = [n for n in there if not may_lead(view.member(n), snap.spec)]
    rules = () if snap.spec.durability is Durability.ASYNC else view.rules
    promised = set(standing_promises(view, snap)) if view.phase is Phase.PROMOTING else set()
    return bool(able) and missing(rules, there | promised) is None


def _members(view: View, snap: Snapshot) -> Decision | None:
    """Take in nodes that have come, and what has changed about those that are there."""
    for node in sorted(snap.reports):
        report = snap.reports[node]
        known = view.member(node)
        if known == report.member or (report.system_id and view.system_id and report.system_id != view.system_id):
            continue
        rest = [m for m in view.members if m.node != node]
        members = tuple(sorted([*rest, report.member], key=lambda m: m.node))
        text = f"{node} {'joined the cluster' if known is None else 'has changed its address or tags'}"
        return Decision(PutView(replace(view, members=members, why=text), "member", text, node), text)
    return None


def _remove_dead(view: View, snap: Snapshot, seen: Observations, now: float) -> Decision | None:
    limit_s = snap.spec.remove_dead_after_s
    if limit_s <= 0:
        return None
    voters = {n for r in view.rules for n in r.voters}
    for member in view.members:
        if member.node not in voters and member.node != view.primary and seen.absent_for(member.node, now) > limit_s:
            text = f"{member.node} was removed: no word of it for {limit_s:g} s"
            members = tuple(m for m in view.members if m.node != member.node)
            return Decision(PutView(replace(view, members=members, why=text), "member", text, member.node), text)
    return None


def _should_move(view: View, snap: Snapshot, seen: Observations, now: float) -> bool:
    leader = snap.leader.sentinel if snap.leader else ""
    if leader != view.primary or now - seen.since < MIND_CHANGE_S:
        return False
    return any(r.sentinel and n != view.primary and r.state is ServerState.STANDBY for n, r in snap.reports.items())
