"""flypg tls: what is asked for, what is waited for, and what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.model import Member, NodeId
from cluster.trust import Authorities, Authority, Shown, Trust
from flypg.commands.tls import Seen, asked, ends, missing, retired, says
from flypg.reply import Refused
from tests.unit.stories import snap, view

N1, N2 = NodeId("n1"), NodeId("n2")
A1, A2 = Authority("PEM1", "a1", key="sealed"), Authority("PEM2", "a2", cross="X", key="sealed")
ONE = Authorities((A1,), number=1, round=1, wanted=1, modified=7)
TWO = Authorities((A2, replace(A1, key="")), number=2, round=2, wanted=2, modified=9)


def seen(authorities: Authorities, *nodes: Shown) -> Seen:
    members = (Member(N1, "h1"), Member(N2, "h2"))
    return Seen(snap(replace(view(), members=members)), Trust(authorities, {s.node: s for s in nodes}))


def shown(node: NodeId, authority: str = "a1", round: int = 1) -> Shown:
    return Shown(node, fingerprint="f", authority=authority, round=round, not_after=2e9)


def test_a_rotation_is_a_wish_that_nodes_follow() -> None:
    assert asked(ONE, ca=False) == replace(ONE, round=2)
    assert asked(ONE, ca=True) == replace(ONE, wanted=2)


def test_what_cannot_be_rotated_says_why() -> None:
    for authorities, ca, why in (
        (Authorities(), False, "no authority"),
        (TWO, True, "still trusted"),
        (replace(ONE, wanted=2), True, "asked for already"),
    ):
        with pytest.raises(Refused, match=why):
            asked(authorities, ca=ca)


WAITING = [
    ("everybody has followed", seen(ONE, shown(N1), shown(N2)), 1, None, []),
    ("one is late", seen(ONE, shown(N1, round=2), shown(N2)), 2, None, ["n2"]),
    ("and says why", seen(ONE, replace(shown(N1), problem="sealed"), shown(N2, round=2)), 2, None, ["n1 (sealed)"]),
    (
        "the new authority is not there yet",
        seen(ONE, shown(N1), shown(N2)),
        1,
        frozenset({"a1"}),
        ["the new authority"],
    ),
    ("it is, and one is late", seen(TWO, shown(N1, "a2", 2), shown(N2)), 1, frozenset({"a1"}), ["n2"]),
    (
        "an operator's certificate is not waited for",
        seen(ONE, shown(N1), replace(shown(N2, "", 0), own=True)),
        1,
        None,
        [],
    ),
    ("nor a node of an older version", seen(ONE, shown(N1)), 1, None, []),
]


@pytest.mark.parametrize(("story", "at", "round", "before", "expected"), WAITING, ids=[s[0] for s in WAITING])
def test_what_is_waited_for(
    story: str, at: Seen, round: int, before: frozenset[str] | None, expected: list[str]
) -> None:
    assert list(missing(at, round, before)) == expected


def test_a_retired_authority_is_gone_from_chains_too() -> None:
    assert retired(TWO) == replace(TWO, trusted=(replace(A2, cross=""),), round=3)


def test_what_a_port_shows() -> None:
    assert (says(None, None), says(None, b"")) == ("no answer", "no TLS")
    assert says(shown(N1), b"something") == "another"
    assert ends(86400 * 20.0, 0.0) == "ends 1970-01-21, in 20 days"
    assert ends(0.0, 86400.0) == "ENDED 1970-01-01"
