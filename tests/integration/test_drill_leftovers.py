"""A drill that was killed leaves a running testbed behind: the next one removes all of it, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import processes
from chaos.netns import available, run
from chaos.places import environment
from chaos.testbed import OWNER, remove_leftovers
from tests.support.drills import PROGRAMS

MAKE = """
import sys, time
from chaos.testbed import Plan, Testbed
with Testbed(Plan(nodes=1, etcd=1, namespaces=sys.argv[1] == "namespaces")) as bed:
    print(bed.directory, flush=True)
    time.sleep(600)
"""
SLEEP = ("sleep", "300")


def running(directory: Path) -> list[processes.Process]:
    table = processes.everything()
    return processes.alive([*processes.belonging(directory, table), *processes.orphans(directory, table)])


@pytest.fixture
def bystanders(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for process in made:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["loopback", "namespaces"])
def test_what_a_killed_drill_has_left_is_removed(kind: str, bystanders: list[subprocess.Popen[bytes]]) -> None:
    if any(not any((Path(d) / name).exists() for d in os.get_exec_path()) for name in PROGRAMS):
        pytest.skip(f"needs {', '.join(PROGRAMS)}")
    if kind == "namespaces" and (why := available()):
        pytest.skip(why)
    drill = subprocess.Popen(
        [sys.executable, "-c", MAKE, kind], env=environment({}), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert drill.stdout is not None
    with drill.stdout:
        directory = Path(drill.stdout.readline().decode().strip())
    try:
        assert directory.is_dir(), "the testbed never stood"
        near = {"FLYPG_DATA_DIR": f"{directory}x/n1"}  # another's, whose name only begins like ours
        bystanders.append(subprocess.Popen(SLEEP, env={**os.environ, **near}))
        bystanders.append(subprocess.Popen(SLEEP, cwd=directory / "n1"))  # somebody who has a look
        remove_leftovers()
        assert running(directory), "its drill is alive: it is not touched"
    finally:
        drill.send_signal(signal.SIGKILL)
        drill.wait(timeout=10)
    words = [process.argv for process in running(directory)]
    assert any("agent" in argv for argv in words) and any(argv[0].startswith("postgres: ") for argv in words), words
    remove_leftovers()
    until = time.monotonic() + 5
    while (left := running(directory)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left and not directory.exists()
    assert all(process.poll() is None for process in bystanders)
    if kind == "namespaces":
        assert f"fpg{drill.pid}x" not in run("ip", "netns", "list")


def test_whose_pid_was_given_out_again_is_gone(tmp_path: Path) -> None:
    ours = Path(tempfile.gettempdir(), f"fpd{os.getpid()}-{tmp_path.name}")
    ours.mkdir()
    try:
        remove_leftovers()
        assert ours.exists(), "its owner has only begun, and runs"
        me = processes.look(os.getpid())
        assert me is not None
        space = os.readlink("/proc/self/ns/pid")
        for owner, stays in (
            (f"{me.pid} {me.started} {space}", True),
            (f"{me.pid} {me.started - 1} pid:[1]", True),  # of another container: nobody can tell
            (f"{me.pid} {me.started - 1} {space}", False),
        ):
            (ours / OWNER).write_text(owner)
            remove_leftovers()
            assert ours.exists() == stays, owner
    finally:
        if ours.exists():
            (ours / OWNER).unlink(missing_ok=True)
            ours.rmdir()
