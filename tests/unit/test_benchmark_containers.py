"""What the benchmark of containers holds against the bars."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.containers import falls_short

RUN = {"outage_s": 0.4, "lost": 0}
LOAD = {
    "oom_killed_and_restarts": {"n1": "false 0", "n2": "false 0"},
    "oom_kills_in_group_and_peak_bytes": {"n1": ["0", "200000000"], "n2": ["200000000"]},
    "same_primary": True,
    "failed_transactions": 0,
    "tps": 300.0,
}
GOOD: dict[str, Any] = {
    "up_to_healthy_s": [11.4],
    "kill": [RUN],
    "stop": [RUN | {"exit_code": 0}],
    "pause": [RUN],
    "disconnect": [RUN | {"outage_s": 5.0}],  # has no bar
    "pgbench_256mb": LOAD,
}

STORIES = [
    ("all well", {}, ""),
    ("up too late", {"up_to_healthy_s": [11.4, 20.1]}, "up: 20.1 s"),
    ("stop too long", {"stop": [RUN | {"outage_s": 0.7}]}, "writes stopped for 0.7 s, at most 0.6"),
    ("a wrong end", {"stop": [RUN | {"exit_code": 137}]}, "exit code 137"),
    ("a write is lost", {"disconnect": [RUN | {"lost": 1}]}, "1 acknowledged"),
    ("a container is killed", {"pgbench_256mb": LOAD | {"oom_killed_and_restarts": {"n1": "true 1"}}}, "n1 was killed"),
    (
        "a backend is killed",
        {"pgbench_256mb": LOAD | {"oom_kills_in_group_and_peak_bytes": {"n2": ["3", "268435456"]}}},
        "3 processes of n2",
    ),
    ("a failover", {"pgbench_256mb": LOAD | {"same_primary": False}}, "nobody needed"),
    ("pgbench fails", {"pgbench_256mb": LOAD | {"tps": None}}, "failed"),
]


@pytest.mark.parametrize(("story", "changed", "expected"), STORIES, ids=[s[0] for s in STORIES])
def test_falls_short(story: str, changed: dict[str, Any], expected: str) -> None:
    said = falls_short(GOOD | changed)
    assert len(said) == (1 if expected else 0), said
    assert expected in " ".join(said)
