"""What `flypg status` makes of a node's own answer to `GET /node`."""

from __future__ import annotations

import json

import pytest

from cluster.model import NodeId, Position
from flypg.look import NodeLook, StandbyLag, lag_of, parse_look

N1, N2 = NodeId("n1"), NodeId("n2")
ANSWER = {
    "node": "n1",
    "problem": "",
    "postgres": {
        "state": "up",
        "in_recovery": False,
        "timeline": 3,
        "lsn": "0/3000060",
        "streaming": False,
        "lag_s": None,
        "job": None,
        "standbys": [{"node": "n2", "lag_bytes": 100, "lag_s": 0.25}, {"node": "n3", "lag_bytes": None, "lag_s": None}],
    },
}


def changed(**postgres: object) -> bytes:
    return json.dumps(ANSWER | {"postgres": {**ANSWER["postgres"], **postgres}}).encode()  # type: ignore[dict-item]


def test_a_primary_says_how_far_its_standbys_are() -> None:
    look = parse_look(changed())
    assert look is not None
    assert (look.state, look.position, look.streaming) == ("primary", Position(3, 0x3000060), False)
    assert look.standbys == {N2: StandbyLag(100, 0.25), NodeId("n3"): StandbyLag(None, None)}


STATES = [
    ({"in_recovery": True}, "standby"),
    ({"state": "down", "in_recovery": None}, ""),
    ({"state": "hung"}, ""),
]


@pytest.mark.parametrize(("postgres", "state"), STATES, ids=[str(s[0]) for s in STATES])
def test_only_a_server_that_answers_has_a_state(postgres: dict[str, object], state: str) -> None:
    look = parse_look(changed(**postgres))
    assert look is not None and look.state == state


def test_a_job_that_runs_is_shown_and_one_that_ended_is_not() -> None:
    running = parse_look(changed(job={"kind": "copy", "running": True, "progress": "41 %"}))
    ended = parse_look(changed(job={"kind": "copy", "running": False, "progress": "100 %"}))
    assert running is not None and running.progress == "copy: 41 %"
    assert ended is not None and ended.progress == ""


def test_why_a_job_is_not_done_as_wished_is_a_problem_while_it_runs() -> None:
    note = "copied from n1 instead of the repository: there is no snapshot"
    running = parse_look(changed(job={"kind": "copy", "running": True, "note": note}))
    ended = parse_look(changed(job={"kind": "copy", "running": False, "note": note}))
    assert running is not None and running.problem == note
    assert ended is not None and ended.problem == ""


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'"text"', b'{"postgres": {}}'])
def test_what_is_no_answer_counts_as_none(body: bytes) -> None:
    assert parse_look(body) is None


@pytest.mark.parametrize("postgres", [None, [], "x", {"lsn": "zz/1", "timeline": "3", "standbys": {"n2": 1}}])
def test_what_a_node_does_not_say_is_unknown(postgres: object) -> None:
    look = parse_look(json.dumps({"node": "n1", "postgres": postgres}).encode())
    assert look == NodeLook()


PRIMARY = NodeLook("primary", Position(3, 1000))
LAGS = [
    ("the primary's word counts", NodeLook("primary", Position(3, 1000), standbys={N2: StandbyLag(7, 0.5)}), 900, 3, 7),
    ("else the two positions", PRIMARY, 900, 3, 100),
    ("never below zero", PRIMARY, 1100, 3, 0),
    ("two timelines cannot be compared", PRIMARY, 900, 2, None),
    ("a silent primary", None, 900, 3, None),
]


@pytest.mark.parametrize(("story", "primary", "lsn", "timeline", "expected"), LAGS, ids=[row[0] for row in LAGS])
def test_lag(story: str, primary: NodeLook | None, lsn: int, timeline: int, expected: int | None) -> None:
    assert lag_of(N2, primary, NodeLook("standby", Position(timeline, lsn))).bytes == expected
