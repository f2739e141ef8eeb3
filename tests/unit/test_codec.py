"""What is written to etcd and to disk, and what is refused when it comes back."""

from __future__ import annotations

import json

import pytest

from cluster import codec
from cluster.errors import StoredFormatError
from cluster.keys import Keys
from cluster.model import (
    Answer,
    Branch,
    Disk,
    Durability,
    Event,
    Fetch,
    Handover,
    HandoverStage,
    Member,
    NodeId,
    NodeReport,
    Phase,
    Ports,
    Position,
    Promise,
    Request,
    RequestKind,
    Rule,
    ServerState,
    Spec,
    StandbySeen,
    Verdict,
    View,
)

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
RULE = Rule(3, A, frozenset({C, B}), 1)
VIEW = View(
    term=3,
    phase=Phase.OPEN,
    primary=A,
    timeline=2,
    rules=(RULE, Rule(3, A, frozenset(), 0)),
    members=(Member(A, "fdaa::1", region="ams", priority=0), Member(B, "10.0.0.2", Ports(proxy=15432), nosync=True)),
    deposed=B,
    handover=Handover(C, "r1", HandoverStage.STOP),
    fetch=Fetch(B, C, Position(2, 0x3000060)),
    branches=(Branch(1, 1, B, 0, 0, True), Branch(3, 2, A, 1, 77)),
    last_timeline=4,
    system_id="7300000000000000001",
    cause="postmaster of b died",
    why="ünicode, too",
)
REPORT = NodeReport(
    member=Member(B, "h"),
    run="x",
    state=ServerState.PRIMARY,
    term=3,
    position=Position(1, 1 << 62),
    following=A,
    streaming=True,
    verdict=Verdict(3, A, Answer.SILENT),
    applied=RULE,
    standbys=(StandbySeen(C, True),),
    pending_restart=("shared_buffers",),
    sentinel=False,
)
VALUES = [
    VIEW,
    View(0, Phase.REVOKING, None, 1, ()),
    REPORT,
    NodeReport(Member(A, "h"), "x", ServerState.ABSENT),
    Spec(),
    Spec(
        durability=Durability.ASYNC,
        suspect_after_s=0.5,
        parameters=(("work_mem", "8MB"),),
        hba=("host all all all md5",),
    ),
    Promise(A, 3, Position(1, 2)),
    Request("r", RequestKind.FAILOVER, None, "me", accept_data_loss=True),
    Event(1.5, 2, "failover", "text"),
    Disk(),
    Disk(3, Promise(A, 3, Position(1, 2)), Position(1, 1), True, 2),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_what_was_written_is_read_back(value: codec.Stored) -> None:
    data = codec.encode(value)
    assert codec.decode(type(value), data, "/k") == value
    assert codec.encode(codec.decode(type(value), data, "/k")) == data


def test_equal_values_have_equal_bytes() -> None:
    other = Rule(3, A, frozenset(["b", "c"]), 1)  # type: ignore[list-item]
    left = codec.encode(View(3, Phase.OPEN, A, 1, (other,)))
    assert left == codec.encode(View(3, Phase.OPEN, A, 1, (RULE,)))
    assert left.startswith(b'{"format_version":1,"phase":"open",')


def test_defaults_are_left_out() -> None:
    assert codec.encode(Spec()) == b'{"format_version":1}'
    assert codec.decode(Spec, b'{"format_version":1,"k":2}', "/k") == Spec(k=2)


def test_a_whole_number_is_a_number_of_seconds() -> None:
    value = codec.decode(Spec, b'{"format_version":1,"cooldown_s":3}', "/k").cooldown_s
    assert value == 3.0 and isinstance(value, float)


REFUSED = [
    ("not JSON", b"{", "not JSON"),
    ("not an object", b"[]", "not an object"),
    ("no version", b"{}", "format_version None"),
    ("a later version", b'{"format_version":2}', "format_version 2 is not known"),
    ("true is no version", b'{"format_version":true}', "format_version True"),
    ("an unknown field", b'{"format_version":1,"node":"a","term":1,"extra":1}', "Promise.extra: not known"),
    ("a missing field", b'{"format_version":1,"node":"a","term":1}', "Promise.position: missing"),
    ("a wrong type", b'{"format_version":1,"node":"a","term":"1"}', "Promise.term: '1' is not of type int"),
    ("a flag is no number", b'{"format_version":1,"node":"a","term":true}', "Promise.term: True is not of type int"),
    (
        "a place inside",
        b'{"format_version":1,"node":"a","term":1,"position":{"timeline":1,"lsn":null}}',
        "Promise.position.lsn",
    ),
]


@pytest.mark.parametrize(("story", "data", "problem"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused_by_name(story: str, data: bytes, problem: str) -> None:
    with pytest.raises(StoredFormatError) as caught:
        codec.decode(Promise, data, "/flypg/x/nodes/a/promise")
    assert str(caught.value).startswith("/flypg/x/nodes/a/promise: ")
    assert problem in str(caught.value)


def test_an_unknown_word_is_refused_with_the_known_ones() -> None:
    plain = json.loads(codec.encode(VIEW)) | {"phase": "limbo"}
    with pytest.raises(
        StoredFormatError, match=r"View.phase: 'limbo' is not one of founding, revoking, promoting, open"
    ):
        codec.decode(View, json.dumps(plain).encode(), "/k")


def test_a_bad_rule_is_named_by_its_place() -> None:
    plain = json.loads(codec.encode(VIEW))
    plain["rules"][1]["k"] = None
    with pytest.raises(StoredFormatError, match=r"View.rules\[1\].k"):
        codec.decode(View, json.dumps(plain).encode(), "/k")


def test_keys_sort_the_history_before_the_state() -> None:
    keys = Keys("my-app")
    state = [keys.report(A), keys.promise(B), keys.request("r"), keys.leader, keys.spec, keys.view]
    assert all(keys.state <= key < keys.end for key in state)
    assert keys.events < keys.event(7, 0, "x") < keys.event(7, 1, "a") < keys.event(10, 0, "a") < keys.events_end
    assert keys.events_end < keys.state


@pytest.mark.parametrize("name", ["", "a/b", "-x", "é", "a" * 64])
def test_not_a_cluster_name(name: str) -> None:
    with pytest.raises(ValueError, match="not a cluster name"):
        Keys(name)
