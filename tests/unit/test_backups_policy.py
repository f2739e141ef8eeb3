"""When a snapshot is due and where; as stories."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backups.catalog import Verification
from backups.policy import RunHistory, due, jitter_s, source, succeeded, verify_due, with_verification
from backups.schedule import next_after
from cluster.errors import SettingsError
from cluster.model import (
    Member,
    NodeId,
    NodeReport,
    Phase,
    ServerState,
    Snapshot,
    Spec,
    StandbySeen,
    View,
    lone_rule,
)
from tests.support.snapshots import record

DAY = 86400.0
NOW = 50 * DAY
OK = RunHistory(ok_at=NOW - 3600, ok_id="vs_x")
GAP = replace(OK, gap_at=NOW - 60, gap="000000010000000000000007")
AWAY = replace(OK, failed_at=NOW - 100, failures=4, error="x")
DUE_STORIES = [
    ("there is none yet", RunHistory(), {"next_slot": NOW + 1}, True),
    ("a new cluster first comes to rest", RunHistory(), {"next_slot": NOW + 1, "settled": False}, False),
    ("the time has come", OK, {"next_slot": NOW}, True),
    ("not yet", OK, {"next_slot": NOW + 1}, False),
    (
        "long after it should have been, one run makes up",
        RunHistory(ok_at=NOW - 9 * DAY),
        {"next_slot": NOW - 8 * DAY},
        True,
    ),
    ("it failed a moment ago", RunHistory(OK.ok_at, "", NOW - 30, 1, "x"), {"next_slot": NOW - 60}, False),
    ("it failed a minute ago", RunHistory(OK.ok_at, "", NOW - 61, 1, "x"), {"next_slot": NOW - 90}, True),
    (
        "the fourth failure waits an hour",
        RunHistory(OK.ok_at, "", NOW - 1800, 4, "x"),
        {"next_slot": NOW - 9999},
        False,
    ),
    ("and so does the ninth", RunHistory(OK.ok_at, "", NOW - 3601, 9, "x"), {"next_slot": NOW - 9999}, True),
    (
        "a failure in the future is a wrong clock, and forgotten",
        RunHistory(OK.ok_at, "", NOW + 999, 4, "x"),
        {"next_slot": NOW},
        True,
    ),
    (
        "a success in the far future is a wrong clock",
        RunHistory(ok_at=NOW + 9 * DAY),
        {"next_slot": NOW + 10 * DAY},
        True,
    ),
    ("WAL was lost: a new beginning is needed at once", GAP, {"next_slot": NOW + DAY}, True),
    ("a gap, and the repository still fails", replace(AWAY, gap_at=NOW), {"next_slot": NOW + DAY}, False),
    ("the repository is back: a failure before is forgotten", AWAY, {"next_slot": NOW - 9, "back_at": NOW - 1}, True),
    ("it failed again since it came back", AWAY, {"next_slot": NOW - 9, "back_at": NOW - 101}, False),
    ("without a schedule, never", OK, {"next_slot": None}, False),
    ("without a schedule, but with a gap", GAP, {"next_slot": None}, True),
]


@pytest.mark.parametrize(("story", "history", "given", "expected"), DUE_STORIES, ids=[s[0] for s in DUE_STORIES])
def test_due(story: str, history: RunHistory, given: dict[str, object], expected: bool) -> None:
    answer = due(history, now=NOW, **given)  # type: ignore[arg-type]
    assert answer.now is expected, answer.why
    assert answer.why


A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def cluster(*, phase: Phase = Phase.OPEN, caught_up: str = "", streaming: str = "bc") -> Snapshot:
    def report(node: NodeId) -> NodeReport:
        state = ServerState.PRIMARY if node == A else ServerState.STANDBY
        seen = tuple(StandbySeen(NodeId(x), x in caught_up) for x in "bc") if node == A else ()
        return NodeReport(Member(node, "h"), "r", state, streaming=node in streaming, standbys=seen)

    view = View(1, phase, A if phase is not Phase.REVOKING else None, 1, (lone_rule(1, A),))
    return Snapshot(1, view, 1, Spec(), 1, {n: report(n) for n in (A, B, C)})


SOURCE_STORIES = [
    ("a standby that has caught up", cluster(caught_up="c"), True, C),
    ("the first by name of several", cluster(caught_up="bc"), True, B),
    ("none has caught up: the primary", cluster(), True, A),
    ("one that does not stream is not asked", cluster(caught_up="bc", streaming="c"), True, C),
    ("a repository of each node's own lies on the primary", cluster(caught_up="bc"), False, A),
    ("no primary serves: nobody", cluster(phase=Phase.PROMOTING, caught_up="bc"), True, None),
    ("no primary at all: nobody", cluster(phase=Phase.REVOKING, caught_up="bc"), True, None),
]


@pytest.mark.parametrize(("story", "seen", "shared", "expected"), SOURCE_STORIES, ids=[s[0] for s in SOURCE_STORIES])
def test_source(story: str, seen: Snapshot, shared: bool, expected: NodeId | None) -> None:
    assert source(seen, shared=shared) == expected


def test_the_newest_snapshot_is_tried_once() -> None:
    new, old = record("b", day=2), record("a", day=1)
    assert verify_due([old, new], wished=True) == new
    assert verify_due([old, new], wished=False) is None
    assert verify_due([old, record("b", day=2, verified=False)], wished=True) is None
    assert verify_due([], wished=True) is None


def test_the_schedule_is_cron_in_utc() -> None:
    three = 1_700_017_200.0  # 2023-11-15 03:00 UTC
    assert next_after("0 3 * * *", three - 10) == three
    assert next_after("0 3 * * *", three) == three + DAY
    assert next_after("0 3 * * *", three + 5, jitter_s=60) == three + 60
    assert next_after("0 3 * * *", three + 60, jitter_s=60) == three + DAY + 60
    with pytest.raises(SettingsError, match="FLYPG_SNAPSHOT_SCHEDULE"):
        next_after("99 3 * * *", three)


def test_jitter_is_of_the_cluster_and_within_bounds() -> None:
    found = {jitter_s(f"cluster-{i}", 600.0) for i in range(50)}
    assert len(found) > 40
    assert all(0 <= j < 600 for j in found)
    assert jitter_s("x", 600.0) == jitter_s("x", 600.0)


def test_a_snapshot_makes_up_for_what_was_let_go_before_it_began() -> None:
    failed = RunHistory(NOW - DAY, "vs_x", NOW - 60, 3, "no space", gap_at=NOW - 30, gap="00000001000000000000001E")
    after = succeeded(failed, began=NOW - 20, at=NOW, snapshot="vs_y", size=7)
    assert (after.ok_at, after.ok_id, after.ok_bytes) == (NOW, "vs_y", 7)
    assert (after.failures, after.failed_at, after.error) == (0, None, "")
    assert (after.gap_at, after.gap) == (None, "")
    during = succeeded(failed, began=NOW - 40, at=NOW, snapshot="vs_y", size=7)
    assert (during.gap_at, during.gap) == (NOW - 30, "00000001000000000000001E"), "restores still begin anew after it"
    assert during.ok_id == "vs_y"


def test_a_restore_test_by_hand_speaks_of_the_last_snapshot_only() -> None:
    history = RunHistory(ok_at=NOW - 60, ok_id="vs_y", doubt="vs_y: a page is damaged")
    good, bad = Verification(NOW, True, 4.0, 5.0, "fine"), Verification(NOW, False, 4.0, 5.0, "a page is damaged")
    found = with_verification(history, "vs_y", good)
    assert (found.verified_at, found.verified_s, found.doubt) == (NOW, 4.0, "")
    assert with_verification(history, "vs_x", good) == history
    assert with_verification(found, "vs_x", bad) == found
    assert with_verification(found, "vs_y", bad) == replace(found, doubt="vs_y: a page is damaged")
