"""The repository is away while the cluster is written to at full speed: an hour of it, in small.

Segments of 1 MB and limits of a few stand for 16 MB and gigabytes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.backup_stats import backup_stats
from backups.config import read_config
from backups.facts import archive_settings
from backups.restore import make_plan
from backups.restore_plan import RestorePlan, Target, TargetKind
from backups.service import BackupService
from backups.upkeep import audit
from cluster.model import parse_lsn
from healthchecks.provider import BackupStats
from postgres.basebackup import server_facts
from tests.support.backing import NEEDS, PATIENCE_S, alone, events, eventually, facts, notes, running, settings
from tests.support.etcd import TestEtcd
from tests.support.pgserver import PgServer

pytestmark = NEEDS
MB = 1 << 20
LIMIT = 8 * MB
WRITTEN = 50 * MB  # during the outage


@pytest.fixture
def server() -> Iterator[PgServer]:
    made = PgServer()
    made.initdb("--wal-segsize=1", archive_mode="on", max_wal_size="8MB", min_wal_size="2MB", wal_keep_size="0")
    made.start()
    made.sql("CREATE TABLE bulk (t text)")
    yield made
    made.remove()


class Load:
    """Somebody who writes without end."""

    def __init__(self, server: PgServer) -> None:
        self._server = server
        self._stop = threading.Event()
        self.commits = 0
        self.largest = 0  # bytes that pg_wal has taken
        self._thread = threading.Thread(target=self._run, name="load")

    def _run(self) -> None:
        while not self._stop.is_set():
            self._server.sql("INSERT INTO bulk SELECT repeat(md5(g::text), 20) FROM generate_series(1, 1000) g")
            self.commits += 1
            time.sleep(0.1)  # PostgreSQL asks again a second after a refusal: with segments of 1 MB that is a lot
            wal = (self._server.data / "pg_wal").glob("0*")
            self.largest = max(self.largest, sum(MB for _ in wal))

    def written(self) -> int:
        ((lsn,),) = self._server.sql("SELECT pg_current_wal_lsn()::text")
        return parse_lsn(str(lsn))

    @contextmanager
    def running(self) -> Iterator[Load]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()


@contextmanager
def away(repository: Path) -> Iterator[None]:
    """The repository is not there, until the block ends."""
    aside = repository.with_name("aside")
    repository.rename(aside)
    repository.write_text("no directory")
    try:
        yield
    finally:
        repository.unlink()
        aside.rename(repository)


async def told(etcd: TestEtcd, cluster: str, words: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while words not in (found := "\n".join(await events(etcd, cluster))):
        assert time.monotonic() < deadline, (words, found)
        await asyncio.sleep(0.2)


def seen(service: BackupService, load: Load) -> BackupStats:
    """What checks, metrics and status are made from."""
    return backup_stats(service.status(), load.written(), time.time())


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_the_repository_is_away_at_full_write_load(
    etcd: TestEtcd, server: PgServer, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backups.alarms.ALARM_S", 1.0)
    monkeypatch.setattr("backups.alarms.GAP_EVERY_S", 2.0)
    asyncio.run(the_repository_is_away(etcd, server, policy))


async def the_repository_is_away(etcd: TestEtcd, server: PgServer, policy: str) -> None:
    wished = {"FLYPG_WAL_QUEUE_LIMIT": "8MB", "FLYPG_WAL_QUEUE_FULL": policy, "FLYPG_SNAPSHOT_VERIFY": "off"}
    config = read_config(settings(server, **wished), server.root)
    here = facts(server, policy)
    server.configure(archive_command=archive_settings(config, here).command, wal_keep_size="0")
    server.sql("SELECT pg_reload_conf()")
    state = alone(server_facts(server.conninfo).system_id)
    load = Load(server)
    async with (
        notes(etcd, policy) as shared,
        running(BackupService(config, here, shared, lambda: state)) as service,
    ):
        await eventually(lambda: service.status().history.kept == 1, "the first snapshot")
        first = service.status().history.ok_id
        with load.running():
            with away(server.root / "repository"):
                await outage(service, load, policy)
                await told(etcd, policy, "WAL is not archived")
            began = time.time()
            await eventually(lambda: (w := service.status().wal) is not None and not w.error, "it is noticed")
        await eventually(lambda: (w := service.status().wal) is not None and w.queue.ready == 0, "it drains")
        await eventually(lambda: not seen(service, load).problems, "all is well")
        await told(etcd, policy, "WAL is archived again")
        history = await shared.read_history()
        path = config.repository().path(config.repository().paths(policy)[-1].name)
        if policy == "keep":
            assert history.ok_id == first, "nothing was lost: no snapshot is needed"
            assert not audit(path).problems
        else:
            assert history.ok_id != first and (history.ok_at or 0) > began - 5, history
            await told(etcd, policy, "the archive has a gap at")
            await told(etcd, policy, "restores begin anew after the gap")
        plan = make_plan(path, Target(TargetKind.LATEST))
        assert isinstance(plan, RestorePlan), plan
        assert plan.snapshot.id == history.ok_id


async def outage(service: BackupService, load: Load, policy: str) -> None:
    """Until much was written: alarms fire, writes go on, the disk is as full as was chosen."""
    from_here, commits, load.largest = load.written(), load.commits, 0
    await eventually(lambda: load.written() - from_here > WRITTEN, "writes go on")
    assert load.commits > commits
    await eventually(lambda: bool(seen(service, load).problems), "it is said in words")
    stats = seen(service, load)
    assert "WAL is not archived" in stats.problems[0]
    assert (stats.archive_lag_s or 0) > 0
    if policy == "keep":
        assert (stats.archive_lag_bytes or 0) > WRITTEN * 0.9
        assert load.largest > WRITTEN * 0.9, "everything is kept"
        assert stats.gap_age_s is None
    else:
        await eventually(lambda: seen(service, load).gap_age_s is not None, "the gap is written down")
        # what waits, what PostgreSQL recycles between two checkpoints, and what is written while a file is asked for
        assert load.largest < LIMIT + 8 * MB * 2 + 20 * MB, f"{load.largest >> 20} MB of WAL"
