"""Every drill is documented, with the bar that it is held to; soaks draw from all that go together."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.drills import DRILLS, Drill
from chaos.faults import FAULTS
from chaos.processes import look
from chaos.shield import held
from chaos.soak import ALONE, faults, schedule

PAGE = Path(__file__).parents[2] / "docs" / "drills.md"


@pytest.mark.parametrize("drill", DRILLS.values(), ids=list(DRILLS))
def test_the_page_about_drills_has_a_row_for(drill: Drill) -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{drill.name}` |")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    told = [row for row in rows if len(row) == 5 and drill.about in row[1]]
    assert len(told) == 1, f"docs/drills.md needs a row for {drill.name}"
    assert told[0][3] == f"{drill.bar_s:g} s"


def test_what_may_never_be_acknowledged_early_is_held_longer_than_a_lease() -> None:
    assert all(drill.hold_s > 12 for drill in DRILLS.values() if drill.blocked)


def test_a_soak_draws_everything_it_may_and_never_loses_two_copies() -> None:
    rng = random.Random(4)
    rounds = [[fault.name for fault in schedule(rng, namespaces=True)] for _ in range(4000)]
    assert {name for names in rounds for name in names} == {fault.name for fault in faults(namespaces=True)}
    pairs = {tuple(names) for names in rounds if len(names) > 1}
    assert pairs and not any(set(pair) >= {"lose-data", "lose-standby-data"} for pair in pairs)
    assert not {name for pair in pairs for name in pair} & set(ALONE)
    assert not [pair for pair in pairs if pair[1].endswith("-etcd") and pair[1] != "cut-etcd"]


def test_a_soak_on_loopback_cuts_no_cables() -> None:
    assert not [fault.name for fault in faults(namespaces=False) if fault.namespaces]


def test_every_fault_has_a_drill_of_its_own() -> None:
    assert set(FAULTS) <= set(DRILLS)


def test_clients_of_a_killed_router_have_no_other_way() -> None:
    assert {drill.name for drill in DRILLS.values() if drill.through_victim} == {"kill-haproxy", "kill-pgbouncer"}


def test_signals_wait_while_something_is_mended() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            done.append(number)
    assert len(done) == 3
    with held():
        child = subprocess.Popen(["sleep", "60"])
    child.terminate()
    assert child.wait(timeout=10) == -signal.SIGTERM, "what is started meanwhile gets its signals as usual"


def test_who_was_frozen_wakes_when_the_drill_is_killed() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        freeze = (
            "import sys, time; from chaos import faults, processes\n"
            "faults._freeze(lambda: [processes.look(int(sys.argv[1]))], 'it'); print('frozen', flush=True)\n"
            "time.sleep(60)"
        )
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", freeze, str(sleeper.pid)]
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as drill:
            try:
                assert drill.stdout is not None and drill.stdout.readline() == b"frozen\n"
                until(lambda: state(sleeper.pid) == "T")  # a signal takes its time to arrive
            finally:
                drill.kill()
        until(lambda: state(sleeper.pid) != "T")
    finally:
        sleeper.kill()
        sleeper.wait()


def state(pid: int) -> str:
    process = look(pid)
    return process.state if process is not None else ""


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)
