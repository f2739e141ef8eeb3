"""What pooled clients saw: counted from their notes."""

from __future__ import annotations

import json

from chaos.bench_pooled import summed
from chaos.pooled import Op, Told, judge, parse

BEFORE = Op(1, 1.0, 1.5, "", True)
CUT = Op(1, 9.9, 10.2, "server conn crashed?", True)  # under way when the server died
WAITED = Op(2, 9.8, 10.6, "", True)  # under way too, and answered
NEW = Op(3, 10.3, 10.9, "login has been failing", False)
LATE = Op(3, 20.0, 25.0, "", True)
OPS = (BEFORE, CUT, WAITED, NEW, LATE)


def test_statements_around_an_event() -> None:
    told = judge(OPS, since=9.0, until=12.0, at=10.0)
    assert told == Told(3, 2, 2, 0.8, {"server conn crashed?": 1, "login has been failing": 1})


def test_a_planned_change_has_nothing_in_flight_to_excuse_errors() -> None:
    assert judge(OPS, since=9.0, until=12.0).in_flight == 0
    assert judge((), since=0.0, until=1.0) == Told(0, 0, 0, 0.0, {})


def test_a_row() -> None:
    row = summed([judge(OPS, since=9.0, until=12.0, at=10.0), judge(OPS, since=19.0, until=30.0)])
    assert (row["rounds"], row["statements"], row["errors"], row["in_flight"]) == (2, 4, 2, 2)
    assert (row["stall_median_s"], row["stall_worst_s"]) == (2.9, 5.0)
    assert summed([])["stall_worst_s"] is None


def test_a_line_that_is_being_written_is_left_out() -> None:
    line = json.dumps([1, 1.0, 1.5, "", True])
    assert parse([line + "\n", line]) == [BEFORE]
