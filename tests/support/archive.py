"""A PostgreSQL with its archiver and a repository, for tests of backups."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from backups.base import SnapshotOptions, take_snapshot
from backups.catalog import SnapshotRecord
from backups.codec import Codec
from backups.directory import DirectoryStore
from backups.layout import PathName
from backups.objects import ObjectStore
from backups.repository import Path as RepositoryPath
from backups.repository import PathInfo, Repository
from backups.restore import RestoreResult, make_plan, restore
from backups.restore_plan import RestorePlan, Target
from backups.wal import WalArchiver, WalOptions
from backups.wire import LineServer, archive_command
from postgres.basebackup import server_facts
from postgres.command import account
from tests.support.pgserver import PgServer

OWNER = account("postgres")
PATIENCE_S = 60.0
SMALL = SnapshotOptions(part_bytes=1 << 20)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)


class Archived:
    """One server and the archiver beside it."""

    def __init__(self, server: PgServer, path: RepositoryPath, options: WalOptions | None = None) -> None:
        self.server = server
        self.archiver = WalArchiver(
            path, server.data / "pg_wal", segment_bytes=1 << 20, options=options or WalOptions()
        )
        self.lines = LineServer(server.root / "wal.sock", self.archiver.handle, OWNER)
        self.lines.start()

    def drained(self) -> bool:
        status = self.archiver.status()
        return status.queue.ready == 0 and bool(status.last)

    def flush(self) -> None:
        """Have everything that was written so far archived."""
        self.server.sql("SELECT pg_switch_wal()")
        until(self.drained, f"archived: {self.archiver.status()}")

    def stop(self) -> None:
        self.lines.stop()
        self.archiver.stop()
        self.server.remove()


def new_server() -> PgServer:
    """A primary with WAL segments of 1 MB that archives through our client."""
    server = PgServer()
    server.initdb(
        "--wal-segsize=1",
        archive_mode="on",
        archive_command=archive_command(server.root, server.root / "wal.sock", OWNER),
        max_wal_size="64MB",
        min_wal_size="2MB",
    )
    return server


def standby_of(primary: PgServer) -> PgServer:
    """A running standby of `primary`, made with pg_basebackup."""
    server = PgServer()
    server.program("pg_basebackup", "-D", server.data, "-R", "-c", "fast", "-X", "stream", "-d", primary.conninfo)
    server.configure(
        archive_command=archive_command(server.root, server.root / "wal.sock", OWNER),
        wal_retrieve_retry_interval="100ms",
    )
    server.start()
    return server


def caught_up(primary: PgServer, standby: PgServer) -> None:
    """Wait until `standby` has replayed all that `primary` has written."""
    ((lsn,),) = primary.sql("SELECT pg_current_wal_lsn()::text")
    query = f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn"
    until(lambda: standby.sql(query) == [(True,)], "the standby catches up")


def promote(standby: PgServer) -> None:
    standby.sql("SELECT pg_promote(true, 60)")
    until(lambda: standby.sql("SELECT pg_is_in_recovery()") == [(False,)], "promoted")


def path_for(server: PgServer, store: ObjectStore, codec: Codec) -> RepositoryPath:
    """The path of this server's system in a new repository."""
    repository = Repository(store, codec)
    repository.open()
    name = PathName("c", server_facts(server.conninfo).system_id, "0a0b0c0d")
    return repository.begin_path(PathInfo(name.cluster, name.system_id, name.incarnation, time.time()))


def directory(root: Path) -> DirectoryStore:
    return DirectoryStore(root / "repository")


def snapshot(server: PgServer, path: RepositoryPath, codec: Codec, letter: str, **options: object) -> SnapshotRecord:
    return take_snapshot(
        path,
        codec,
        server.conninfo,
        snapshot="vs_" + letter * 16,
        node="n1",
        options=SMALL,
        **options,  # type: ignore[arg-type]
    )


def restored(path: RepositoryPath, target: Target, into: Path, **options: object) -> tuple[RestorePlan, RestoreResult]:
    """Plan and carry out a restore."""
    plan = make_plan(path, target, **options)  # type: ignore[arg-type]
    assert isinstance(plan, RestorePlan), plan
    return plan, asyncio.run(restore(path, plan, into, owner=OWNER))


def rows_of(data: Path, query: str) -> list[tuple[object, ...]]:
    """What a restored data directory answers."""
    server = PgServer(data)
    try:
        server.configure(archive_mode="off", hot_standby="off")
        server.start()
        return server.sql(query)
    finally:
        server.remove()
