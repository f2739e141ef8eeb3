"""Which promises are enough to revoke a primary, and what is then known. Pure.

Theory: a primary acknowledges a commit after k of its n voters have flushed it. When n - k + 1 of them have promised
not to answer it any more, at most k - 1 are left: it can never acknowledge again. And any k voters that once confirmed
a commit meet those n - k + 1 in at least one node, so the furthest promised node has every acknowledged commit
(docs/protocol.md). A promise of the primary itself is worth as much: it has stopped, and nobody has more of its WAL
than it has.

A node is chosen for a term when the promises given for it satisfy every rule of the terms before; then it has all that
was ever acknowledged under those, and nobody can acknowledge anything under them any more. Only that node begins the
timeline of its term. So a promise that stands on this timeline says all that again, should the term be lost before it
was open, and only the rules of that term and of later ones are left to satisfy. Otherwise a failover would need the
promises of nodes that were rewound or copied afresh, from the very node that has everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from cluster.model import NOBODY, NodeId, NodeReport, Phase, Promise, Rule, ServerState, View


def needed(rule: Rule) -> int:
    """How many voters must promise to revoke; more than there are when no number of them suffices (a lone primary)."""
    return len(rule.voters) - rule.k + 1


def satisfied(rule: Rule, promised: Set[NodeId]) -> bool:
    """Can the primary of `rule` never again acknowledge a commit, and do `promised` hold all that it did?"""
    return rule.primary in promised or len(rule.voters & promised) >= needed(rule)


@dataclass(frozen=True, slots=True)
class Missing:
    """What a rule still lacks: `count` more of `nodes`, or the promise of `primary` itself."""

    rule: Rule
    count: int
    nodes: frozenset[NodeId]

    def __str__(self) -> str:
        if self.rule.primary == NOBODY:
            return f"{', '.join(sorted(self.nodes))} must say first where the data ends there"
        if self.rule.lone:
            return f"only {self.rule.primary} itself can say what it acknowledged alone in term {self.rule.term}"
        return (
            f"{self.count} more of {', '.join(sorted(self.nodes))} (or {self.rule.primary} itself) must promise"
            f" for rule {self.rule}"
        )


def missing(rules: Iterable[Rule], promised: Set[NodeId]) -> Missing | None:
    """The first rule that `promised` does not satisfy; None when all are satisfied."""
    for rule in rules:
        if not satisfied(rule, promised):
            return Missing(rule, needed(rule) - len(rule.voters & promised), rule.voters - promised)
    return None


def binding(view: View, promises: Iterable[Promise]) -> tuple[Rule, ...]:
    """The rules that a successor must still satisfy when `promises` were given: those of the newest term on whose
    timeline one of them stands, and of later terms.

    A term that has a lone rule does not speak for earlier ones: with durability async nobody counted when it was given.
    """
    positions = [promise.position for promise in promises]
    for branch in reversed(view.branches):
        own = [rule for rule in view.rules if rule.term == branch.term]
        reached = any(p.timeline == branch.timeline and p.lsn >= branch.fork for p in positions)
        if own and reached and not any(rule.lone for rule in own):
            return tuple(rule for rule in view.rules if rule.term >= branch.term)
    return view.rules


def barrier_passed(view: View, report: NodeReport | None) -> bool:
    """Does the node that was chosen for this term say that it has passed its barrier under the newest rule? From then
    on it acknowledges under that rule, which every later term has to satisfy; the open view only says so to all."""
    return (
        view.phase is Phase.PROMOTING
        and report is not None
        and report.node == view.primary
        and report.state is ServerState.PRIMARY
        and report.barrier_term == view.term
        and report.applied == view.rules[-1]
    )
