"""The node that takes a snapshot is lost in the middle of it: another one takes it, once, and it restores."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backups.config import BackupConfig, read_config
from backups.layout import PathName
from backups.notes import Notes
from backups.repository import Path as RepositoryPath
from backups.restore_plan import Target, TargetKind
from backups.service import BackupService
from backups.upkeep import audit
from cluster.model import NodeId, Snapshot
from postgres.basebackup import server_facts
from tests.support.archive import caught_up, new_server, promote, restored, rows_of, standby_of, until
from tests.support.backing import CODE, N1, N2, NEEDS, alone, eventually, facts, notes, running, settings
from tests.support.etcd import TestEtcd
from tests.support.pgserver import PgServer

pytestmark = NEEDS
LEASE_S = 8.0  # of the agent that dies; 30 s are waited for as well, only longer
ROWS = "SELECT count(*) FROM t"


@pytest.fixture
def primary() -> Iterator[PgServer]:
    made = new_server()
    made.start()
    made.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g")
    yield made
    made.remove()


@pytest.fixture
def standby(primary: PgServer) -> Iterator[PgServer]:
    made = standby_of(primary)
    caught_up(primary, made)
    yield made
    made.remove()


@contextmanager
def agent(etcd: TestEtcd, cluster: str, node: NodeId, server: PgServer, nodes: int, **wished: str) -> Iterator[None]:
    """A node that begins a snapshot, at a pace that leaves time; killed -9 with its server at the end of the block."""
    words = [node, cluster, etcd.members[0].client_port, server.root, server.port, nodes, LEASE_S]
    log = server.root / "agent.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.backup_agent", *map(str, words)],
            env={"PATH": os.defpath, "LC_ALL": "C", "PYTHONPATH": CODE, **wished},
            cwd="/",
            stdout=output,
            stderr=output,
        )
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait(10)
        server.stop(signal.SIGKILL)


def begun(path: RepositoryPath) -> str:
    """The snapshot that is under way; "" before its first part."""
    return next((info.key.split("/")[1] for info in path.stored("snapshots/")), "")


async def interrupted(
    etcd: TestEtcd, cluster: str, dying: tuple[NodeId, PgServer], repository: PgServer, shared: Notes, nodes: int
) -> tuple[RepositoryPath, str]:
    """A snapshot that was begun by a node that is dead now; its id. Its lease still stands."""
    node, server = dying
    wished = settings(repository, FLYPG_SNAPSHOT_MAX_RATE="2MB", FLYPG_SNAPSHOT_PART_SIZE="1MB")
    system_id = server_facts(server.conninfo).system_id
    name = PathName(cluster, system_id, await shared.incarnation(system_id, "0a0b0c0d"))
    path = read_config(wished, server.root).repository().path(name)
    with agent(etcd, cluster, node, server, nodes, **wished):
        await asyncio.to_thread(until, lambda: bool(begun(path)), "it is under way")
    assert not path.snapshots(), "it was not finished"
    assert await shared.holder() == node, "nobody knows of its death"
    return path, begun(path)


async def taken_over(service: BackupService, path: RepositoryPath, shared: Notes, dead: str, node: NodeId) -> None:
    """The other node takes one snapshot, and no more."""
    await eventually(lambda: service.status().history.kept == 1, "another takes it")
    (record,) = path.snapshots()
    assert (record.node, service.status().history.ok_id) == (node, record.id)
    assert service.status().history.failures == 0
    found = audit(path, deep=True)
    assert not found.problems and found.garbage == (dead,), "what was begun is garbage, for retention to remove"
    await asyncio.sleep(3)
    assert len(path.snapshots()) == 1
    assert await shared.holder() == ""


def quick(repository: PgServer) -> BackupConfig:
    return read_config(settings(repository, FLYPG_SNAPSHOT_VERIFY="off", FLYPG_WAL_ARCHIVE="off"), repository.root)


def survivor(
    config: BackupConfig, server: PgServer, cluster: str, node: NodeId, shared: Notes, state: Snapshot
) -> BackupService:
    return BackupService(config, facts(server, cluster, node), shared, lambda: state)


def restores(path: RepositoryPath, into: Path) -> None:
    _, result = restored(path, Target(TargetKind.SNAPSHOT), into)
    assert rows_of(result.directory, ROWS) == [(1000,)]


async def test_a_standby_dies_and_the_primary_takes_it(
    etcd: TestEtcd, primary: PgServer, standby: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backups.service.TICK_S", 0.5)
    async with notes(etcd, "dead_standby") as shared:
        path, dead = await interrupted(etcd, "dead_standby", (N2, standby), primary, shared, nodes=2)
        state = alone(path.name.system_id)  # its report is gone with its lease
        async with running(survivor(quick(primary), primary, "dead_standby", N1, shared, state)) as service:
            await taken_over(service, path, shared, dead, N1)
    assert path.snapshots()[0].role == "primary"
    await asyncio.to_thread(restores, path, primary.root / "copy")


async def test_the_primary_dies_and_its_successor_takes_it(
    etcd: TestEtcd, primary: PgServer, standby: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the timeline of the new term; the path is the same."""
    monkeypatch.setattr("backups.service.TICK_S", 0.5)
    async with notes(etcd, "dead_primary") as shared:
        path, dead = await interrupted(etcd, "dead_primary", (N1, primary), standby, shared, nodes=1)
        await asyncio.to_thread(promote, standby)
        state = alone(path.name.system_id, timeline=2, primary=N2)
        async with running(survivor(quick(standby), standby, "dead_primary", N2, shared, state)) as service:
            await taken_over(service, path, shared, dead, N2)
    (record,) = path.snapshots()
    assert (record.timeline, record.role) == (2, "primary")
    await asyncio.to_thread(restores, path, standby.root / "copy")


async def test_while_the_standby_lives_nobody_else_takes_it(
    etcd: TestEtcd, primary: PgServer, standby: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent renews the lease; the primary, which thinks it is alone, does not begin beside it."""
    monkeypatch.setattr("backups.service.TICK_S", 0.5)
    async with notes(etcd, "alive") as shared:
        wished = settings(primary, FLYPG_SNAPSHOT_MAX_RATE="512kB", FLYPG_SNAPSHOT_PART_SIZE="1MB")  # 23 MB: 46 s
        system_id = server_facts(primary.conninfo).system_id
        path = (
            quick(primary)
            .repository()
            .path(PathName("alive", system_id, await shared.incarnation(system_id, "0a0b0c0d")))
        )
        with agent(etcd, "alive", N2, standby, 2, **wished):
            await asyncio.to_thread(until, lambda: bool(begun(path)), "it is under way")
            theirs = begun(path)
            async with running(survivor(quick(primary), primary, "alive", N1, shared, alone(system_id))) as service:
                await asyncio.sleep(LEASE_S * 1.25)
                assert {info.key.split("/")[1] for info in path.stored("snapshots/")} == {theirs}
                assert service.status().running == "" and await shared.holder() == N2
