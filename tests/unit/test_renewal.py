"""When a node's certificate is renewed, whom it names, and whose certificates are verified."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.renewal import DAY_S, Held, Wanted, all_names, own_names, usable, verifiable, why_new
from cluster.model import Member, NodeId, Ports
from cluster.trust import (
    Authorities,
    Authority,
    Shown,
    Trust,
    decode_authorities,
    decode_shown,
    encode_authorities,
    encode_shown,
)
from cluster.x509 import Certificate
from tests.unit.stories import view as view_of

NOW = 1_800_000_000.0
NAMES = frozenset({"localhost", "h1"})
CERTIFICATE = Certificate("f1", "n1", "flypg authority", NOW - 10 * DAY_S, NOW + 355 * DAY_S, NAMES)
HELD = Held(CERTIFICATE, "a1", 3)
WANTED = Wanted("a1", NOW + 3000 * DAY_S, 3, NAMES)


def lasting(days: float) -> Held:
    return replace(HELD, certificate=replace(CERTIFICATE, not_before=NOW - (365 - days) * DAY_S,
                                             not_after=NOW + days * DAY_S))  # fmt: skip


STORIES = [
    ("nothing is there", None, WANTED, "there is none"),
    ("a fresh one stays", HELD, WANTED, ""),
    ("two thirds of its life are not over", lasting(125), WANTED, ""),
    ("a third of its life is left", lasting(120), WANTED, "it ends in 120 days"),
    ("it has ended", lasting(-1), WANTED, "it has ended"),
    ("the authority ends first: a new one would not last longer", lasting(20),
     replace(WANTED, authority_ends=NOW + 20 * DAY_S), ""),
    ("an operator rotates", HELD, replace(WANTED, round=4), "an operator has asked for new ones"),
    ("a node that rotated before it heard of it again", HELD, replace(WANTED, round=2), ""),
    ("a new authority signs", HELD, replace(WANTED, authority="a2"), "it is signed by another authority"),
    ("a node joined", HELD, replace(WANTED, names=NAMES | {"h2"}), "it does not name h2"),
    ("a node left: what it names too much does not matter", HELD, replace(WANTED, names=frozenset({"h1"})), ""),
    ("it was made while the clock was ahead",
     replace(HELD, certificate=replace(CERTIFICATE, not_before=NOW + DAY_S)), WANTED,
     "it does not hold yet: a clock was wrong"),
]  # fmt: skip


@pytest.mark.parametrize(("story", "held", "wanted", "expected"), STORIES, ids=[s[0] for s in STORIES])
def test_when_it_is_renewed(story: str, held: Held | None, wanted: Wanted, expected: str) -> None:
    assert why_new(held, wanted, NOW) == expected


def names(**given: object) -> tuple[str, ...]:
    usual: dict[str, object] = {
        "hostname": "vm",
        "host": "10.0.0.1",
        "listen": ("*",),
        "addresses": (),
        "fly": {},
        "more": "",
    }
    return own_names(**usual | given)  # type: ignore[arg-type]


def test_a_node_names_what_it_is_reached_by() -> None:
    assert names() == ("localhost", "127.0.0.1", "::1", "10.0.0.1", "vm")
    assert set(names(addresses=("192.168.1.5", "fe80::1", "fdaa::7"))) >= {"192.168.1.5", "fdaa::7"}
    assert "fe80::1" not in names(addresses=("fe80::1",)), "nobody can verify an address of one link"
    assert "192.168.1.5" not in names(listen=("10.0.0.1",), addresses=("192.168.1.5",)), "it does not listen there"
    assert "10.9.9.9" in names(listen=("10.9.9.9",))
    assert "db.example" in names(more="DB.example, other")


def test_on_fly_it_has_flys_names() -> None:
    found = names(fly={"FLY_APP_NAME": "pg", "FLY_MACHINE_ID": "91857", "FLY_PRIVATE_IP": "fdaa:0:1::3"})
    expected = {"pg.internal", "*.pg.internal", "91857.vm.pg.internal", "pg.flycast", "pg.fly.dev", "fdaa:0:1::3"}
    assert expected <= set(found)


def test_what_cannot_be_in_a_certificate_is_left_out() -> None:
    assert usable(["", "0.0.0.0", "a b", "*", "[fdaa::1]", "fe80::1%eth0", "a", "A", "x_y"]) == ("fdaa::1", "a", "x_y")


N1, N2 = NodeId("n1"), NodeId("n2")
PORTS = Ports()
VIEW = replace(view_of(), members=(Member(N1, "h1"), Member(N2, "h2")))


def shown(node: NodeId, **given: object) -> Shown:
    usual = Shown(node, fingerprint="f", authority="a1", not_after=NOW + DAY_S, names=(f"{node}.example",))
    return replace(usual, **given)  # type: ignore[arg-type]


def trust(*nodes: Shown) -> Trust:
    return Trust(Authorities((Authority("PEM", "a1"),), 1, 1, 1, 7), {s.node: s for s in nodes})


def test_every_certificate_names_every_node() -> None:
    """HAProxy passes TLS through: a client of h1 may see the certificate of h2."""
    assert all_names(("h1",), VIEW, {N2: shown(N2)}) == {"h1", "h2", "n2.example"}
    assert all_names(("h1",), None, {}) == {"h1"}


WHO = [
    ("signed by an authority we trust", shown(N2), True),
    ("of an older version: it has told nothing", None, False),
    ("TLS is off there", shown(N2, fingerprint=""), False),
    ("it has ended: encrypted is better than not connected", shown(N2, not_after=NOW - 1), False),
    ("of an authority that is retired", shown(N2, authority="a0"), False),
    ("an operator's, of an authority nobody was given", shown(N2, own=True, authority=""), False),
    ("an operator's, with its authority", shown(N2, own=True, authority="", ca="PEM"), True),
]


@pytest.mark.parametrize(("story", "said", "expected"), WHO, ids=[s[0] for s in WHO])
def test_who_is_verified(story: str, said: Shown | None, expected: bool) -> None:
    found = verifiable(trust(*([said] if said is not None else [])), VIEW, NOW)
    assert (("h2", PORTS.postgres) in found) is expected


def test_what_is_kept_in_etcd_is_read_again() -> None:
    agreed = Authorities((Authority("A", "a1", "X", "sealed"), Authority("B", "a0")), 2, 5, 2)
    assert decode_authorities(encode_authorities(agreed), "k") == agreed
    said = shown(N2, own=True, ca="PEM", required=True, problem="p", round=4)
    assert decode_shown(encode_shown(said), "k") == said
    assert "sealed" not in repr(agreed)
