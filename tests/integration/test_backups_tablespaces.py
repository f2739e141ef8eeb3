"""Restores on the machine where the cluster lives whose tablespaces the WAL creates: its data is not touched."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from backups.codec import Codec
from backups.errors import RestorePrevented
from backups.repository import Path as RepositoryPath
from backups.restore_plan import Target, TargetKind
from backups.spaces import PAGE_BYTES, Guard, created, payload, suspect_file
from backups.verify import verify
from tests.support.archive import OWNER, Archived, restored, rows_of, snapshot
from tests.support.pgserver import BIN, PgServer

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
]
LATEST = Target(TargetKind.LATEST)


def space(server: PgServer, name: str = "space") -> Path:
    place = server.root / name
    place.mkdir()
    if OWNER is not None:
        shutil.chown(place, OWNER.uid, OWNER.gid)
    return place


def fill(server: PgServer, place: Path) -> None:
    server.sql(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
    server.sql("CREATE TABLE far TABLESPACE elsewhere AS SELECT g FROM generate_series(1, 1000) g")
    server.sql("CHECKPOINT")


def test_a_restore_leaves_the_tablespace_of_the_living_alone(server: PgServer, path: RepositoryPath) -> None:
    """PostgreSQL replays CREATE TABLESPACE where the first one was made, and then into the same files."""
    archived = Archived(server, path)
    archived.archiver.stand(1)
    snapshot(server, path, Codec(), "a")
    place = space(server)
    fill(server, place)
    archived.flush()
    server.sql("INSERT INTO far SELECT g FROM generate_series(1, 50) g")
    server.sql("CHECKPOINT")

    with pytest.raises(RestorePrevented, match=f"^0[0-9A-F]+ creates a tablespace in {place}, where data is"):
        restored(path, LATEST, server.root / "refused")
    server.stop()
    server.start()  # so that nothing is answered out of memory
    assert server.sql("SELECT count(*) FROM far") == [(1050,)]

    server.stop()
    shutil.move(place, server.root / "away")
    space(server)
    restored(path, LATEST, server.root / "alone")
    assert rows_of(server.root / "alone", "SELECT count(*) FROM far") == [(1000,)]
    archived.stop()


def test_nor_does_a_restore_test_touch_it(server: PgServer, path: RepositoryPath) -> None:
    """It may have been created while the snapshot was taken. That is no fault of the snapshot: nothing is written."""
    place = space(server)
    record = snapshot(
        server, path, Codec(), "a", progress=lambda _: None if any(place.iterdir()) else fill(server, place)
    )
    with pytest.raises(RestorePrevented, match="creates a tablespace in"):
        asyncio.run(verify(path, record, server.root / "scratch", owner=OWNER, node="n1"))
    assert path.snapshot(record.id).verification is None
    server.stop()
    server.start()
    assert server.sql("SELECT count(*) FROM far") == [(1000,)]


def test_a_record_is_found_across_pages_and_with_an_origin(server: PgServer) -> None:
    """As the records lie in real WAL, whatever is before and after them."""
    server.sql("SELECT pg_replication_origin_create('elsewhere')")
    places = [space(server, "x" * (10 * i + 1)) for i in range(12)]
    with server.connect() as connection:
        connection.autocommit = True
        connection.execute("SELECT pg_replication_origin_session_setup('elsewhere')")
        for number, place in enumerate(places):
            connection.execute(f"CREATE TABLESPACE s{number} LOCATION '{place}'")
            for size in range(0, 8000, 900):
                connection.execute(f"SELECT pg_logical_emit_message(false, 'filler', repeat('x', {size + number}))")
    files = sorted(f for f in (server.data / "pg_wal").iterdir() if len(f.name) == 24)
    segments = [f.read_bytes() for f in files]
    records = b"".join(payload(s, int.from_bytes(s[8:16], "little")) for s in segments)
    assert list(created(records)) == [str(p) for p in places]

    for place in places:
        (next(place.glob("PG_*")) / "data").touch()
    pages = [s[at : at + PAGE_BYTES] for s in segments for at in range(0, len(s), PAGE_BYTES)]
    guard, told, suspected = Guard(), [], 0
    for page in pages:  # as if each were a file: a record may begin in one and end in the next
        file = server.root / "page"
        file.write_bytes(page)
        suspected += suspect_file(file)
        try:
            guard.look(file, file.name, suspected=suspect_file(file))
        except RestorePrevented as error:
            told.append(str(error).partition(" creates a tablespace in ")[2].partition(",")[0])
    assert list(dict.fromkeys(told)) == [str(p) for p in places]
    assert suspected < 3 * len(places), "few are looked at for nothing"
