"""Which standbys the primary should wait for, and how the rule changes without a gap (docs/protocol.md). Pure.

A change is joint: the view lists the old rules and the new one until the primary demonstrably runs the new one and has
passed a barrier under it. A failover in between must satisfy all that are listed.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.model import Answer, Durability, NodeId, NodeReport, Phase, Rule, ServerState, Snapshot, View
from cluster.quorum import missing
from sentinel.actions import Decision, PutView, wait
from sentinel.candidates import may_vote, rule_for
from sentinel.observe import Observations

GRACE_S = 5.0  # a voter that says it cannot reach the primary is kept so much longer: a failover may be what is needed
MOST_RULES = 4


def adjust(view: View, snap: Snapshot, seen: Observations, now: float) -> Decision:
    """Bring the rule nearer to the standbys that are there; only while the primary's keeper speaks for this term."""
    assert view.primary is not None and view.rules, "an open or promoting term has a primary and a rule"
    report = snap.reports.get(view.primary)
    if report is None or report.term != view.term or report.state is not ServerState.PRIMARY:
        return wait(f"the keeper of {view.primary} says nothing of term {view.term} yet: its rule stays")
    newest = view.rules[-1]
    cut_off = {n for n in newest.voters if _cut_off(snap.reports.get(n))}
    if report.restarting and missing(view.rules, cut_off) is None:
        # It may not come back, and they can take over then; not if it were to be alone, though it never ran that rule.
        return wait(f"{view.primary} is restarting and its voters do not reach it: its rule stays")
    wanted = desired(view, snap, seen, now)
    if not wanted.same(newest) and len(view.rules) < MOST_RULES:
        wanted = replace(wanted, serial=newest.serial + 1)
        rules = (*(r for r in view.rules if not r.same(wanted)), wanted)
        text = f"{newest} is to become {wanted}: {reason(newest, wanted)}"
        return Decision(PutView(replace(view, rules=rules, why=text), "rule", text, wanted.primary), text)
    near = frozenset(s.node for s in report.standbys if s.caught_up)
    if view.phase is Phase.OPEN and snap.spec.durability is Durability.ASYNC and near != view.near:
        text = f"within {snap.spec.max_lag_bytes} bytes of {view.primary}: {', '.join(sorted(near)) or 'nobody'}"
        return Decision(PutView(replace(view, near=near, why=text)), text)
    if view.phase is Phase.OPEN and len(view.rules) > 1:
        if report.applied == newest:
            text = f"{newest} is in force: {view.primary} runs it and has passed a barrier under it"
            return Decision(PutView(replace(view, rules=(newest,), why=text), "rule", text, newest.primary), text)
        return wait(f"{view.primary} is to apply {newest}")
    return wait(f"rule {newest} stands")


def desired(view: View, snap: Snapshot, seen: Observations, now: float) -> Rule:
    """The rule as it should be now: voters that stream stay, those that left for too long go, those caught up join."""
    spec = snap.spec
    primary = view.primary
    assert primary is not None
    current = view.rules[-1]
    report = snap.reports[primary]
    attached = {s.node: s.caught_up for s in report.standbys}
    voters: set[NodeId] = set()
    for member in view.members:
        node = member.node
        if node == primary or not may_vote(member, spec):
            continue
        if node in current.voters:
            if node in attached or seen.unattached_for(node, now) < _patience(
                snap.reports.get(node), spec.shrink_after_s
            ):
                voters.add(node)
        elif view.phase is Phase.OPEN and attached.get(node) and _well(snap.reports.get(node), view):
            voters.add(node)
    if spec.durability is Durability.STRICT and len(voters) < spec.k:
        voters |= {n for n in current.voters if may_vote(view.member(n), spec)}
    return rule_for(view, spec, view.term, primary, voters)


def _patience(report: NodeReport | None, shrink_after_s: float) -> float:
    return shrink_after_s + (GRACE_S if _cut_off(report) else 0.0)


def _cut_off(report: NodeReport | None) -> bool:
    """Does this node say that it cannot reach the primary?"""
    return (
        report is not None and report.verdict is not None and report.verdict.answer in (Answer.SILENT, Answer.REFUSED)
    )


def _well(report: NodeReport | None, view: View) -> bool:
    return (
        report is not None
        and report.term == view.term
        and report.streaming
        and report.following == view.primary
        and report.state is ServerState.STANDBY
    )


def reason(old: Rule, new: Rule) -> str:
    joined, left = sorted(new.voters - old.voters), sorted(old.voters - new.voters)
    parts = []
    if joined:
        parts.append(f"{', '.join(joined)} {'has' if len(joined) == 1 else 'have'} caught up")
    if left:
        parts.append(f"{', '.join(left)} {'does' if len(left) == 1 else 'do'} not stream, or may not vote")
    if old.k != new.k and not parts:
        parts.append(f"k is {new.k}")
    return "; ".join(parts) or "as the spec says"
