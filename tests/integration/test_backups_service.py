"""The agent's part: snapshots when due, by a process of its own, once per cluster; the archiver follows the view."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import pytest

from backups.archiver import ArchiverProcess, Standing
from backups.config import read_config
from backups.facts import archive_settings
from backups.layout import HISTORY, PathName
from backups.policy import RunHistory
from backups.service import BackupService
from backups.upkeep import audit
from cluster.errors import CommandFailed
from postgres.basebackup import server_facts
from postgres.command import run
from tests.support.backing import CODE, NEEDS, PATIENCE_S, alone, events, eventually, facts, notes, running, settings
from tests.support.etcd import TestEtcd
from tests.support.pgserver import PgServer

pytestmark = NEEDS


def test_a_new_cluster_gets_its_first_snapshot(etcd: TestEtcd, server: PgServer) -> None:
    asyncio.run(a_new_cluster_gets_its_first_snapshot(etcd, server))


async def a_new_cluster_gets_its_first_snapshot(etcd: TestEtcd, server: PgServer) -> None:
    """Taken, swept and restored in a test, by processes of their own; WAL is archived meanwhile."""
    said = server.root / "hooks"
    hooks = {
        "FLYPG_SNAPSHOT_BEFORE": f'psql -Atqc "SELECT 40 + 2" > {said}',
        "FLYPG_SNAPSHOT_AFTER": f"echo $FLYPG_SNAPSHOT_ID $FLYPG_SNAPSHOT_RESULT >> {said}; echo no room >&2; exit 1",
    }
    config = read_config(settings(server, **hooks), server.root)
    here = facts(server, "first")
    command = archive_settings(config, here).command
    server.configure(archive_command=command)
    server.sql("SELECT pg_reload_conf()")
    state = alone(server_facts(server.conninfo).system_id)
    async with notes(etcd, "first") as shared:
        async with running(BackupService(config, here, shared, lambda: state)) as service:
            await eventually(lambda: service.status().history.undone != "", f"{service.status()}")
            status = service.status()
            assert status.history.verified_at is not None and status.history.failures == 0
            assert (status.history.kept, status.running, status.archiving) == (1, "", True)
            assert status.next_at is not None and status.next_at > time.time()
            assert status.warnings, "it lies on the volume of the database"
            await asyncio.to_thread(server.sql, "SELECT pg_switch_wal()")
            await eventually(lambda: (w := service.status().wal) is not None and w.archived > 0, "WAL is archived")
            assert await shared.read_history() == service.status().history
            assert await shared.holder() == "", "the lease was given back"
        repository = config.repository()
        found = audit(repository.path(repository.paths("first")[-1].name), deep=True)
        assert not found.problems
        assert [s.id for s in found.snapshots] == [status.history.ok_id]
        assert said.read_text() == f"42\n{status.history.ok_id} ok\n"
        told = await events(etcd, "first")
        assert "FLYPG_SNAPSHOT_AFTER failed" in status.history.undone
        assert any("FLYPG_SNAPSHOT_AFTER failed: sh exited 1: no room" in e for e in told), told


def test_one_node_works_at_a_time(etcd: TestEtcd, server: PgServer) -> None:
    asyncio.run(one_node_works_at_a_time(etcd, server))


async def one_node_works_at_a_time(etcd: TestEtcd, server: PgServer) -> None:
    """Another node holds the lease: nothing is taken here; it took one meanwhile: nothing is due any more."""
    config = read_config(settings(server, FLYPG_SNAPSHOT_VERIFY="off", FLYPG_WAL_ARCHIVE="off"), server.root)
    state = alone(server_facts(server.conninfo).system_id)
    async with notes(etcd, "busy") as mine, notes(etcd, "busy") as theirs:
        lease = await theirs.take("n2")
        assert lease is not None
        assert await mine.take("n1") is None
        assert await mine.holder() == "n2"
        service = BackupService(config, facts(server, "busy"), mine, lambda: state)
        await service.tick()
        await service._under_lease()
        assert service.status().history.ok_at is None
        await theirs.change_history(lambda _: RunHistory(ok_at=time.time(), ok_id="vs_" + "x" * 16))
        await theirs.release(lease)
        await service._under_lease()
        assert service.status().history.ok_id == "vs_" + "x" * 16
        assert not config.repository().paths()


def test_a_failure_is_remembered_and_waited_out(etcd: TestEtcd, server: PgServer) -> None:
    asyncio.run(a_failure_is_remembered_and_waited_out(etcd, server))


async def a_failure_is_remembered_and_waited_out(etcd: TestEtcd, server: PgServer) -> None:
    (server.root / "repository").write_text("no directory")
    config = read_config(settings(server, FLYPG_WAL_ARCHIVE="off"), server.root)
    state = alone(server_facts(server.conninfo).system_id)
    async with notes(etcd, "fails") as shared:
        service = BackupService(config, facts(server, "fails"), shared, lambda: state)
        await service._under_lease()
        history = await shared.read_history()
        assert history.failures == 1
        assert "repository" in history.error
        assert not service.due().now
        assert await shared.holder() == ""


def test_the_incarnation_is_chosen_once(etcd: TestEtcd) -> None:
    asyncio.run(the_incarnation_is_chosen_once(etcd))


async def the_incarnation_is_chosen_once(etcd: TestEtcd) -> None:
    async with notes(etcd, "inc") as one, notes(etcd, "inc") as other:
        found = await asyncio.gather(*(n.incarnation("7", f"{i:08x}") for i, n in enumerate([one, other, one, other])))
        assert len(set(found)) == 1
        assert await one.known_incarnation("7") == found[0]
        await one.forget_path("7")
        assert await other.incarnation("7", "ffffffff") == "ffffffff"


def test_the_archiver_follows_the_view(server: PgServer) -> None:
    asyncio.run(the_archiver_follows_the_view(server))


async def the_archiver_follows_the_view(server: PgServer) -> None:
    """Its process starts with the term, survives its agent, is not started twice, and ends when told."""
    config = read_config(settings(server), server.root)
    here = facts(server, "c")
    server.configure(archive_command=archive_settings(config, here).command)
    server.sql("SELECT pg_reload_conf()")
    path = PathName("c", server_facts(server.conninfo).system_id, "0a0b0c0d")
    arguments = ["--path", str(path), "--node", "n1", "--data-dir", str(server.root), "--user", here.user or ""]
    arguments += ["--socket", str(here.socket), "--pg-wal", str(server.data / "pg_wal")]

    def process() -> ArchiverProcess:
        return ArchiverProcess(here.socket, server.root / "archiver.log", {**config.values, "PYTHONPATH": CODE})

    first = process()
    await first.tell(Standing(0, False), arguments)
    assert first._pid is None, "no term, no archiver"

    async def told(agent: ArchiverProcess) -> bool:
        await agent.tell(Standing(1, False), arguments)
        return agent.status is not None

    deadline = time.monotonic() + PATIENCE_S
    while not await told(first):
        assert time.monotonic() < deadline, (server.root / "archiver.log").read_text()
        await asyncio.sleep(0.1)
    pid = first._pid
    await asyncio.to_thread(server.sql, "CREATE TABLE t AS SELECT 1")
    await asyncio.to_thread(server.sql, "SELECT pg_switch_wal()")
    while first.status is None or not first.status.archived:
        assert time.monotonic() < deadline
        assert await told(first)
        await asyncio.sleep(0.1)
    second = process()  # an agent that was restarted
    assert await told(second)
    assert second._pid is None
    assert pid is not None
    os.kill(pid, signal.SIGKILL)  # nothing is lost: PostgreSQL asks again, the next one answers
    await asyncio.to_thread(server.sql, "CREATE TABLE u AS SELECT 1")
    await asyncio.to_thread(server.sql, "SELECT pg_switch_wal()")
    await eventually(lambda: not first._alive(), "killed")
    third = process()
    while third.status is None or third.status.queue.ready or not third.status.archived:
        assert time.monotonic() < deadline
        await told(third)
        await asyncio.sleep(0.1)
    await third.stop()
    await eventually(lambda: not third._alive(), "ended when told")
    names = list(config.repository().path(path).wal_names())
    done = [f.name.removesuffix(".done") for f in (server.data / "pg_wal" / "archive_status").glob("*.done")]
    assert done and set(done) <= set(names)
    assert not any(HISTORY.match(n) for n in names)


def test_killed_while_it_takes_a_snapshot(server: PgServer) -> None:
    asyncio.run(killed_while_it_takes_a_snapshot(server))


async def killed_while_it_takes_a_snapshot(server: PgServer) -> None:
    """kill -9 of the process at several moments: nothing is listed that is not whole, and the next one works."""
    server.sql("CREATE TABLE big AS SELECT g, md5(g::text) || md5((g * 7)::text) FROM generate_series(1, 300000) g")
    config = read_config(settings(server, FLYPG_SNAPSHOT_PART_SIZE="1MB"), server.root)
    path = PathName("c", server_facts(server.conninfo).system_id, "0a0b0c0d")
    environment = {**config.values, "PYTHONPATH": CODE}

    def argv(letter: str) -> list[str]:
        own = ["--path", str(path), "--node", "n1", "--data-dir", str(server.root), "--conninfo", server.conninfo]
        return [sys.executable, "-m", "backups.run", "snapshot", "--id", "vs_" + letter * 16, *own]

    parts = server.root / "repository" / str(path) / "snapshots"
    for number, letter in enumerate("abc"):
        task = asyncio.create_task(run(argv(letter), timeout_s=120, env=environment))
        mine = parts / ("vs_" + letter * 16)
        await eventually(lambda m=mine, n=number, t=task: t.done() or len(list(m.glob("*"))) > n * 4, "parts arrive")
        task.cancel()  # which kills it
        await asyncio.gather(task, return_exceptions=True)
    await run(argv("z"), timeout_s=120, env=environment)
    found = audit(config.repository().path(path), deep=True)
    assert not found.problems
    assert "vs_" + "z" * 16 in [s.id for s in found.snapshots]
    assert server.sql("SELECT count(*) FROM pg_replication_slots") == [(0,)], "no slot is left to hold WAL back"
    with pytest.raises(CommandFailed, match="not the same cluster"):
        other = [a if a != str(path) else "c/123-0a0b0c0d" for a in argv("y")]
        await run(other, timeout_s=120, env=environment)
