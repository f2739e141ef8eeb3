"""Which promises revoke a primary, told as a table and then tried out for every small cluster there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from cluster.model import Branch, NodeId, Promise, Rule, lone_rule
from cluster.quorum import binding, missing, needed, satisfied
from tests.unit import stories

P, A, B, C, D = (NodeId(name) for name in "pabcd")


def rule(k: int, *voters: NodeId) -> Rule:
    return Rule(1, P, frozenset(voters), k)


STORIES: list[tuple[str, Rule, set[NodeId], bool]] = [
    ("of two, one may be the one that confirmed", rule(1, A, B), {A}, False),
    ("of two, both", rule(1, A, B), {A, B}, True),
    ("two confirmations of two: either has everything", rule(2, A, B), {A}, True),
    ("two of three: two must promise", rule(2, A, B, C), {A}, False),
    ("two of three: two do", rule(2, A, B, C), {A, C}, True),
    ("one of one", rule(1, A), {A}, True),
    ("nobody promised", rule(1, A), set(), False),
    ("promises of those who do not vote count nothing", rule(1, A, B), {A, C, D}, False),
    ("the primary itself is enough", rule(1, A, B), {P}, True),
    ("a lone primary has no successor", lone_rule(1, P), {A, B, C}, False),
    ("but it may come back itself", lone_rule(1, P), {P}, True),
]


@pytest.mark.parametrize(("story", "one", "promised", "expected"), STORIES, ids=[s[0] for s in STORIES])
def test_satisfied(story: str, one: Rule, promised: set[NodeId], expected: bool) -> None:
    assert satisfied(one, promised) is expected
    assert (missing([one], promised) is None) is expected


def subsets(nodes: frozenset[NodeId]) -> list[frozenset[NodeId]]:
    return [frozenset(c) for size in range(len(nodes) + 1) for c in combinations(sorted(nodes), size)]


@pytest.mark.parametrize("n", range(1, 7))
def test_in_every_cluster_promises_stop_commits_and_hold_them_all(n: int) -> None:
    """Exactly when satisfied: no k voters are left to confirm, and every k that ever did meet the promised."""
    voters = frozenset(NodeId(f"v{number}") for number in range(n))
    for k in range(1, n + 1):
        one = rule(k, *voters)
        quorums = [q for q in subsets(voters) if len(q) == k]
        for promised in subsets(voters):
            cannot_confirm = len(voters - promised) < k
            holds_all = all(quorum & promised for quorum in quorums)
            assert satisfied(one, promised) == cannot_confirm == holds_all


def test_while_rules_change_both_must_be_satisfied() -> None:
    old, new = rule(1, A, B), rule(1, B, C)
    assert missing([old, new], {A, B, C}) is None
    assert missing([old, new], {B, C}) is not None, "a alone may have what the old rule confirmed"
    lacking = missing([old, new], {A, B})
    assert lacking is not None and lacking.rule == new
    assert (lacking.count, lacking.nodes) == (1, frozenset({C}))


def test_what_is_missing_is_said_by_name() -> None:
    assert str(missing([rule(1, A, B)], {A})) == (
        "1 more of b (or p itself) must promise for rule ANY 1 (a, b) for p (term 1)"
    )
    assert str(missing([lone_rule(3, P)], {A})) == "only p itself can say what it acknowledged alone in term 3"


def test_a_lone_rule_needs_more_than_there_are() -> None:
    assert needed(lone_rule(1, P)) == 1 > len(lone_rule(1, P).voters)


def test_no_rule_in_force_asks_for_nothing() -> None:
    assert missing([], set()) is None


def test_of_several_terms_that_never_opened_the_newest_that_was_reached_speaks() -> None:
    first, second, third = rule(1, A, B), replace(rule(1, P, B), term=2, primary=A), replace(rule(1, P, A), term=3)
    branches = tuple(Branch(term, term, P, term - 1, 100) for term in (1, 2, 3))
    view = stories.view(term=4, rules=(first, second, third), branches=branches)

    def left(*promises: Promise) -> tuple[Rule, ...]:
        return binding(view, promises)

    assert left() == view.rules
    assert left(stories.promise(A, 500, timeline=1)) == view.rules
    assert left(stories.promise(A, 100, timeline=2)) == (second, third)
    assert left(stories.promise(A, 500, timeline=2), stories.promise(B, 120, timeline=3)) == (third,)
    assert left(stories.promise(A, 500, timeline=2), stories.promise(B, 90, timeline=3)) == (second, third)
