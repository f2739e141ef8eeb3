"""Who may become primary, who may vote, and who is to be chosen when enough have promised. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.lineage import on_line
from cluster.model import Durability, Fetch, Member, NodeId, Promise, Rule, ServerState, Snapshot, Spec, View, lone_rule
from cluster.quorum import binding, missing

ALIVE = (ServerState.STANDBY, ServerState.PRIMARY, ServerState.STARTING, ServerState.STOPPED, ServerState.CRASHED)


def in_region(member: Member, spec: Spec) -> bool:
    return not spec.primary_region or member.region == spec.primary_region


def may_lead(member: Member | None, spec: Spec) -> str:
    """Why this node may not be primary; "" when it may."""
    if member is None:
        return "it is not a member"
    if member.nofailover:
        return f"{member.node} is tagged nofailover"
    if member.priority <= 0:
        return f"{member.node} has priority 0"
    if not in_region(member, spec):
        return f"{member.node} is in region {member.region or 'none'}, not in {spec.primary_region}"
    return ""


def may_vote(member: Member | None, spec: Spec) -> bool:
    return member is not None and not member.nosync and in_region(member, spec)


@dataclass(frozen=True, slots=True)
class Chosen:
    """`promise.node` is to become primary under `rule`."""

    promise: Promise
    rule: Rule


@dataclass(frozen=True, slots=True)
class NotYet:
    """Nobody can be chosen, because …; or first `fetch` has to happen."""

    why: str
    fetch: Fetch | None = None


def standing_promises(view: View, snap: Snapshot) -> dict[NodeId, Promise]:
    """The promises of members that are good for this term."""
    return {
        m.node: snap.promises[m.node]
        for m in view.members
        if m.node in snap.promises and snap.promises[m.node].term >= view.term
    }


def choose(
    view: View, snap: Snapshot, among: frozenset[NodeId] | None = None, without: frozenset[NodeId] = frozenset()
) -> Chosen | NotYet:
    """The furthest of those whose promises are enough. Counted are first the nodes that are there; when they are not
    enough, the promises of nodes that have gone count too, and the candidate must have reached those as well.

    `among`: the candidates; None: every node that may be primary. `without`: nodes whose WAL is given up (async)."""
    promises = standing_promises(view, snap)
    present = {n: p for n, p in promises.items() if n in snap.reports and snap.reports[n].state in ALIVE}
    counted = present
    lacking = missing(binding(view, present.values()), set(present))
    if lacking is not None:
        if missing(binding(view, promises.values()), set(promises)) is not None:
            return NotYet(f"term {view.term}: {lacking}")
        counted = promises
    if not present:
        return NotYet(f"term {view.term}: no node that has promised is there")
    reachable = [p for n, p in counted.items() if n not in without] or list(counted.values())
    furthest = max(reachable, key=lambda p: (p.position, p.node))
    able = [p for n, p in present.items() if not may_lead(view.member(n), snap.spec)]
    if among is not None:
        able = [p for p in able if p.node in among]
    if not able and among is not None:
        return NotYet(
            f"nobody who may be primary was within {snap.spec.max_lag_bytes} bytes of {view.deposed} when it last"
            " spoke: wait for it, or flypg failover --accept-data-loss"
        )
    if not able:
        return NotYet(f"{furthest.node} is furthest at {furthest.position}, but none that has promised may be primary")

    def rank(p: Promise) -> tuple[object, ...]:
        member = view.member(p.node)
        assert member is not None, "only members' promises count"
        standby = snap.reports[p.node].state is ServerState.STANDBY
        return (p.position, standby, member.priority, p.node != view.deposed, p.node)

    best = max(able, key=rank)
    if best.position < furthest.position:
        if furthest.node not in present:
            return NotYet(
                f"{furthest.node} has WAL up to {furthest.position} that may be acknowledged, and is not there"
            )
        return NotYet(
            f"{furthest.node} is furthest at {furthest.position} but may not be primary;"
            f" {best.node} first fetches what it lacks from it",
            Fetch(best.node, furthest.node, furthest.position),
        )
    return Chosen(best, first_rule(view, snap, best, present))


def first_rule(view: View, snap: Snapshot, chosen: Promise, present: dict[NodeId, Promise]) -> Rule:
    """The rule of a new term: the promised standbys on the chosen one's history that may vote."""
    voters = {
        n
        for n, p in present.items()
        if n != chosen.node
        and p.position <= chosen.position
        and on_line(view.branches, p.position, chosen.position.timeline)
        and snap.reports[n].state is ServerState.STANDBY
        and may_vote(view.member(n), snap.spec)
    }
    return rule_for(view, snap.spec, view.term, chosen.node, voters)


def rule_for(view: View, spec: Spec, term: int, primary: NodeId, voters: set[NodeId]) -> Rule:
    """The rule that the operator's durability makes of these voters."""
    if spec.durability is Durability.ASYNC:
        return lone_rule(term, primary)
    if spec.durability is Durability.STRICT and len(voters) < spec.k:
        others = {m.node for m in view.members if m.node != primary and may_vote(m, spec)}
        voters = voters | others
        return (
            Rule(term, primary, frozenset(voters), min(spec.k, max(len(voters), 1)))
            if voters
            else _nobody(term, primary)
        )
    if not voters:
        return lone_rule(term, primary)
    return Rule(term, primary, frozenset(voters), min(spec.k, len(voters)))


def _nobody(term: int, primary: NodeId) -> Rule:
    """Strict without any other member: commits wait until there is one."""
    return Rule(term, primary, frozenset({NodeId("flypg_nobody")}), 1)
