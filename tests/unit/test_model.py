"""The values everything else is made of: positions, rules, names."""

from __future__ import annotations

import pytest

from cluster.model import (
    Member,
    NodeId,
    Phase,
    Position,
    Rule,
    Upstream,
    View,
    format_lsn,
    lone_rule,
    parse_lsn,
    slot_name,
    stamped,
    unstamped,
)

A, B = NodeId("a"), NodeId("b")

LSNS = [("0/0", 0), ("0/3000060", 0x3000060), ("22/3000060", 0x2203000060), ("FFFFFFFF/FFFFFFFF", (1 << 64) - 1)]


@pytest.mark.parametrize(("text", "lsn"), LSNS)
def test_lsn(text: str, lsn: int) -> None:
    assert parse_lsn(text) == lsn
    assert format_lsn(lsn) == text


@pytest.mark.parametrize(
    "text", ["", "/", "1", "1/", "/1", "g/1", "1/1/1", "123456789/0", "-1/0", " 1/2", "1/2\n", "0x1/2"]
)
def test_no_lsn(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        parse_lsn(text)


def test_a_newer_timeline_counts_before_a_longer_log() -> None:
    positions = [Position(2, 1), Position(1, 100), Position(2, 5), Position(1, 7)]
    assert sorted(positions) == [Position(1, 7), Position(1, 100), Position(2, 1), Position(2, 5)]
    assert str(Position(2, 0x3000060)) == "0/3000060 on timeline 2"


NAMES = [
    ("n1_t7", (NodeId("n1"), 7)),
    ("a_t1_t2", (NodeId("a_t1"), 2)),
    ("n1_t0", (NodeId("n1"), 0)),
    ("n1", None),
    ("n1_t", None),
    ("n1_tx", None),
    ("n1_t-1", None),
    ("n1_t²", None),
    ("_t1", None),
    ("N1_t1", None),
    ("n-1_t1", None),
    ("pg_basebackup", None),
]


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_replication_names(name: str, expected: tuple[NodeId, int] | None) -> None:
    assert unstamped(name) == expected
    if expected is not None:
        assert stamped(*expected) == name


def test_an_upstream_names_its_term() -> None:
    assert Upstream(B, "h", 5433, 4).application_name(A) == "a_t4"
    assert slot_name(A) == "flypg_a"


def test_a_rule_that_comes_back_asks_for_the_same_but_is_another() -> None:
    first, again = Rule(1, A, frozenset({B}), 1, serial=1), Rule(1, A, frozenset({B}), 1, serial=3)
    assert first.same(again) and first != again
    assert not first.same(lone_rule(1, A))
    assert lone_rule(1, A).lone and not first.lone
    assert str(lone_rule(1, A)) == "a alone (term 1)"


MAY_LEAD = [
    ("an ordinary node", Member(A, "h"), True),
    ("told not to", Member(A, "h", nofailover=True), False),
    ("without priority", Member(A, "h", priority=0), False),
    ("no voter, but it may lead", Member(A, "h", nosync=True), True),
]


@pytest.mark.parametrize(("story", "member", "expected"), MAY_LEAD, ids=[m[0] for m in MAY_LEAD])
def test_who_may_lead(story: str, member: Member, expected: bool) -> None:
    assert member.may_lead is expected


def test_a_view_knows_its_members_and_its_newest_rule() -> None:
    view = View(1, Phase.OPEN, A, 1, (lone_rule(1, A), Rule(1, A, frozenset({B}), 1)), (Member(A, "h"),))
    assert view.member(A) == Member(A, "h")
    assert view.member(B) is None and view.member(None) is None
    assert view.rule == view.rules[-1]
    assert View(1, Phase.REVOKING, None, 1, ()).rule is None
