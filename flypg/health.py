"""How a cluster is doing, and what a failover would cost now: said from one snapshot of etcd. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.forgotten import lost_term, told
from cluster.model import NodeId, NodeReport, Phase, Rule, ServerState, Snapshot, View
from cluster.quorum import needed
from flypg.look import Looks


@dataclass(frozen=True, slots=True)
class Answer:
    """Yes or no, and why."""

    yes: bool
    why: str


def in_region(snapshot: Snapshot, region: str) -> bool:
    """May a node of `region` vote or lead?"""
    return not snapshot.spec.primary_region or region == snapshot.spec.primary_region


def is_ready_voter(report: NodeReport | None, primary: NodeId) -> bool:
    """Does this standby, as far as etcd knows, stream from `primary` now?"""
    return (
        report is not None
        and report.state is ServerState.STANDBY
        and report.streaming
        and report.following in (primary, None)
    )


def ready_voters(snapshot: Snapshot, rule: Rule, looks: Looks) -> frozenset[NodeId]:
    """The voters that stream as far as etcd knows, and that answered if they were asked."""
    return frozenset(
        n for n in rule.voters if is_ready_voter(snapshot.reports.get(n), rule.primary) and not is_silent(n, looks)
    )


def is_silent(node: NodeId, looks: Looks) -> bool:
    """Was it asked just now, and did not answer? Its report may be younger than its end."""
    return node in looks and looks[node] is None


def can_lead(snapshot: Snapshot, view: View, node: NodeId) -> bool:
    member = view.member(node)
    return member is not None and member.may_lead and in_region(snapshot, member.region)


NOT_ASKED: Looks = {}


def failover_without_loss(snapshot: Snapshot, looks: Looks = NOT_ASKED) -> Answer:
    """If the primary were lost this instant: could another node replace it, with every acknowledged write?"""
    view = snapshot.view
    if view is None:
        return Answer(False, never_founded(snapshot))
    if view.phase is not Phase.OPEN or view.primary is None:
        return Answer(False, f"a change of primary is under way ({view.phase})")
    if snapshot.spec.paused:
        return Answer(False, "the cluster is paused; flypg resume ends that")
    if snapshot.leader is None:
        return Answer(False, "no sentinel leads at the moment")
    for rule in view.rules:
        if rule.lone:
            return Answer(False, f"{rule.primary} acknowledges writes alone: no standby is known to have them")
        ready = ready_voters(snapshot, rule, looks)
        short = needed(rule) - len(ready)
        if short > 0:
            silent = ", ".join(sorted(rule.voters - ready))
            return Answer(False, f"{short} more of {silent} would have to answer for rule {rule}")
    newest = view.rules[-1] if view.rules else None
    if newest is None:
        return Answer(False, "no rule is known")
    candidates = sorted(n for n in ready_voters(snapshot, newest, looks) if can_lead(snapshot, view, n))
    if not candidates:
        return Answer(False, "no standby that is ready may become primary (region, nofailover or priority)")
    return Answer(True, f"{' or '.join(candidates)} would take over")


def never_founded(snapshot: Snapshot) -> str:
    """Why there is no view."""
    return told(snapshot) if lost_term(snapshot) else "this cluster was never founded: start its first agent"


def serving(snapshot: Snapshot) -> Answer:
    """Is there a primary that serves clients?"""
    view = snapshot.view
    if view is None:
        return Answer(False, never_founded(snapshot))
    if view.phase is not Phase.OPEN or view.primary is None:
        return Answer(False, f"no primary is open yet: {view.phase}" + (f" ({view.why})" if view.why else ""))
    report = snapshot.reports.get(view.primary)
    if report is None:
        return Answer(True, f"{view.primary} is primary, but its agent has not been heard of lately")
    if report.state is not ServerState.PRIMARY:
        return Answer(False, f"{view.primary} is to be primary, and is {report.state}")
    return Answer(True, f"{view.primary} is primary")


def role(view: View, node: NodeId) -> str:
    """`primary`, `standby`, or what is between them."""
    if view.primary == node:
        return {Phase.OPEN: "primary", Phase.PROMOTING: "promoting", Phase.FOUNDING: "founding"}.get(
            view.phase, "primary"
        )
    return "standby"


def sync(view: View, node: NodeId) -> str:
    """Do commits wait for this node? `quorum`, `joining`, `leaving`, or `async`; "" for the primary."""
    if view.primary == node or not view.rules:
        return ""
    inside = [node in rule.voters for rule in view.rules]
    if all(inside):
        return "quorum"
    if inside[-1]:
        return "joining"
    return "leaving" if any(inside) else "async"


def complaints(report: NodeReport | None) -> str:
    """What is wrong with a node, in a few words; "" when nothing is."""
    if report is None:
        return "no word from its agent"
    if report.fault:
        return report.fault
    if report.problem:
        return report.problem
    if report.pending_restart:
        return "pending restart: " + ", ".join(report.pending_restart)
    return ""
