"""How a term is opened, given to a node, and made public: the views that follow one another. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.forgotten import lost_term
from cluster.model import NOBODY, Branch, Member, NodeId, NodeReport, Phase, Position, Rule, Snapshot, View

MOST_BRANCHES = 60
UNSEEN = 10  # terms and timelines that nodes may have got who are not there when a lost cluster is taken up


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


def taken_up(snap: Snapshot, with_data: Sequence[NodeReport], cause: str) -> View:
    """A cluster that etcd has lost, above all that the nodes know of it. Whoever acknowledged under which rule is not
    known any more, so every one of these nodes must say where it stands before the furthest is chosen."""
    term = max(lost_term(snap), *(p.term for p in snap.promises.values()), 0)
    timelines = [r.checkpoint_timeline for r in with_data]
    timelines += [r.position.timeline for r in with_data if r.position is not None]
    timeline = max(*timelines, 1)
    everybody = Rule(term, NodeId(NOBODY), frozenset(r.node for r in with_data), 1)
    return View(
        term=term + UNSEEN,
        phase=Phase.REVOKING,
        primary=None,
        timeline=timeline,
        rules=(everybody,),
        members=tuple(sorted((r.member for r in snap.reports.values()), key=lambda m: m.node)),
        last_timeline=timeline + UNSEEN,
        system_id=with_data[0].system_id,
        cause=cause,
        why=cause,
    )
