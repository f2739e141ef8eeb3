"""What a local cluster is made of: ports, files, and processes that are surely ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.model import Member, NodeId, NodeReport, Phase, Ports, Rule, ServerState, Snapshot, Spec, View
from flypg.local_layout import Layout, parse_layout
from flypg.local_processes import Process, identify, recall, remember, running_from, send, start, wait_gone
from flypg.local_programs import missing_text
from flypg.local_wait import what_is_missing
from flypg.look import NodeLook

LAYOUT = Layout(Path("/x"), nodes=3, etcd_members=3)


def test_ports_are_where_the_manual_says() -> None:
    assert LAYOUT.ports("n2") == Ports(15532, 15533, 15534, 15564, 15550, 15587, 15584)
    assert LAYOUT.endpoints == "127.0.0.1:15379,127.0.0.1:15381,127.0.0.1:15383"


def test_no_two_things_share_a_port() -> None:
    used = [
        p
        for n in LAYOUT.names
        for p in (lambda p: (p.proxy, p.postgres, p.read, p.pooler, p.http, p.metrics, p.stats))(LAYOUT.ports(n))
    ]
    used += [port for m in LAYOUT.etcd() for port in (m.client, m.peer)]
    assert len(used) == len(set(used))


@pytest.mark.parametrize(
    ("kernels_range", "lent"),
    [("32768\t60999\n", False), ("1024\t65535", True), ("15699\t15800", True), ("1024\t15399", False)],
)
def test_ports_that_outgoing_connections_may_take_are_named(kernels_range: str, lent: bool) -> None:
    assert ("ports 15400 to 15699" in LAYOUT.lent_out(kernels_range)) is lent


def test_a_layout_is_read_back_as_written() -> None:
    layout = replace(LAYOUT, settings=(("FLYPG_LEASE_TTL_S", "10"),), port_base=2000)
    assert parse_layout(layout.root, layout.dump()) == layout


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "nodes": "3"}'])
def test_a_layout_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_layout(Path("/x"), text)


def test_what_to_install_is_said_exactly() -> None:
    text = missing_text(["etcd", "postgres"], root=False)
    assert "sudo apt-get install etcd-server postgresql" in text
    assert "sudo" not in missing_text(["etcd"], root=True)


@pytest.fixture
def sleeper(tmp_path: Path) -> Process:
    argv = [sys.executable, "-c", "import time; time.sleep(60)"]
    node = tmp_path / "n1"
    node.mkdir()
    env = {"FLYPG_DATA_DIR": str(node), "PATH": os.environ["PATH"]}
    return start(argv, env=env, log=tmp_path / "log", cwd=tmp_path, user=None)


def end(process: Process) -> None:
    send(process, signal.SIGKILL)
    assert not wait_gone([process], 30)


def test_a_process_is_known_again_until_it_ends(sleeper: Process, tmp_path: Path) -> None:
    file = tmp_path / "pids" / "n1.json"
    remember(file, sleeper)
    assert recall(file) == sleeper
    end(sleeper)
    assert recall(file) is None


def test_a_pid_that_was_given_away_is_not_ours(sleeper: Process, tmp_path: Path) -> None:
    file = tmp_path / "pids" / "n1.json"
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        remember(file, replace(sleeper, pid=other.pid, started=sleeper.started - 100))
        assert recall(file) is None
        send(replace(sleeper, pid=other.pid, started=sleeper.started - 100), signal.SIGKILL)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        end(sleeper)


def test_another_boot_is_another_process(sleeper: Process, tmp_path: Path) -> None:
    file = tmp_path / "pids" / "n1.json"
    remember(file, replace(sleeper, boot="an earlier one"))
    assert recall(file) is None
    end(sleeper)


@pytest.mark.parametrize("content", ["", "17", "{", '{"pid": "x"}'])
def test_a_broken_pid_file_notes_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "n1.json").write_text(content)
    assert recall(tmp_path / "n1.json") is None


def test_what_runs_from_a_node_is_found_and_nothing_else(sleeper: Process, tmp_path: Path) -> None:
    assert running_from(tmp_path / "n1") == [sleeper]
    assert running_from(tmp_path / "n") == []
    assert running_from(tmp_path) == []
    end(sleeper)
    assert running_from(tmp_path / "n1") == []


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identify(child.pid) is None
    child.wait()


N1, N2 = NodeId("n1"), NodeId("n2")
VIEW = View(1, Phase.OPEN, N1, 1, (Rule(1, N1, frozenset({N2}), 1),))


def seen(view: View | None, **states: ServerState) -> Snapshot:
    reports = {
        NodeId(name): NodeReport(Member(NodeId(name), "h"), "r", state, streaming=state is ServerState.STANDBY)
        for name, state in states.items()
    }
    return Snapshot(1, view, 1, Spec(), 0, reports=reports)


P, S = ServerState.PRIMARY, ServerState.STANDBY
MISSING = [
    ("nothing yet", seen(None), "starting the agents"),
    ("agents, no view", seen(None, n1=ServerState.ABSENT), "electing"),
    ("no second agent", seen(VIEW, n1=P), "n2: waiting for its agent"),
    ("copying", seen(VIEW, n1=P, n2=ServerState.COPYING), "n2: copy: 41 %"),
    ("no voter", seen(replace(VIEW, rules=(Rule(1, N1, frozenset(), 0),)), n1=P, n2=S), "do not wait for it yet"),
    ("joint", seen(replace(VIEW, rules=VIEW.rules * 2), n1=P, n2=S), "new rule"),
    ("founding", seen(replace(VIEW, phase=Phase.FOUNDING), n1=ServerState.ABSENT), "n1: absent"),
    ("all there", seen(VIEW, n1=P, n2=S), ""),
]


@pytest.mark.parametrize(("story", "snapshot", "expected"), MISSING, ids=[m[0] for m in MISSING])
def test_up_says_what_it_waits_for(story: str, snapshot: Snapshot, expected: str) -> None:
    found = what_is_missing(snapshot, {N2: NodeLook(progress="copy: 41 %" if story == "copying" else "")}, [N1, N2])
    assert expected in found if expected else found == ""


def test_wal_is_archived_where_a_repository_was_named(tmp_path: Path) -> None:
    plain = Layout(tmp_path, 1, 1, 15400, "local")
    assert plain.environment("n1")["FLYPG_WAL_ARCHIVE"] == "off"
    named = Layout(tmp_path, 1, 1, 15400, "local", (("FLYPG_SNAPSHOT_URL", "s3://bucket/p"),))
    assert "FLYPG_WAL_ARCHIVE" not in named.environment("n1"), "its own default then"
    assert named.environment("n1")["FLYPG_SNAPSHOT_URL"] == "s3://bucket/p"
