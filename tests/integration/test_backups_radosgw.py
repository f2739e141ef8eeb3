"""The repository in a real S3 service, Ceph's radosgw: it checks signatures and digests, and has its own dialect."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backups.codec import Codec, SealingKey
from backups.errors import DifferentContent, ObjectMissing, RepositoryRefused, RepositoryUnavailable
from backups.layout import PathName
from backups.objects import S3Store
from backups.repository import Repository
from backups.restore_plan import Target, TargetKind
from backups.upkeep import audit
from tests.support.archive import (
    Archived,
    new_server,
    path_for,
    restored,
    rows_of,
    snapshot,
)
from tests.support.pgserver import BIN
from tests.support.radosgw import Radosgw, missing, radosgw

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing() or "radosgw is here"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def s3() -> Iterator[Radosgw]:
    with radosgw() as service:
        service.bucket("bucket")
        yield service


def test_the_contract(s3: Radosgw) -> None:
    store = s3.store("bucket", "contract")
    assert list(store.list("")) == []
    assert store.put("a/1", b"one") is True
    assert store.put("a/1", b"two") is False, "a second writer of one name is refused by the service"
    assert store._conditional is True
    assert store.get("a/1") == b"one"
    assert store.put("a/1", b"three", if_absent=False) is True
    assert store.put("a/2", b"") is True
    assert [(o.key, o.size) for o in store.list("a/")] == [("a/1", 5), ("a/2", 0)]
    assert all(o.modified > 1e9 for o in store.list(""))
    store.delete(["a/1", "a/none"])
    with pytest.raises(ObjectMissing, match="a/1"):
        store.get("a/1")


def test_of_many_writers_of_one_name_one_wins(s3: Radosgw) -> None:
    store = s3.store("bucket", "race")
    for turn in range(10):
        gate = threading.Barrier(6)

        def write(number: int, key: str = f"k{turn}", gate: threading.Barrier = gate) -> bool:
            gate.wait(10)
            return store.put(key, str(number).encode())

        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(write, range(6)))
        assert won.count(True) == 1
        assert store.get(f"k{turn}") == str(won.index(True)).encode()


def test_a_versioned_bucket_ignores_conditions_and_is_found_out(s3: Radosgw) -> None:
    """Ceph's dialect: with versions every write succeeds. Then the store looks first, and nothing is written over."""
    s3.bucket("versioned")
    client = s3.store("versioned")._client
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    store = s3.store("versioned")
    assert store.put("k", b"one") is True
    assert store.put("k", b"two") is False
    assert store._conditional is False
    assert store.get("k") == b"one"


def test_long_listings_come_in_pages(s3: Radosgw) -> None:
    store = s3.store("bucket", "pages", page=7)
    keys = [f"k/{i:04d}" for i in range(30)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.put(key, b"", if_absent=False), keys))
    assert [o.key for o in store.list("k/")] == keys
    store.delete(keys)
    assert list(store.list("k/")) == []


def test_wrong_credentials_are_refused_at_once(s3: Radosgw) -> None:
    for changes in ({"secret_key": "wrong"}, {"access_key": "nobody"}):
        store = s3.store("bucket", "x", **changes)
        with pytest.raises(RepositoryRefused, match="bucket"):
            store.put("k", b"1", if_absent=False)
        with pytest.raises(RepositoryRefused, match="bucket"):
            list(store.list(""))


def test_what_arrives_damaged_is_not_taken(s3: Radosgw) -> None:
    """The service checks the digest that every write carries: a body that was damaged on its way is not stored."""
    store = S3Store(s3.options("bucket", "digest"), pause=lambda _: None, attempts=3)
    client = store._client

    def damage(request: Any, **_: object) -> None:
        request.body = b"y" + request.body.read()[1:]

    client.meta.events.register("before-send.s3.PutObject", damage)
    with pytest.raises(RepositoryUnavailable, match="XAmzContentSHA256Mismatch"):
        store.put("k", b"x" * 1000, if_absent=False)
    client.meta.events.unregister("before-send.s3.PutObject", damage)
    with pytest.raises(ObjectMissing):
        store.get("k")
    assert store.put("k", b"x" * 1000) is True


def test_wal_is_stored_once(s3: Radosgw) -> None:
    path = Repository(s3.store("bucket", "wal"), Codec()).path(PathName("c", "1", "00000000"))
    name = "000000010000000000000003"
    assert path.put_wal(name, b"w" * 1000) > 0
    assert path.put_wal(name, b"w" * 1000) == 0, "the same content again is fine"
    with pytest.raises(DifferentContent, match="conflict/"):
        path.put_wal(name, b"v" * 1000)
    assert path.get_wal(name) == b"w" * 1000


@pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}")
def test_a_snapshot_and_wal_there_and_back(s3: Radosgw) -> None:
    server = new_server()
    try:
        server.start()
        codec = Codec(key=SealingKey(b"k" * 32))
        path = path_for(server, s3.store("bucket", "deep/prefix"), codec)
        archived = Archived(server, path)
        archived.archiver.stand(1)
        server.sql("CREATE TABLE story AS SELECT 'one' AS stage")
        snapshot(server, path, codec, "a")
        server.sql("INSERT INTO story VALUES ('two')")
        archived.flush()
        found = audit(path, deep=True)
        assert not found.problems and not found.garbage
        assert len(found.snapshots[0].parts) > 2
        restored(path, Target(TargetKind.LATEST), server.root / "copy")
        assert rows_of(server.root / "copy", "SELECT array_agg(stage) FROM story") == [(["one", "two"],)]
        archived.stop()
    finally:
        server.remove()
