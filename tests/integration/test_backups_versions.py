"""Snapshots of every version of PostgreSQL there is here, unpacked and started; compressed by the server or by us.

13 and 14 speak an older protocol. 16 and 18 come without zstd here: asked to compress, they refuse, and we do it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backups.base import SnapshotOptions, take_snapshot
from backups.catalog import SnapshotRecord
from backups.codec import Codec
from backups.extract import unpack
from backups.repository import Path as RepositoryPath
from tests.support.archive import OWNER, directory, path_for
from tests.support.pgserver import BIN, PgServer
from tests.support.versions import VERSIONS, binaries, missing

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(300),
]
OPTIONS = SnapshotOptions(part_bytes=1 << 20)
QUERY = "SELECT (SELECT count(*) FROM near), (SELECT count(*) FROM far), (SELECT sum(length(t)) FROM far)"


@contextmanager
def filled(programs: Path) -> Iterator[PgServer]:
    """A server with a tablespace, and some data that zstd cannot make vanish."""
    server = PgServer(binaries=programs)
    try:
        server.initdb()
        server.start()
        space = server.root / "space"
        space.mkdir()
        if OWNER is not None:
            os.chown(space, OWNER.uid, OWNER.gid)
        server.sql(f"CREATE TABLESPACE elsewhere LOCATION '{space}'")
        server.sql("CREATE TABLE near AS SELECT g, md5(g::text) AS t FROM generate_series(1, 20000) g")
        server.sql(
            "CREATE TABLE far TABLESPACE elsewhere AS SELECT md5(g::text) AS t FROM generate_series(1, 100000) g"
        )
        yield server
    finally:
        server.remove()


def taken(
    server: PgServer, letter: str, codec: Codec, options: SnapshotOptions = OPTIONS
) -> tuple[RepositoryPath, SnapshotRecord]:
    path = path_for(server, directory(server.root), codec)
    name = "vs_" + letter * 16
    return path, take_snapshot(path, codec, server.conninfo, snapshot=name, node="n1", options=options)


def comes_back(path: RepositoryPath, record: SnapshotRecord, server: PgServer) -> None:
    """Unpack it, start it with the programs of its version, and compare."""
    into = server.root / record.id
    seen: list[int] = []
    unpack(path, record, into, owner=OWNER, progress=seen.append)
    assert seen[-1] == record.raw_bytes, "the size of the plain tars is what was recorded"
    expected = server.sql(QUERY)
    space = server.root / f"{record.id}.tablespaces"
    lines = "".join(f"{place.name} {place}\n" for place in space.iterdir())
    (into / "tablespace_map").write_text(lines)
    copy = PgServer(into, server.binaries)
    try:
        copy.configure()
        copy.start()
        assert copy.sql(QUERY) == expected
    finally:
        copy.remove()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_snapshot_of_each_version(version: int) -> None:
    if why := missing(version):
        pytest.skip(why)
    with binaries(version) as programs, filled(programs) as server:
        path, record = taken(server, "a", Codec())
        assert record.major == version
        assert (record.role, len(record.archives)) == ("primary", 2)
        assert sum(len(a.parts) for a in record.archives) > 3
        comes_back(path, record, server)


def test_who_compresses_makes_no_difference() -> None:
    """A limit on the rate is a limit on what is read: then we compress, and a part is a frame of its own."""
    with filled(BIN) as server:
        _, by_server = taken(server, "a", Codec(level=3))
        path, by_us = taken(server, "b", Codec(level=3), SnapshotOptions(part_bytes=1 << 20, max_rate_kib=1 << 20))
        assert abs(by_us.raw_bytes - by_server.raw_bytes) < 64 << 20
        for record in (by_server, by_us):
            comes_back(path, record, server)
