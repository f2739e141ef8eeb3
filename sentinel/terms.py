"""How a term is opened, given to a node, and made public: the views that follow one another. Pure."""

from __future__ import annotations

from dataclasses import replace

from cluster.model import Branch, Member, NodeId, Phase, Position, Rule, Snapshot, View

MOST_BRANCHES = 60


def next_term(view: View, snap: Snapshot) -> int:
    """The term after this one; not below any that a node has promised, since it could not serve a lower one."""
    return max(view.term + 1, *(p.term for p in snap.promises.values()), 0)


def revoke(view: View, snap: Snapshot, cause: str) -> View:
    """Open a new term: nobody is primary, promises are collected for it."""
    return replace(
        view,
        term=next_term(view, snap),
        phase=Phase.REVOKING,
        primary=None,
        deposed=view.primary if view.primary is not None else view.deposed,
        handover=None,
        fetch=None,
        cause=cause,
        why=cause,
    )


def promote(view: View, snap: Snapshot, term: int, position: Position, rule: Rule, why: str) -> View:
    """Give `term` to the primary of `rule`, whose WAL ends at `position`, on a timeline nobody has ever had."""
    seen = [p.position.timeline for p in snap.promises.values()]
    seen += [r.position.timeline for r in snap.reports.values() if r.position is not None]
    timeline = max(view.last_timeline, *seen, 0) + 1
    branch = Branch(term, timeline, rule.primary, position.timeline, position.lsn)
    return replace(
        view,
        term=term,
        phase=Phase.PROMOTING,
        primary=rule.primary,
        deposed=view.primary if view.primary is not None else view.deposed,
        timeline=timeline,
        last_timeline=timeline,
        rules=(*view.rules, rule),
        handover=None,
        fetch=None,
        branches=(*view.branches, branch)[-MOST_BRANCHES:],
        why=why,
    )


def opened(view: View, why: str) -> View:
    """The primary has passed its barrier under the newest rule: only that one counts from here on."""
    branches = tuple(replace(b, opened=True) if b.term == view.term else b for b in view.branches)
    return replace(view, phase=Phase.OPEN, rules=view.rules[-1:], near=frozenset(), branches=branches, why=why)


def found(member: Member, members: tuple[Member, ...], timeline: int, system_id: str) -> View:
    """The first term of a new cluster."""
    node: NodeId = member.node
    return View(
        term=1,
        phase=Phase.FOUNDING,
        primary=node,
        timeline=timeline,
        rules=(Rule(1, node, frozenset(), 0),),
        members=members,
        branches=(Branch(1, timeline, node, 0, 0),),
        last_timeline=timeline,
        system_id=system_id,
        cause="the cluster was founded",
        why=f"{node} founds the cluster",
    )
