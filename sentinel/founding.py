"""How a cluster begins: with the first nodes that come, or anew when etcd has lost what the nodes still have. Pure."""

from __future__ import annotations

from cluster.forgotten import lost_term, told
from cluster.model import NodeReport, RequestKind, ServerState, Snapshot
from sentinel.actions import Answer, Decision, PutView, wait
from sentinel.candidates import ALIVE, may_lead
from sentinel.observe import Observations
from sentinel.terms import found, taken_up

FOUNDING_GRACE_S = 1.0  # nodes that start together are all seen before one of them founds the cluster


def begin(snap: Snapshot, seen: Observations, now: float) -> Decision:
    """There is no view. `now`: seconds, on the boottime that stamped `seen`."""
    if not snap.reports:
        return wait("no node has reported yet")
    if now - seen.since < FOUNDING_GRACE_S:
        return wait("waiting a moment for other nodes before one founds the cluster")
    with_data = [r for r in snap.reports.values() if r.system_id]
    which = ""
    if len({r.system_id for r in with_data}) > 1:
        named = ", ".join(sorted(f"{r.node} ({r.system_id})" for r in with_data))
        which = f"the nodes bring data of different systems: {named}; start only the one to adopt"
    if lost_term(snap):
        return _take_up(snap, with_data, which)
    if which:
        return wait(which)
    able = [r for r in with_data or snap.reports.values() if not may_lead(r.member, snap.spec)]
    if not able:
        return wait("no node may be primary (region, nofailover, priority)")
    best = max(able, key=lambda r: (r.position is not None, r.position or 0, r.member.priority, _reverse(r.node)))
    members = tuple(sorted((r.member for r in snap.reports.values()), key=lambda m: m.node))
    timeline = max(best.checkpoint_timeline, best.position.timeline if best.position else 1, 1)
    view = found(best.member, members, timeline, best.system_id)
    return Decision(PutView(view, "founding", view.why, best.node), view.why)


def _reverse(name: str) -> tuple[int, ...]:
    """Sorts names backwards: of equals, n1 founds."""
    return tuple(-ord(c) for c in name)


def _take_up(snap: Snapshot, with_data: list[NodeReport], objection: str) -> Decision:
    """etcd has lost the cluster. An operator's word takes it up again: everybody with data says where it ends, and the
    furthest becomes primary, as in any failover."""
    asked = next((r for r in snap.requests if not r.outcome), None)
    if asked is None:
        return wait(told(snap))
    if asked.kind is not RequestKind.FAILOVER or not asked.accept_data_loss:
        return Decision(Answer(asked.id, f"refused: {told(snap)}"), "a request, but no cluster")
    voters = [r for r in with_data if r.state in ALIVE or r.state is ServerState.HUNG]
    if not objection and not [r for r in voters if not may_lead(r.member, snap.spec)]:
        objection = "no node that may be primary (region, nofailover, priority) has data"
    if objection:
        return Decision(Answer(asked.id, f"refused: {objection}"), objection)
    names = ", ".join(sorted(r.node for r in voters))
    text = f"etcd had lost the cluster: taken up with what {names} have, asked for by {asked.asked_by}"
    view = taken_up(snap, voters, text)
    done = ((asked.id, f"done: term {view.term} was opened; the furthest of {names} becomes primary"),)
    return Decision(PutView(view, "failover", text, outcomes=done), text)
