"""Restores that must not end early and call it a success, and those that only seem to have to fail."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from backups.codec import Codec
from backups.errors import RestoreFailed
from backups.repository import Path as RepositoryPath
from backups.restore import make_plan, restore
from backups.restore_plan import RestorePlan, Target, TargetKind
from tests.support.archive import OWNER, Archived, directory, path_for, restored, rows_of, snapshot
from tests.support.pgserver import BIN, PgServer

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
]
LATEST = Target(TargetKind.LATEST)
ODD = "back\\slash, it's odd"


def written(server: PgServer, path: RepositoryPath, segments: int) -> Archived:
    """A snapshot, and so many archived segments after it."""
    archived = Archived(server, path)
    archived.archiver.stand(1)
    snapshot(server, path, Codec(), "a")
    server.sql("CREATE TABLE IF NOT EXISTS t (i int)")
    for i in range(segments):
        server.sql(f"INSERT INTO t VALUES ({i})")
        archived.flush()
    return archived


def test_a_repository_that_goes_away_is_not_the_end_of_the_wal(server: PgServer, path: RepositoryPath) -> None:
    """A directory that is not mounted any more has nothing in it, which is no error to whoever reads it."""
    archived = written(server, path, 8)
    plan = make_plan(path, LATEST)
    assert isinstance(plan, RestorePlan), plan
    away = server.root / "unmounted"

    def unmount(done: int, count: int) -> None:
        if not away.exists():
            shutil.move(server.root / "repository", away)

    with pytest.raises(RestoreFailed, match=r"the repository failed during recovery: .* is not there"):
        asyncio.run(restore(path, plan, server.root / "into", owner=OWNER, replaying=unmount))
    archived.stop()


def test_nor_is_wal_that_cannot_be_read(server: PgServer, path: RepositoryPath) -> None:
    """PostgreSQL ends recovery at the first record that makes no sense, and opens."""
    archived = written(server, path, 5)
    files = sorted((server.root / "repository").glob("c/*/wal/00000001/*[0-9A-F].zst"))
    shutil.copyfile(files[-2], files[-3])
    with pytest.raises(RestoreFailed, match=f"{files[-4].stem}, of which .* archived up to {files[-1].stem}"):
        restored(path, LATEST, server.root / "into")
    archived.stop()


def test_settings_that_were_raised_after_the_snapshot(server: PgServer, path: RepositoryPath) -> None:
    """The snapshot was taken while no transaction could be prepared. A restore point may have any name."""
    archived = Archived(server, path)
    archived.archiver.stand(1)
    snapshot(server, path, Codec(), "a")
    server.configure(max_prepared_transactions="20")
    server.stop()
    server.start()
    server.sql("CREATE TABLE t (i int)")
    with server.connect() as connection:
        connection.autocommit = True
        for i in range(12):
            connection.execute(f"BEGIN; INSERT INTO t VALUES ({i}); PREPARE TRANSACTION 'p{i}'")
        connection.execute("COMMIT PREPARED 'p0'")
        connection.execute("SELECT pg_create_restore_point(%s)", (ODD,))
        connection.execute("COMMIT PREPARED 'p1'")
    archived.flush()
    restored(path, Target(TargetKind.NAME, ODD), server.root / "into")
    copy = PgServer(server.root / "into")
    try:
        copy.configure(archive_mode="off", max_prepared_transactions="20")
        copy.start()
        assert copy.sql("SELECT count(*), (SELECT count(*) FROM pg_prepared_xacts) FROM t") == [(1, 11)]
    finally:
        copy.remove()
        archived.stop()


def test_large_segments() -> None:
    """PostgreSQL's own defaults have no room for two of them: it does not start with these."""
    made = PgServer()
    try:
        made.initdb("--wal-segsize=64")
        made.start()
        path = path_for(made, directory(made.root), Codec())
        snapshot(made, path, Codec(), "a")
        restored(path, Target(TargetKind.SNAPSHOT), made.root / "into")
        assert rows_of(made.root / "into", "SHOW wal_segment_size") == [("64MB",)]
    finally:
        made.remove()
