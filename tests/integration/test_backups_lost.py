"""Every node is lost at once under load: with FLYPG_WAL_STREAM_S, the repository has all but the last seconds.

The service does the work, as in an agent: it tells its archiver where the WAL ends, and that stores pieces of the
segment that is not full. PostgreSQL and the archiver are killed -9 in the same moment, in the middle of a segment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from backups.config import read_config
from backups.facts import archive_settings
from backups.restore import make_plan
from backups.restore_plan import RestorePlan, Target, TargetKind
from backups.service import WATCH_S, BackupService
from cluster.model import parse_lsn
from postgres.basebackup import server_facts
from tests.support.archive import new_server, restored, rows_of
from tests.support.backing import NEEDS, alone, eventually, facts, notes, running, settings
from tests.support.etcd import TestEtcd
from tests.support.local import ARCHIVING, archived, cluster, needs_programs
from tests.support.pgserver import PgServer

pytestmark = NEEDS
STREAM_S = 1.0
WRITE_S = 8.0
SEGMENT_BYTES = 1 << 20
BOUND_S = WATCH_S + STREAM_S + 2.0  # told every so often, stored every so often; and a busy machine


@pytest.fixture
def server() -> Iterator[PgServer]:
    made = new_server()
    made.configure(archive_timeout="0", fsync="on")
    made.start()
    made.sql("CREATE TABLE written (n int)")
    yield made
    made.remove()


class Client:
    """Writes number after number, and notes when each commit was acknowledged."""

    def __init__(self, server: PgServer) -> None:
        self._server = server
        self._stop = threading.Event()
        self.acknowledged: list[float] = []  # by our clock; the number is the place in the list

    def _run(self) -> None:
        try:
            with self._server.connect() as connection:
                while not self._stop.wait(0.02):
                    connection.execute(b"INSERT INTO written VALUES (%s)", (len(self.acknowledged),))
                    self.acknowledged.append(time.monotonic())
        except psycopg.OperationalError:
            return  # the server is gone

    @contextmanager
    def writing(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, name="client")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def flushed(server: PgServer) -> int | None:
    """Where the WAL ends; None: the server is gone."""
    try:
        ((lsn,),) = server.sql("SELECT pg_current_wal_flush_lsn()::text")
    except psycopg.OperationalError:
        return None
    return parse_lsn(str(lsn))


async def test_all_but_the_last_seconds_is_restored(etcd: TestEtcd, server: PgServer) -> None:
    wished = {"FLYPG_WAL_STREAM_S": str(STREAM_S), "FLYPG_SNAPSHOT_VERIFY": "off", "FLYPG_WAL_TIMEOUT_S": "0"}
    config = read_config(settings(server, **wished), server.root)
    here = facts(server, "lost")
    server.configure(archive_command=archive_settings(config, here).command)
    server.sql("SELECT pg_reload_conf()")
    state = alone(server_facts(server.conninfo).system_id)
    client = Client(server)
    async with notes(etcd, "lost") as shared:
        service = BackupService(config, here, shared, lambda: state, written=lambda: flushed(server))
        async with running(service):
            await eventually(lambda: service.status().history.kept == 1, "the first snapshot")
            await asyncio.to_thread(server.sql, "SELECT pg_switch_wal()")  # it begins in a segment of its own
            await eventually(lambda: (w := service.status().wal) is not None and w.queue.streamed, "it streams")
            with client.writing():
                await asyncio.sleep(WRITE_S)
                end = flushed(server)
                archiver = service._archiver._pid
                assert archiver is not None
                os.kill(archiver, signal.SIGKILL)
                server.stop(signal.SIGKILL)
                killed_at = time.monotonic()
    assert end is not None and end % SEGMENT_BYTES > 10_000, "its last segment is not full"
    path = config.repository().path(config.repository().paths("lost")[-1].name)
    plan = make_plan(path, Target(TargetKind.LATEST))
    assert isinstance(plan, RestorePlan), plan
    whole = plan.last_segment.number if plan.last_segment is not None else -1
    assert whole < end // SEGMENT_BYTES, "the segment in which it died is not archived, only streamed"
    _, result = await asyncio.to_thread(restored, path, Target(TargetKind.LATEST), server.root / "copy")
    (found,) = await asyncio.to_thread(rows_of, result.directory, "SELECT count(*), min(n), max(n) FROM written")
    count, least, most = (int(str(value)) for value in found)
    must = sum(at < killed_at - BOUND_S for at in client.acknowledged)
    assert must > 10, f"{len(client.acknowledged)} commits"
    assert (least, most) == (0, count - 1), "without a gap"
    assert must <= count <= len(client.acknowledged) + 1, f"{count} restored, {must} had to be"


@needs_programs
def test_a_node_with_everything_on_it_but_the_repository_is_lost() -> None:
    """The same of a whole node, as an operator sees it: agent, PostgreSQL and archiver are gone, and flypg restores."""
    with cluster(1, f"FLYPG_WAL_STREAM_S={STREAM_S:g}", *ARCHIVING) as local:
        local.until(lambda s: s["primary"] == "n1" and all(n["healthy"] for n in s["nodes"]))
        local.query("CREATE TABLE written (n int)")
        local.ok("snapshots", "create", "--node", "n1")
        archived(local)
        found = local.environment()
        address = {"host": found["PGHOST"], "port": int(found["PGPORT"]), "user": found["PGUSER"]}
        acknowledged = []
        with psycopg.connect(**address, password=found["PGPASSWORD"], dbname="postgres", autocommit=True) as client:
            until = time.monotonic() + WRITE_S
            while time.monotonic() < until:
                client.execute("INSERT INTO written VALUES (%s)", (len(acknowledged),))
                acknowledged.append(time.monotonic())
                time.sleep(0.02)
        killed_at = time.monotonic()
        local.ok("local", "node", "kill", "n1")
        must = sum(at < killed_at - BOUND_S for at in acknowledged)
        into = local.root.parent / "copy"
        local.ok("restore", "--into", str(into), "--yes", "--repository", f"file://{local.root}/snapshots")
        (into / "pg_hba.conf").write_text("local all all trust\n")
        ((count, most),) = rows_of(into, "SELECT count(*), max(n) FROM written")
        assert isinstance(count, int) and most == count - 1, (count, most)
        assert 10 < must <= count <= len(acknowledged), f"{count} restored, {must} had to be"
