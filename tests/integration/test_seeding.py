"""A standby made from the repository instead of its primary: across a failover, cut off, and when that cannot be."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backups.notes import Notes
from backups.policy import RunHistory
from cluster.endpoints import Endpoint, EtcdOptions
from cluster.etcd import Etcd
from flypg.local import load
from tests.support.local import ARCHIVING, PATIENCE_S, ROWS, Local, archived, cluster, needs_programs, write
from tests.support.pgserver import PgServer

pytestmark = [needs_programs, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with cluster(2, "FLYPG_SEED_FROM=repository", *ARCHIVING) as flypg:
        flypg.healthy()
        flypg.query("CREATE TABLE story (id serial, stage text)")
        yield flypg


def standby(local: Local) -> str:
    return next(str(n["node"]) for n in local.healthy()["nodes"] if n["role"] == "standby")


def logged(local: Local, node: str, words: str) -> list[str]:
    log = local.root / "log" / f"{node}.log"
    return [line for line in log.read_text(errors="replace").splitlines() if words in line]


@contextmanager
def without_data(local: Local, node: str) -> Iterator[None]:
    """The node's machine was lost, and comes back empty after the block."""
    local.ok("local", "node", "kill", node)
    shutil.rmtree(local.root / node / "pgdata")
    yield
    local.ok("local", "node", "start", node)


def test_the_first_standby_has_nothing_to_come_from(local: Local) -> None:
    """There was no snapshot when n2 joined: it was copied from n1, and its log says why."""
    (said,) = logged(local, "n2", "not seeded")
    assert "nothing in the repository" in said or "there is no snapshot" in said or "no repository" in said, said


def test_a_lost_standby_comes_from_the_repository_across_a_failover(local: Local) -> None:
    """The snapshot is of the timeline before: WAL of both leads to what the primary still has."""
    write(local, "one")
    snapshot = local.ok("snapshots", "create", "--node", "n1", "--json").json()["id"]
    write(local, "two")
    target = standby(local)
    local.ok("switchover", "--to", target)
    lost = standby(local)
    write(local, "three")
    archived(local)
    with without_data(local, lost):
        write(local, "four")
    local.healthy()
    (said,) = logged(local, lost, "seeded")[-1:]
    assert snapshot in said and "not seeded" not in said, said
    assert local.query("SELECT count(*) FROM pg_replication_slots WHERE temporary") == 0, "nothing holds WAL any more"
    local.ok("switchover", "--to", lost)
    assert local.healthy()["primary"] == lost
    assert local.query(ROWS) == "one,two,three,four", "it has all that was written, from three places"
    until = time.monotonic() + 60
    while (seen := local.status()["backups"]["newest_id"]) != snapshot:
        assert time.monotonic() < until, f"flypg status knows of {seen or 'none'}, not of the one taken by hand"
        time.sleep(1)


def test_a_snapshot_of_another_server_is_not_the_clusters(local: Local) -> None:
    before = history(local)
    assert before.ok_id
    other = PgServer()
    try:
        other.initdb()
        other.start()
        local.ok("snapshots", "create", "--conninfo", other.conninfo)
    finally:
        other.remove()
    assert history(local) == before


def history(local: Local) -> RunHistory:
    """What the nodes tell each other of snapshots."""

    async def read() -> RunHistory:
        found = load(local.root)
        assert found is not None, "it runs"
        etcd = Etcd(EtcdOptions((Endpoint("127.0.0.1", found.etcd()[0].client, False),)))
        try:
            return await Notes(etcd, found.cluster).read_history()
        finally:
            await etcd.close()

    return asyncio.run(read())


def test_an_agent_that_is_killed_in_the_middle_of_it_begins_anew(local: Local) -> None:
    """The server that replayed for it is ended by the next agent; `cluster` sees that no process is left."""
    lost = standby(local)
    archived(local)  # also where the timeline of the change of primary just now begins
    fresh = local.root / lost / "pgdata.copying"
    with without_data(local, lost):
        pass
    until = time.monotonic() + PATIENCE_S
    while not (fresh / "PG_VERSION").exists():
        assert time.monotonic() < until, local.last_words()
        time.sleep(0.02)
    local.ok("local", "node", "kill", lost)
    local.ok("local", "node", "start", lost)
    local.healthy()
    assert not fresh.exists()
    assert "not seeded" not in logged(local, lost, "seeded")[-1]


def test_a_repository_that_is_away_costs_a_copy_of_the_primary(local: Local) -> None:
    """The last test here: what is archived meanwhile goes with the repository that takes the place."""
    lost = standby(local)
    repository = local.root / "snapshots"
    repository.rename(repository.with_name("aside"))
    try:
        local.ok("node", "reclone", lost, "--yes", "--wait", "200")
        local.healthy()
    finally:
        shutil.rmtree(repository, ignore_errors=True)  # the archiver has begun one
        repository.with_name("aside").rename(repository)
    said = logged(local, lost, "seeded")[-1]
    assert "not seeded" in said and ("snapshot" in said or "repository" in said), said
    write(local, "five")
    local.ok("switchover", "--to", lost)
    local.healthy()
    assert local.query(ROWS) == "one,two,three,four,five"
