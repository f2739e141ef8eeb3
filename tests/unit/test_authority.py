"""Until when a node may act as primary: lease, standbys, or nobody who could replace it."""

from __future__ import annotations

import pytest

from cluster.authority import FOREVER, lease_valid_until, standbys_valid_until, valid_until
from cluster.model import LeaseProof, NodeId, Rule, lone_rule

P, A, B, C = (NodeId(name) for name in "pabc")
LEASE = LeaseProof(asked_at=100.0, ttl_s=10.0)
ANY1 = Rule(1, P, frozenset({A, B}), 1)
ANY2 = Rule(1, P, frozenset({A, B, C}), 2)
LONE = lone_rule(1, P)


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    assert lease_valid_until(LEASE, 2.0) == 108.0
    assert lease_valid_until(None, 2.0) == 0.0
    assert lease_valid_until(LeaseProof(100.0, 0.0), 2.0) < 100.0, "a lease that proves nothing"


STANDBYS: list[tuple[str, tuple[Rule, ...], dict[NodeId, float], float]] = [
    ("the latest of two", (ANY1,), {A: 50.0, B: 60.0}, 63.0),
    ("one is enough", (ANY1,), {A: 50.0}, 53.0),
    ("the second latest where two are needed", (ANY2,), {A: 50.0, B: 60.0, C: 55.0}, 58.0),
    ("one is too few", (ANY2,), {A: 50.0}, 0.0),
    ("nobody streams", (ANY1,), {}, 0.0),
    ("one that does not vote", (ANY1,), {C: 60.0}, 0.0),
    ("the weakest of two rules", (ANY1, ANY2), {A: 50.0, B: 60.0}, 53.0),
    ("nobody can speak for a lone rule", (ANY1, LONE), {A: 50.0}, 0.0),
    ("no rule, no proof", (), {A: 50.0}, 0.0),
]


@pytest.mark.parametrize(("story", "rules", "replied", "expected"), STANDBYS, ids=[s[0] for s in STANDBYS])
def test_standbys(story: str, rules: tuple[Rule, ...], replied: dict[NodeId, float], expected: float) -> None:
    assert standbys_valid_until(rules, replied, window_s=3.0) == expected


STORIES: list[tuple[str, tuple[Rule, ...], LeaseProof | None, dict[NodeId, float], bool, float]] = [
    ("the later of both proofs: standbys", (ANY1,), LEASE, {A: 200.0}, False, 203.0),
    ("the later of both proofs: lease", (ANY1,), LEASE, {A: 50.0}, False, 108.0),
    ("etcd is gone, the standbys are there", (ANY1,), None, {A: 200.0}, False, 203.0),
    ("neither", (ANY1,), None, {}, False, 0.0),
    ("alone, nobody can be promoted", (LONE,), None, {}, False, FOREVER),
    ("alone, but about to have voters", (LONE, ANY1), None, {A: 200.0}, False, 0.0),
    ("asynchronous: standbys prove nothing", (ANY1,), LEASE, {A: 200.0}, True, 108.0),
    ("asynchronous: nor does being alone", (LONE,), None, {}, True, 0.0),
    ("no rule is known", (), None, {A: 200.0}, False, 0.0),
]


@pytest.mark.parametrize(
    ("story", "rules", "lease", "replied", "asynchronous", "expected"), STORIES, ids=[s[0] for s in STORIES]
)
def test_valid_until(
    story: str,
    rules: tuple[Rule, ...],
    lease: LeaseProof | None,
    replied: dict[NodeId, float],
    asynchronous: bool,
    expected: float,
) -> None:
    found = valid_until(rules, lease, replied, margin_s=2.0, window_s=3.0, asynchronous=asynchronous)
    assert found == expected
