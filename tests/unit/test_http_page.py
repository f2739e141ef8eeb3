"""The page and the description of the commands, without a server."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from cluster.model import Branch, Event, Handover, HandoverStage, NodeId, Phase, Snapshot, Spec
from healthchecks.commands.openapi import description
from healthchecks.commands.route import Call, CommandError, checked_name
from healthchecks.commands.routes import ROUTES
from healthchecks.commands.serve import private
from healthchecks.node import cluster_json, node_json
from healthchecks.page import Seen, ago, document, parts, stamp
from healthchecks.role import Claim, Facts, Role
from tests.support.http_node import (
    N1,
    N2,
    N3,
    TestNode,
    member,
    open_snapshot,
    primary_instance,
    standby_instance,
    walsender,
)

VOID = {"meta", "link"}


class Strict(HTMLParser):
    """Every tag is closed in order, ids are unique, nothing is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"] or "")
        for name in ("src", "href"):
            assert not (given.get(name) or "").startswith(("http", "//")), given
        assert not any(name.startswith("on") or name == "style" for name in given), given
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def look(node: NodeId) -> dict[str, Any]:
    local = primary_instance(walsenders=(walsender(), walsender("n3_t3", 4.2))) if node == N1 else standby_instance()
    given = Facts(100.0, node, open_snapshot(), 0.5, local, 0.5, 104.0)
    return node_json(given, Claim(Role.PRIMARY if node == N1 else Role.STANDBY, ""), member(node), None)


def with_view(**changes: Any) -> Snapshot:
    snapshot = open_snapshot()
    assert snapshot.view is not None
    return replace(snapshot, view=replace(snapshot.view, **changes))


BRANCHES = (Branch(1, 1, N2, 0, 0, True), Branch(2, 2, N3, 1, 0x2000000, False), Branch(3, 3, N1, 1, 0x2000000, True))
EVENTS = (Event(1795934000.0, 3, "failover", "postmaster of n2 died <script>alert(1)</script>", "n1", "n3"),)


def seen(snapshot: Snapshot | None = None, **more: Any) -> Seen:
    given = Seen(
        "<b>",
        N1,
        1795934100.0,
        snapshot or with_view(branches=BRANCHES),
        0.5,
        {n: look(n) for n in (N1, N2, N3)},
        EVENTS,
    )
    return replace(given, **more)


def test_the_page_is_well_formed_self_contained_and_escapes_everything() -> None:
    page = document(seen(), "nonce")
    strict = Strict()
    strict.feed(page)
    assert strict.open == []
    assert len(strict.ids) == len(set(strict.ids))
    assert set(parts(seen())) <= set(strict.ids)
    assert "<script>alert" not in page and "<b> as seen" not in page
    for words in (
        "n1 is primary (term 3)",
        "Nothing would be lost",
        "96 B, 4.2s",
        "never opened",
        "2 min ago",
        "ANY 1",
    ):
        assert words in strict.text, words


HANDOVER = Handover(N2, "r", HandoverStage.STOP)
GONE: dict[NodeId, Any] = {N1: {"role": None, "why": "PostgreSQL is down", "postgres": None}, N2: None, N3: look(N3)}
BANNERS = [
    ("healthy", seen(), "good", "n1 is primary (term 3)"),
    ("nothing known", replace(seen(), snapshot=None), "bad", "No cluster is known"),
    ("revoking", seen(with_view(phase=Phase.REVOKING, primary=None)), "bad", "There is no primary (term 3, revoking)"),
    ("promoting", seen(with_view(phase=Phase.PROMOTING)), "bad", "n1 becomes primary (term 3, promoting)"),
    ("primary does not serve", seen(looks=GONE), "bad", "n1 should be primary"),
    ("switchover", seen(with_view(handover=HANDOVER)), "warn", "A switchover to n2 is under way"),
    ("paused", seen(replace(open_snapshot(), spec=Spec(paused=True))), "warn", "Paused by an operator"),
    ("etcd is silent", seen(snapshot_age_s=60.0), "warn", "etcd has not answered this node for 1 min"),
]


@pytest.mark.parametrize(("story", "given", "kind", "words"), BANNERS, ids=[s[0] for s in BANNERS])
def test_the_banner_says_who_is_primary(story: str, given: Seen, kind: str, words: str) -> None:
    banner = parts(given)["banner"]
    assert f"banner {kind}" in banner and words in banner
    strict = Strict()
    strict.feed(document(given, "n"))
    assert strict.open == []


def test_times_are_for_people() -> None:
    assert [ago(s) for s in (0, 59, 61, 7200, 200000, float("inf"), -5)] == [
        "0 s",
        "59 s",
        "1 min",
        "2 h",
        "2 days",
        "ever",
        "0 s",
    ]
    assert stamp(0) == "1970-01-01T00:00:00Z"


def test_node_and_cluster_are_json_without_infinity() -> None:
    given = Facts(
        100.0, N1, open_snapshot(), float("inf"), primary_instance(walsenders=(walsender(),)), 0.5, float("inf")
    )
    found = node_json(given, Claim(Role.PRIMARY, ""), member(N1), None)
    json.dumps(found, allow_nan=False)
    assert (found["authority_forever"], found["authority_s"], found["etcd_age_s"]) == (True, None, None)
    assert found["postgres"]["standbys"][0]["node"] == "n2"
    cluster = cluster_json("test", open_snapshot(), 0.5)
    json.dumps(cluster, allow_nan=False)
    assert [m["role"] for m in cluster["members"]] == ["leader", "quorum_standby", "quorum_standby"]
    assert cluster_json("test", None, float("inf"))["members"] == []


def test_the_commands_are_described_one_by_one() -> None:
    found = description(ROUTES, "1")
    listed = {(path, method) for path, methods in found["paths"].items() for method in methods}
    assert listed == {(route.path, route.method.lower()) for route in ROUTES}
    operations = [op["operationId"] for methods in found["paths"].values() for op in methods.values()]
    assert len(operations) == len(set(operations))
    json.dumps(found)


def call(body: bytes) -> Call:
    return Call(TestNode("unused"), "test", {}, body)


BODIES = [b"", b"{", b"[]", b'{"name": 5}', b"\xff", b"[" * 5000]


@pytest.mark.parametrize("body", BODIES)
def test_a_bad_body_is_refused(body: bytes) -> None:
    with pytest.raises(CommandError) as caught:
        call(body).fields(name=str)
    assert caught.value.status == 400


@pytest.mark.parametrize("name", ["", "x" * 64, "ä" * 32, "a\0b", "\ud800", 5, None])
def test_a_name_that_postgresql_would_change_is_refused(name: object) -> None:
    with pytest.raises(CommandError):
        checked_name(name)


PLACES = [("127.0.0.1", True), ("::1", True), ("fdaa:0:1::2", True), ("10.1.2.3", True), ("192.168.1.1", True)]
PLACES += [("fe80::1%eth0", True), ("::ffff:10.0.0.1", True), ("::ffff:8.8.8.8", False)]
PLACES += [("8.8.8.8", False), ("2606:4700::1", False), ("", False), ("nonsense", False)]


@pytest.mark.parametrize(("address", "expected"), PLACES)
def test_private_networks(address: str, expected: bool) -> None:
    assert private(address) is expected
