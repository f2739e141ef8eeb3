"""What `flypg drill` refuses before anything is started, and what it says is missing here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from chaos.drills import DRILLS
from flypg.cli import build_parser
from flypg.commands.drill import _impossible, checked
from flypg.main import main

WRONG = [
    (["run", "kill-postgress"], "did you mean kill-postgres?"),
    (["run", "kill-postgres", "--nodes", "1"], "--nodes must be at least 2"),
    (["run", "kill-postgres", "--pgbench", "2", "--local"], "--pgbench is for a testbed"),
    (["run", "kill-postgres", "--html", "/nonexistent/page.html"], "--html /nonexistent/page.html"),
    (["run", "kill-postgres", "--junit", "/"], "--junit /"),
    (["run", "kill-postgres", "--earlier", "/nonexistent.json"], "--earlier /nonexistent.json: No such file"),
    (["run", "kill-postgres", "--etcd", "h:2379"], "add --cluster"),
    (["soak", "--minutes", "nan"], "--minutes must be above zero"),
    (["soak", "--minutes", "0"], "--minutes must be above zero"),
    (["soak", "--nodes", "2"], "--nodes must be at least 3"),
]


@pytest.mark.parametrize(("arguments", "told"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_what_is_wrong_is_named_and_nothing_is_started(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drill", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_earlier_runs_may_come_from_several_reports(tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.json")
        run = {"drill": "isolate", "outage_s": {"steady": 1.0 + number}, "lost": 0, "passed": True}
        paths[-1].write_text(json.dumps({"format_version": 1, "about": {"commit": "c"}, "results": [run]}))
    options = [f"--earlier={path}" for path in paths]
    found = checked(build_parser().parse_args(["drill", "run", "isolate", *options]))
    assert [run.outage_s for run in found["isolate"]] == [1.0, 2.0]


def test_without_root_what_needs_mounts_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    args = build_parser().parse_args(["drill", "run", "all"])
    told = {name: _impossible(drill, args) for name, drill in DRILLS.items()}
    assert "only root" in told["fill-wal"] and "only root" in told["fill-data"] and "only root" in told["slow-disk"]
    assert "root" in told["isolate"]
    assert not told["kill-postgres"] and not told["freeze-node"] and not told["kill-etcd"]
