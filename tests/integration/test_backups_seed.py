"""A standby out of a repository, with real servers: on the right branch, or not at all."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psycopg
import pytest

from backups.codec import Codec
from backups.errors import RestoreFailed, RestoreRefused
from backups.layout import SEGMENT, Segment, wal_key
from backups.repository import Path as RepositoryPath
from backups.seed import Seeded, seed
from backups.seed_plan import Followed
from cluster.model import NodeId, Upstream
from postgres import seeding
from tests.support.archive import (
    OWNER,
    Archived,
    caught_up,
    directory,
    new_server,
    path_for,
    promote,
    snapshot,
    standby_of,
)
from tests.support.pgserver import BIN, PgServer
from tests.support.versions import VERSIONS, binaries, missing

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
]
CODEC = Codec()
ROWS = "SELECT array_agg(stage ORDER BY id) FROM story"


@pytest.fixture
def primary() -> Iterator[PgServer]:
    made = new_server()
    made.configure(wal_keep_size="0")
    made.start()
    made.sql("CREATE TABLE story (id serial, stage text)")
    yield made
    made.remove()


def write(server: PgServer, stage: str) -> None:
    server.sql(f"INSERT INTO story (stage) VALUES ('{stage}')")


def followed(server: PgServer) -> Followed:
    """The primary by its own word, as a node would hear it."""

    async def ask() -> seeding.Seeding:
        async with await psycopg.AsyncConnection.connect(
            host=str(server.sockets), port=server.port, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            return await seeding.described(connection, Upstream(NodeId("n1"), "", 0, 1), Path("/nowhere"))

    found = asdict(asyncio.run(ask()))
    return Followed(**{k: v for k, v in found.items() if k not in ("source", "directory")})


def seeded(path: RepositoryPath, primary: Followed, into: Path, programs: Path = BIN) -> tuple[Seeded, list[str]]:
    said: list[str] = []
    made = asyncio.run(seed(path, primary, into, owner=OWNER, programs=str(programs), say=said.append))
    return made, said


def streaming_from(data: Path, primary: PgServer) -> PgServer:
    """A standby on `data` that has caught up with `primary` by streaming, and by nothing else."""
    server = PgServer(data, primary.binaries)
    signal_file = data / "standby.signal"
    assert signal_file.exists()
    server.configure(primary_conninfo=primary.conninfo, restore_command="", archive_mode="off")
    server.start()
    caught_up(primary, server)
    assert primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == [(1,)]
    return server


def let_go(server: PgServer) -> None:
    """Have the server give up the WAL that it needs no more itself."""
    for _ in range(3):
        write(server, "filler")
        server.sql("SELECT pg_switch_wal()")
        server.sql("CHECKPOINT")


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_a_snapshot_and_what_is_archived_lead_to_the_primary(primary: PgServer, role: str) -> None:
    """The primary has let go most of the WAL since the snapshot, whoever that was taken of; its own settings come
    along."""
    path = path_for(primary, directory(primary.root), CODEC)
    archive = Archived(primary, path)
    archive.archiver.stand(1)
    primary.sql("ALTER SYSTEM SET work_mem = '5MB'")
    source = primary if role == "primary" else standby_of(primary)
    taken = snapshot(source, path, CODEC, "a")
    assert taken.role == role
    if source is not primary:
        source.remove()
    write(primary, "one")
    let_go(primary)
    archive.flush()
    let_go(primary)
    archive.flush()
    now = followed(primary)
    assert now.oldest > taken.stop_lsn, "alone, the snapshot is of no use"
    made, said = seeded(path, now, primary.root / "copy")
    assert made.snapshot == taken.id and made.until >= now.oldest
    assert any("replaying WAL" in text for text in said), said
    write(primary, "two")
    copy = streaming_from(primary.root / "copy", primary)
    try:
        assert copy.sql(ROWS) == primary.sql(ROWS)
        assert copy.sql("SHOW work_mem") == [("5MB",)]
        assert copy.sql("SELECT pg_is_in_recovery()") == [(True,)]
    finally:
        copy.remove()
    archive.stop()


def test_what_the_replaced_primary_wrote_beyond_the_fork_is_not_touched(primary: PgServer) -> None:
    """Cut off, it went on, and archived the segment of the fork as it has it. The new primary's is the one that counts;
    before that is archived there is no seed."""
    path = path_for(primary, directory(primary.root), CODEC)
    old = Archived(primary, path)
    old.archiver.stand(1)
    snapshot(primary, path, CODEC, "a")
    write(primary, "kept")
    standby = standby_of(primary)
    caught_up(primary, standby)
    new = Archived(standby, path)
    standby.stop(signal.SIGINT)
    write(primary, "lost")
    old.flush()
    orphan = snapshot(primary, path, CODEC, "b")  # the newest, and of nobody's history
    primary.stop(signal.SIGKILL)
    standby.configure(primary_conninfo="")
    standby.start()
    promote(standby)
    write(standby, "after")
    now = followed(standby)
    assert now.timeline == 2 and now.line
    fork = now.line[-1]
    abandoned = Segment(1, fork.lsn >> 20).name(1 << 20)
    assert abandoned in list(path.wal_names()), "the segment of the fork, as the old primary has it"
    with pytest.raises(RestoreRefused, match=r"not on the history|whose beginning is not archived yet"):
        seeded(path, now, primary.root / "early")
    assert not (primary.root / "early").exists(), "nothing was begun"
    new.archiver.stand(2)
    new.flush()
    now = followed(standby)
    made, _ = seeded(path, now, primary.root / "copy")
    assert made.snapshot != orphan.id
    copy = streaming_from(primary.root / "copy", standby)
    try:
        assert copy.sql(ROWS) == [(["kept", "after"],)]
    finally:
        copy.remove()
    old.lines.stop()
    old.archiver.stop()
    new.stop()


def test_a_repository_that_is_damaged_says_so(primary: PgServer) -> None:
    """A part, or WAL, that is not what was stored: there is no standby, and the reason names the object."""
    path = path_for(primary, directory(primary.root), CODEC)
    archive = Archived(primary, path)
    archive.archiver.stand(1)
    taken = snapshot(primary, path, CODEC, "a")
    for stage in "xyz":
        write(primary, stage)
        archive.flush()
    root = primary.root / "repository" / str(path.name)
    names = [n for n in path.wal_names() if SEGMENT.match(n)]
    segment = root / f"{wal_key(names[-1])}.zst"
    whole = segment.read_bytes()
    segment.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RestoreFailed, match=names[-1]):
        seeded(path, followed(primary), primary.root / "no-wal")
    segment.write_bytes(whole)
    part = root / taken.parts[0].key
    part.write_bytes(b"x" * taken.parts[0].size)
    with pytest.raises(Exception, match=taken.parts[0].key):
        seeded(path, followed(primary), primary.root / "no-part")
    archive.stop()


@pytest.mark.parametrize("version", VERSIONS)
def test_of_each_version_without_an_archive(version: int) -> None:
    """The WAL inside the snapshot leads to what the primary still has."""
    if why := missing(version):
        pytest.skip(why)
    with binaries(version) as programs:
        if not (programs / "pg_controldata").exists():
            pytest.skip(f"PostgreSQL {version}: this build has no pg_controldata")
        server = PgServer(binaries=programs)
        try:
            server.initdb()
            server.start()
            path = path_for(server, directory(server.root), CODEC)
            taken = snapshot(server, path, CODEC, "a")
            server.sql("CREATE TABLE t AS SELECT 1 AS n")
            made, _ = seeded(path, followed(server), server.root / "copy", programs)
            assert (made.snapshot, made.until) == (taken.id, taken.stop_lsn)
            copy = streaming_from(server.root / "copy", server)
            try:
                assert copy.sql("SELECT n FROM t") == [(1,)]
            finally:
                copy.remove()
        finally:
            server.remove()
