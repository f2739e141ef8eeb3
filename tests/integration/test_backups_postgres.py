"""A real PostgreSQL, backed up, lost and restored: across failovers, to a transaction, with the repository failing."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from backups.codec import Codec, SealingKey
from backups.directory import DirectoryStore
from backups.errors import RestoreFailed
from backups.layout import HISTORY
from backups.restore import make_plan
from backups.restore_plan import Refused, RestorePlan, Target, TargetKind
from backups.upkeep import audit
from backups.verify import verify
from backups.wal import WalOptions
from backups.wire import ask
from tests.support.archive import (
    OWNER,
    Archived,
    caught_up,
    directory,
    path_for,
    promote,
    restored,
    rows_of,
    snapshot,
    standby_of,
    until,
)
from tests.support.pgserver import BIN, PgServer
from tests.support.s3 import s3_service

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
]
ROWS = "SELECT array_agg(stage ORDER BY id) FROM story"


def write(server: PgServer, stage: str) -> None:
    """One row that the test will look for, and some WAL around it."""
    server.sql("CREATE TABLE IF NOT EXISTS story (id serial, stage text)")
    server.sql("CREATE TABLE IF NOT EXISTS bulk (t text)")
    server.sql(f"INSERT INTO story (stage) VALUES ('{stage}')")
    server.sql("INSERT INTO bulk SELECT repeat(md5(g::text), 20) FROM generate_series(1, 2000) g")


def name(text: str) -> Target:
    return Target(TargetKind.NAME, text)


def test_any_moment_across_two_failovers(server: PgServer, tmp_path: Path) -> None:
    """Primaries die with WAL that nobody archived; what was committed in each stage can be restored, exactly."""
    codec = Codec(key=SealingKey(b"k" * 32))
    path = path_for(server, directory(server.root), codec)
    into = server.root / "restored"
    into.mkdir()
    first = Archived(server, path)
    first.archiver.stand(1)
    write(server, "before the snapshot")
    snapshot(server, path, codec, "a")
    write(server, "one")
    server.sql("SELECT pg_create_restore_point('one')")
    first.flush()

    second_server = standby_of(server)
    second = Archived(second_server, path)
    try:
        first.archiver.stand(None)  # the archive is out of reach for this primary from now on
        write(server, "only the standby has it")
        server.sql("SELECT pg_switch_wal()")
        caught_up(server, second_server)
        server.stop(signal.SIGKILL)
        promote(second_server)
        second.archiver.stand(2)
        write(second_server, "two")
        with second_server.connect() as connection:
            cursor = connection.execute(
                "INSERT INTO story (stage) VALUES ('marked') RETURNING pg_current_xact_id()::text"
            )
            row = cursor.fetchone()
        assert row is not None
        write(second_server, "two, later")
        second.flush()
        snapshot(second_server, path, codec, "b")

        third_server = standby_of(second_server)
        third = Archived(third_server, path)
        try:
            snapshot(third_server, path, codec, "c")  # from a standby
            caught_up(second_server, third_server)
            second_server.stop(signal.SIGKILL)
            promote(third_server)
            third.archiver.stand(3)
            write(third_server, "three")
            third.flush()
            found = audit(path, deep=True)
            assert not found.problems
            assert {n for n in path.wal_names() if HISTORY.match(n)} == {"00000002.history", "00000003.history"}
            assert [s.role for s in found.snapshots] == ["primary", "primary", "standby"]
        finally:
            third.stop()
    finally:
        second.stop()

    plan, result = restored(path, name("one"), into / "one")
    assert (plan.snapshot.id[3], [f.timeline for f in plan.line], plan.timeline) == ("a", [1, 2], 3)
    assert rows_of(into / "one", ROWS) == [(["before the snapshot", "one"],)]
    assert result.timeline == 4

    xid = Target(TargetKind.XID, str(row[0]))
    restored(path, xid, into / "marked")
    through = ["before the snapshot", "one", "only the standby has it", "two", "marked"]
    assert rows_of(into / "marked", ROWS) == [(through,)]

    plan, _ = restored(path, Target(TargetKind.LATEST), into / "latest")
    assert plan.snapshot.id[3] == "c"
    assert rows_of(into / "latest", ROWS) == [([*through, "two, later", "three"],)]

    refused = make_plan(path, Target(TargetKind.LSN, "FF/0", lsn=0xFF << 32))
    assert isinstance(refused, Refused)
    first.stop()


def test_a_snapshot_is_proven_by_restoring_it(server: PgServer) -> None:
    """With a tablespace; a part that was damaged is found, and so is a page."""
    import asyncio

    codec = Codec()
    store = directory(server.root)
    path = path_for(server, store, codec)
    place = server.root / "space"
    place.mkdir()
    shutil.chown(place, "postgres" if OWNER else None, "postgres" if OWNER else None) if OWNER else None
    server.sql(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
    server.sql("CREATE TABLE far (n int) TABLESPACE elsewhere")
    server.sql("INSERT INTO far SELECT generate_series(1, 5000)")
    write(server, "x")
    server.sql("CREATE DATABASE theirs")  # what users set for their sessions is not for a restore test
    server.sql("ALTER DATABASE theirs SET statement_timeout = '1ms'")
    server.sql("ALTER DATABASE theirs SET default_transaction_read_only = on")
    record = snapshot(server, path, codec, "a")
    assert len(record.archives) == 2
    scratch = server.root / "scratch"

    good = asyncio.run(verify(path, record, scratch, owner=OWNER, node="n1"))
    assert good.ok, good.text
    assert "pg_amcheck found nothing, page checksums fit" in good.text
    assert 0 < good.restore_s <= good.total_s
    assert list(scratch.iterdir()) == []
    assert path.snapshots()[0].verification == good

    restored(path, Target(TargetKind.SNAPSHOT), server.root / "copy")
    assert rows_of(server.root / "copy", "SELECT count(*) FROM far") == [(5000,)]

    part = server.root / "repository" / str(path.name) / record.archives[-1].parts[0].key
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    bad = asyncio.run(verify(path, record, scratch, owner=OWNER, node="n1"))
    assert not bad.ok
    assert part.name in bad.text
    assert any(part.name in problem for problem in audit(path, deep=True).problems)
    part.unlink()
    assert any("missing or cut short" in problem for problem in audit(path).problems)


def test_a_target_that_is_never_reached_is_no_success(server: PgServer) -> None:
    codec = Codec()
    path = path_for(server, directory(server.root), codec)
    archived = Archived(server, path)
    archived.archiver.stand(1)
    snapshot(server, path, codec, "a")
    write(server, "x")
    archived.flush()
    with pytest.raises(RestoreFailed, match=r"the archived WAL ends .*last transaction at 20.* before name nowhere"):
        restored(path, name("nowhere"), server.root / "r1")
    path.put_wal("00000009.history", b"rubbish\n")  # of a branch that is not on the way
    plan = make_plan(path, Target(TargetKind.LATEST))
    assert isinstance(plan, RestorePlan) and "00000009.history" in "".join(plan.warnings)
    last = sorted(n for n in path.wal_names() if len(n) == 24)[-1]
    broken = server.root / "repository" / str(path.name) / "wal" / "00000001" / f"{last}.zst"
    broken.write_bytes(broken.read_bytes()[:-7])
    with pytest.raises(RestoreFailed, match=f"the repository failed during recovery: {last}"):
        restored(path, Target(TargetKind.LATEST), server.root / "r2")
    archived.stop()


def test_writes_go_on_while_the_repository_is_down(server: PgServer) -> None:
    """PostgreSQL keeps what is not stored, the failure is said, the backlog drains on return."""
    path = path_for(server, directory(server.root), Codec())
    archived = Archived(server, path)
    archived.archiver.stand(1)
    write(server, "before")
    archived.flush()
    home = server.root / "repository"
    away = server.root / "away"
    home.rename(away)
    home.write_text("no directory")
    for turn in range(4):
        write(server, f"during {turn}")
        server.sql("SELECT pg_switch_wal()")
    until(lambda: archived.archiver.status().failed > 0, "the failure is noticed")
    status = archived.archiver.status()
    assert status.queue.ready >= 4
    assert "file://" in status.error
    assert status.queue.oldest_ready_at is not None
    home.unlink()
    away.rename(home)
    until(archived.drained, "the backlog drains")
    stored = set(path.wal_names())
    wal = {f.name for f in (server.data / "pg_wal" / "archive_status").glob("*.done")}
    assert {n.removesuffix(".done") for n in wal} <= stored
    assert archived.archiver.status().error == ""
    archived.stop()


def test_past_the_limit_wal_is_let_go_only_when_chosen(server: PgServer) -> None:
    path = path_for(server, directory(server.root), Codec())
    archived = Archived(server, path, WalOptions(queue_limit_bytes=2 << 20, drop_past_limit=True))
    archived.archiver.stand(1)
    (server.root / "repository").rename(server.root / "away")
    (server.root / "repository").write_text("no directory")
    for turn in range(4):
        write(server, f"{turn}")
        server.sql("SELECT pg_switch_wal()")
    until(lambda: archived.archiver.status().dropped > 0, "WAL is let go")
    archived.stop()


def test_only_the_open_primary_archives(server: PgServer) -> None:
    path = path_for(server, directory(server.root), Codec())
    archived = Archived(server, path)
    write(server, "x")
    server.sql("SELECT pg_switch_wal()")
    until(lambda: bool(archived.archiver.ready()), "PostgreSQL wants to archive")
    assert list(path.wal_names()) == []
    archived.archiver.stand(1)
    until(archived.drained, "archived once the term is open")
    segment = next(iter(path.wal_names()))
    file = server.data / "pg_wal" / segment
    assert ask(server.root / "wal.sock", "push", str(file)) == "ok", "asked again: still there"
    other = server.root / segment
    other.write_bytes(b"\0" * (1 << 20))
    assert ask(server.root / "wal.sock", "push", str(server.root / "evil")).startswith("no")
    archived.stop()


def test_a_switchover_does_not_wait_for_a_slow_repository(server: PgServer) -> None:
    """The stop of the primary waits for the archiver: it is told `no` at once, and the next primary has the WAL."""

    class Slow(DirectoryStore):
        def put(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
            done = super().put(key, data, if_absent=if_absent)
            if "/wal/" in key:
                released.wait(60)
            return done

    released = threading.Event()
    path = path_for(server, Slow(server.root / "repository"), Codec())
    archived = Archived(server, path)
    archived.archiver.stand(1)
    write(server, "x")
    server.sql("SELECT pg_switch_wal()")
    until(lambda: bool(archived.archiver.ready()), "PostgreSQL wants to archive")
    archived.archiver.stand(1, draining=True)
    began = time.monotonic()
    server.stop(signal.SIGINT)
    took = time.monotonic() - began
    released.set()
    archived.stop()
    assert took < 30, f"the stop took {took:.1f} s"


def test_into_s3_and_back(server: PgServer) -> None:
    """The same with an S3 service that stumbles now and then."""
    with s3_service() as service:
        codec = Codec(key=SealingKey(b"k" * 32))
        path = path_for(server, service.store("deep/prefix"), codec)
        archived = Archived(server, path)
        archived.archiver.stand(1)
        write(server, "one")
        service.faults.plan = [("PUT", "InternalError"), ("PUT", "reset"), ("PUT", "etag"), ("PUT", "SlowDown")]
        snapshot(server, path, codec, "a")
        write(server, "two")
        archived.flush()
        service.faults.plan = [("GET", "InternalError"), ("GET", "short"), ("GET", "reset")]
        restored(path, Target(TargetKind.LATEST), server.root / "copy")
        assert rows_of(server.root / "copy", ROWS) == [(["one", "two"],)]
        archived.stop()
