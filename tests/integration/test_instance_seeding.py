"""A keeper's copy that comes from the repository: the job, its progress and its note, and the standby that it makes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.seeding import RepositorySeeder
from backups.base import take_snapshot
from backups.catalog import SnapshotRecord
from backups.config import BackupConfig, read_config
from backups.facts import NodeFacts
from backups.layout import PathName
from backups.notes import Notes
from backups.repository import PathInfo
from cluster.etcd import Etcd
from postgres.basebackup import server_facts
from postgres.instance import Job, Run
from postgres.process import processes_of
from tests.support.etcd import BIN as ETCD
from tests.support.etcd import TestEtcd
from tests.support.postgres import Node, Servers, binaries_missing, servers

pytestmark = [
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
    pytest.mark.skipif(bool(binaries_missing()), reason=binaries_missing() or "PostgreSQL is here"),
    pytest.mark.skipif(ETCD is None, reason="there is no etcd on this machine"),
]
ROWS = "SELECT string_agg(stage, ',' ORDER BY stage) FROM story"


@dataclass
class Cluster:
    """A primary with a repository, and a node without data that is set to take its data from there."""

    servers: Servers
    primary: Node
    node: Node
    config: BackupConfig
    notes: Notes
    repository: Path

    def set_to_seed(self) -> None:
        self.node.instance.seed_with(RepositorySeeder(self.config, self.facts(self.node), self.notes))

    def facts(self, node: Node) -> NodeFacts:
        c = node.config
        return NodeFacts(node.name, "seeding", c.pgdata.parent, c.pgdata, c.run, c.port, c.user, str(c.binaries))

    async def snapshot(self, letter: str, cluster: str = "seeding") -> SnapshotRecord:
        conninfo = self.facts(self.primary).conninfo
        system_id = (await asyncio.to_thread(server_facts, conninfo)).system_id
        name = PathName(cluster, system_id, await self.notes.incarnation(system_id, "0a0b0c0d"))
        about = PathInfo(name.cluster, name.system_id, name.incarnation, 1.0)
        path = self.config.repository().begin_path(about)
        wished = {"snapshot": "vs_" + letter * 16, "node": self.primary.name}
        return await asyncio.to_thread(lambda: take_snapshot(path, self.config.codec(), conninfo, **wished))

    async def copied(self, *, seed: bool = True) -> tuple[Job, set[str]]:
        """Copy the node afresh; the job when it has ended, and what was told of its progress."""
        said: set[str] = set()
        await self.node.instance.begin_copy(self.primary.upstream(), seed=seed)
        while (job := (await self.node.instance.observe()).job) is not None and job.running:
            said.add(job.progress)
            await asyncio.sleep(0.02)
        assert job is not None and not job.error, job
        return job, said

    async def follows(self) -> None:
        """The copy is a standby like any other: it streams, and has what is written now."""
        node = self.node
        await node.instance.start_standby(self.primary.upstream())
        await node.until(lambda s: s.streaming, "never streamed")
        self.primary.sql("INSERT INTO story VALUES ('z')")
        position = await node.instance.ask_position(self.primary.upstream())
        await node.until(lambda s: s.position is not None and s.position.lsn >= position.lsn, "has it")
        await node.instance.set_gate(open=True)
        assert node.sql(ROWS) == self.primary.sql(ROWS)
        assert self.primary.sql("SELECT count(*) FROM pg_replication_slots WHERE temporary") == [(0,)]
        await node.instance.stop(fast=True)
        await node.until(lambda s: s.run is Run.DOWN)


def with_cluster(etcd: TestEtcd, story: Callable[[Cluster], Awaitable[None]]) -> None:
    async def tell() -> None:
        client = Etcd(etcd.options())
        try:
            async with servers() as made:
                await story(await cluster(made, Notes(client, f"seeding-{story.__name__}")))
        finally:
            await client.close()

    asyncio.run(tell())


async def cluster(made: Servers, notes: Notes) -> Cluster:
    primary = await made.primary()
    primary.sql("CREATE TABLE story AS SELECT 'a' AS stage")
    node = made.add()
    await primary.instance.keep_slots(frozenset({node.name}))
    repository = made.directory / "repository"
    values = {
        "FLYPG_SNAPSHOT_URL": f"file://{repository}",
        "FLYPG_SNAPSHOT_SHARED": "on",
        "FLYPG_SNAPSHOT_MIN_FREE_PERCENT": "0",
        "FLYPG_SEED_FROM": "repository",
    }
    config = read_config(values, node.config.pgdata.parent)
    found = Cluster(made, primary, node, config, notes, repository)
    found.set_to_seed()
    return found


def test_a_copy_comes_from_the_repository(etcd: TestEtcd) -> None:
    with_cluster(etcd, a_copy_comes_from_the_repository)


async def a_copy_comes_from_the_repository(c: Cluster) -> None:
    """Whoever asks for the primary's own data gets that."""
    taken = await c.snapshot("a")
    c.primary.sql("INSERT INTO story VALUES ('b')")
    job, said = await c.copied()
    assert (job.seeded, job.note) == (taken.id, "")
    assert any("snapshot" in text for text in said), said
    await c.follows()
    job, said = await c.copied(seed=False)
    assert (job.seeded, job.note) == ("", "")
    await c.follows()


def test_what_does_not_work_is_noted_and_the_primary_is_copied(etcd: TestEtcd) -> None:
    with_cluster(etcd, what_does_not_work_is_noted_and_the_primary_is_copied)


async def what_does_not_work_is_noted_and_the_primary_is_copied(c: Cluster) -> None:
    job, _ = await c.copied()
    assert job.seeded == "" and job.note.startswith(f"copied from {c.primary.name} instead of the repository: "), job
    assert "nothing in the repository yet" in job.note
    await c.follows()
    await c.snapshot("o", cluster="another")  # of the same system, as of a cluster that was restored from this one
    job, _ = await c.copied()
    assert "no repository" in job.note or "there is no snapshot" in job.note, job
    taken = await c.snapshot("a")
    (part,) = list(c.repository.glob(f"seeding/*/snapshots/{taken.id}/base.tar.zst.000000"))
    part.write_bytes(b"x" * part.stat().st_size)
    job, _ = await c.copied()
    assert job.seeded == "" and part.name in job.note and "{" not in job.note, job
    await c.follows()


def test_broken_off_nothing_goes_on(etcd: TestEtcd) -> None:
    with_cluster(etcd, broken_off_nothing_goes_on)


async def broken_off_nothing_goes_on(c: Cluster) -> None:
    """The agent ends in the middle of it: no process of it is left, and the next attempt begins anew."""
    taken = await c.snapshot("a")
    fresh = c.node.config.pgdata.with_name("pgdata.copying")
    await c.node.instance.begin_copy(c.primary.upstream())
    async with asyncio.timeout(60):
        while not processes_of(fresh):  # noqa: ASYNC110  # its server replays
            await asyncio.sleep(0.01)
    await c.node.instance.close()
    assert not processes_of(fresh)
    c.node.instance = c.servers.adopt(c.node)  # the next agent
    c.set_to_seed()
    job, _ = await c.copied()
    assert job.seeded == taken.id
    await c.follows()
