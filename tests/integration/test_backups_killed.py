"""Killed -9 at every step, and servers that die in the middle: what is listed restores, and the next run tidies up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.codec import Codec
from backups.directory import DirectoryStore
from backups.errors import RepositoryRefused, RepositoryUnavailable
from backups.extract import unpack
from backups.layout import PathName
from backups.repository import Path as RepositoryPath
from backups.repository import Repository
from backups.upkeep import audit
from postgres.basebackup import server_facts
from tests.support.archive import OWNER, path_for, snapshot, until
from tests.support.pgserver import BIN, PgServer
from tests.support.s3 import s3_service

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
]
CODE = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "PYTHONPATH": str(CODE), "FLYPG_SNAPSHOT_MIN_FREE_PERCENT": "0"}


@pytest.fixture(scope="module")
def server() -> Iterator[PgServer]:
    """A primary with some WAL that PostgreSQL wants archived, and nobody who does."""
    made = PgServer()
    made.initdb("--wal-segsize=1", archive_mode="on", archive_command="false", min_wal_size="2MB")
    made.start()
    made.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g")
    for _ in range(2):
        made.sql("INSERT INTO t VALUES (1)")
        made.sql("SELECT pg_switch_wal()")
    yield made
    made.remove()


def killed(server: PgServer, scenario: str) -> tuple[int, Path]:
    """Run a scenario of tests/support/mortal.py; the number of deaths, and the repository."""
    root = server.root / scenario / "repository"
    shutil.rmtree(root.parent, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.mortal", scenario, root, server.conninfo, server.data / "pg_wal"],
        cwd=CODE,
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(json.loads(done.stdout.splitlines()[-1])["deaths"]), root


def test_a_snapshot_is_killed_at_each_step(server: PgServer) -> None:
    deaths, root = killed(server, "snapshot")
    assert deaths > 15
    path = Repository(DirectoryStore(root), Codec()).path(
        PathName("c", server_facts(server.conninfo).system_id, "0a0b0c0d")
    )
    listed = path.snapshots()
    assert listed, "one was killed right after it was committed, and the last one lived"
    for record in (listed[0], listed[-1]):
        into = server.root / record.id
        unpack(path, record, into, owner=OWNER)
        server.program("pg_verifybackup", "--no-parse-wal", "--quiet", into)
        copy = PgServer(into)
        try:
            copy.configure(archive_mode="off")
            copy.start()
            assert copy.sql("SELECT count(*) FROM t") == server.sql("SELECT count(*) FROM t")
        finally:
            copy.remove()
    until(lambda: server.sql("SELECT count(*) FROM pg_replication_slots") == [(0,)], "no slot of the dead is left")


def test_archiving_is_killed_at_each_step(server: PgServer) -> None:
    deaths, _ = killed(server, "archive")
    assert deaths > 10


def test_retention_is_killed_at_each_step(server: PgServer) -> None:
    deaths, _ = killed(server, "sweep")
    assert deaths > 10


def slow_snapshot(server: PgServer, root: Path) -> tuple[list[str], dict[str, str], RepositoryPath]:
    """The process that an agent starts for a snapshot, at a pace that leaves time to kill something."""
    system = server_facts(server.conninfo).system_id
    name = PathName("c", system, "0a0b0c0d")
    argv = [sys.executable, "-m", "backups.run", "snapshot", "--path", str(name), "--node", "n1"]
    argv += ["--data-dir", str(root), "--id", "vs_" + "s" * 16, "--conninfo", server.conninfo]
    slow = {"FLYPG_SNAPSHOT_URL": f"file://{root}", "FLYPG_SNAPSHOT_MAX_RATE": "4MB", "FLYPG_SNAPSHOT_PART_SIZE": "1MB"}
    path = Repository(DirectoryStore(root), Codec()).path(name)
    return argv, {**ENVIRONMENT, **slow}, path


def under_way(path: RepositoryPath) -> bool:
    return any(True for _ in path.stored("snapshots/"))


def test_a_snapshot_ends_with_its_agent(server: PgServer) -> None:
    """An agent that is killed renews no lease: another node begins anew, and this one must not go on beside it."""
    argv, environment, path = slow_snapshot(server, server.root / "orphan")
    agent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *argv], env=environment, cwd="/"
    )
    until(lambda: under_way(path), "the snapshot is under way")
    agent.kill()
    agent.wait(10)
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flypg_snapshot'"
    until(lambda: server.sql(query) == [(0,)], "its snapshot has ended")
    found = audit(path, deep=True)
    assert not found.snapshots and not found.problems
    assert found.garbage == ("vs_" + "s" * 16,)


def test_the_server_dies_during_a_snapshot() -> None:
    """Nothing is listed, the reason is said; taken again from the server that is there then, it is whole."""
    server = PgServer()
    try:
        server.initdb()
        server.start()
        argv, environment, path = slow_snapshot(server, server.root / "repository")
        process = subprocess.Popen(argv, env=environment, cwd="/", stderr=subprocess.PIPE, text=True)
        until(lambda: under_way(path), "the snapshot is under way")
        server.stop(signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "BASE_BACKUP" in said
        assert not audit(path).snapshots
        server.start()
        quick = {k: v for k, v in environment.items() if k != "FLYPG_SNAPSHOT_MAX_RATE"}
        subprocess.run([*argv, "--id", "vs_" + "t" * 16], env=quick, cwd="/", check=True, timeout=120)
        found = audit(path, deep=True)
        assert not found.problems
        assert [s.id for s in found.snapshots] == ["vs_" + "t" * 16]
        assert found.garbage == ("vs_" + "s" * 16,)
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("reset", RepositoryUnavailable, "no success in 3 attempts"),
        ("half", RepositoryUnavailable, "no success in 3 attempts"),
        ("ExpiredToken", RepositoryRefused, "ExpiredToken"),
    ],
)
def test_the_repository_fails_during_a_snapshot(
    server: PgServer, fault: str, error: type[Exception], says: str
) -> None:
    """From some part on it takes no more: the snapshot fails and says of what; what was listed before still is."""
    codec = Codec()
    with s3_service() as service:
        path = path_for(server, service.store(f"fails/{fault}", attempts=3), codec)
        kept = snapshot(server, path, codec, "a")
        service.faults.plan = [("PUT", "")] + [("PUT", fault)] * 100
        with pytest.raises(error, match=says):
            snapshot(server, path, codec, "b")
        service.faults.plan = []
        found = audit(path, deep=True)
        assert not found.problems
        assert [s.id for s in found.snapshots] == [kept.id]
        assert found.garbage == ("vs_" + "b" * 16,)
        assert snapshot(server, path, codec, "c").id in [s.id for s in path.snapshots()]
