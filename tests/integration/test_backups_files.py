"""Every file of a snapshot is compared with PostgreSQL's manifest, whatever checksums it has and whoever looks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backups import layout
from backups.ahead import plain
from backups.catalog import Archive, SnapshotRecord
from backups.codec import Codec, SealingKey
from backups.errors import ObjectDamaged, RestoreFailed
from backups.repository import Path as RepositoryPath
from backups.restore_plan import Target, TargetKind
from tests.support.archive import OWNER, directory, new_server, path_for, restored, rows_of, snapshot
from tests.support.pgserver import BIN, PgServer

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
]
MARK = b"a row that will be another one"
QUERY = "SELECT near.t, far.t FROM near, far"
CODEC = Codec(key=SealingKey(b"k" * 32))


@pytest.fixture
def server() -> Iterator[PgServer]:
    """With a tablespace."""
    made = new_server()
    made.start()
    place = made.root / "space"
    place.mkdir()
    if OWNER is not None:
        shutil.chown(place, OWNER.uid, OWNER.gid)
    made.sql(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
    made.sql(f"CREATE TABLE near AS SELECT '{MARK.decode()}' AS t")
    made.sql(f"CREATE TABLE far TABLESPACE elsewhere AS SELECT '{MARK.decode()}' AS t")
    made.sql("CHECKPOINT")
    yield made
    made.remove()


def again(
    path: RepositoryPath,
    record: SnapshotRecord,
    letter: str,
    change: Callable[[str, bytes], bytes],
    manifest: bytes | None = None,
) -> SnapshotRecord:
    """Another snapshot whose parts are as they were stored: the same, but for what `change` makes of each tar."""
    name = "vs_" + letter * 16
    archives = []
    for archive in record.archives:
        with plain(path, archive.parts, lambda _: None) as pieces:
            tar = change(archive.name, b"".join(map(bytes, pieces)))
        frame = CODEC.stream()
        part = path.put_part(layout.part_key(name, archive.name, 0), frame.compress(tar) + frame.flush())
        archives.append(Archive(archive.name, archive.location, len(tar), (part,)))
    stored = path.put_manifest(name, manifest or path.get_manifest(record))
    made = replace(record, id=name, archives=tuple(archives), manifest=stored)
    path.commit(made)
    return made


def table_is_another(archive: str) -> Callable[[str, bytes], bytes]:
    """A bit of a table, somewhere between PostgreSQL and the repository."""

    def change(name: str, tar: bytes) -> bytes:
        assert name != archive or MARK in tar
        return tar.replace(MARK, MARK.replace(b"another", b"anoTher")) if name == archive else tar

    return change


def restore_of(path: RepositoryPath, record: SnapshotRecord, into: Path) -> Path:
    restored(path, Target(TargetKind.SNAPSHOT), into, snapshot=record.id)
    return into


def test_what_is_another_than_it_was_does_not_come_back(server: PgServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found while it is written, also in a tablespace; where that cannot be computed, by pg_verifybackup."""
    path = path_for(server, directory(server.root), CODEC)
    record = snapshot(server, path, CODEC, "a")
    tablespace = next(a.name for a in record.archives if a.name != "base.tar")
    file = server.sql("SELECT pg_relation_filepath('far')")[0][0]
    far = again(path, record, "b", table_is_another(tablespace))
    near = again(path, record, "c", table_is_another("base.tar"))
    with pytest.raises(ObjectDamaged, match=f"{tablespace}: {file} is not what it was"):
        restore_of(path, far, server.root / "b")
    with pytest.raises(ObjectDamaged, match=r"base\.tar: .* is not what it was"):
        restore_of(path, near, server.root / "c")
    assert not (server.root / "c" / "global" / "pg_control").exists(), "it cannot be started"
    copy = restore_of(path, record, server.root / "d")
    assert rows_of(copy, QUERY) == [(MARK.decode(),) * 2]

    monkeypatch.setitem(sys.modules, "crc32c", None)  # as on a machine that does not have it
    with pytest.raises(RestoreFailed, match=f"pg_verifybackup exited 1: .*{file}"):
        restore_of(path, far, server.root / "e")
    copy = restore_of(path, record, server.root / "f")
    assert rows_of(copy, QUERY) == [(MARK.decode(),) * 2]


@pytest.mark.parametrize("algorithm", ["NONE", "SHA224", "SHA256", "SHA512"])
def test_a_manifest_with_other_checksums(server: PgServer, algorithm: str) -> None:
    """As other versions of flypg, or somebody by hand, may have stored it."""
    path = path_for(server, directory(server.root), CODEC)
    record = snapshot(server, path, CODEC, "a")
    into = server.root / "basebackup"
    options = ("-Ft", "-X", "fetch", "-c", "fast", f"--manifest-checksums={algorithm}")
    server.program("pg_basebackup", "-D", into, *options, "-d", server.conninfo)
    manifest = (into / "backup_manifest").read_bytes()
    taken = again(path, record, "b", lambda name, _: (into / name).read_bytes(), manifest)
    copy = restore_of(path, taken, server.root / "c")
    assert rows_of(copy, QUERY) == [(MARK.decode(),) * 2]

    file = server.sql("SELECT pg_relation_filepath('near')")[0][0]
    lost = again(path, taken, "c", lambda _, tar: tar.replace(file.encode(), f"{file}0".encode()), manifest)
    with pytest.raises(ObjectDamaged, match="no tar archive: a header's checksum does not fit"):
        restore_of(path, lost, server.root / "d")
    if algorithm != "NONE":
        bad = again(path, taken, "d", table_is_another("base.tar"), manifest)
        with pytest.raises(ObjectDamaged, match="is not what it was"):
            restore_of(path, bad, server.root / "e")
