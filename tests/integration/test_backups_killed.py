"""Killed -9 at every step, and servers that die in the middle: what is listed restores, and the next run tidies up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.codec import Codec
from backups.directory import DirectoryStore
from backups.extract import unpack
from backups.layout import PathName
from backups.repository import Repository
from postgres.basebackup import server_facts
from tests.support.archive import OWNER, until
from tests.support.pgserver import BIN, PgServer

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
]
CODE = Path(__file__).resolve().parents[2]


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
