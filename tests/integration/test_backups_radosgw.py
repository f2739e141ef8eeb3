"""The repository in a real S3 service, Ceph's radosgw: it checks signatures and digests, and has its own dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from backups.codec import Codec, SealingKey
from backups.errors import ObjectMissing, RepositoryRefused, RepositoryUnavailable
from backups.objects import S3Store
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
from tests.support.storing import keeps_the_contract, lets_one_writer_win, lists_in_pages, stores_wal_once

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
    keeps_the_contract(store)
    assert store._conditional is True, "the service itself refuses a second writer"


def test_of_many_writers_of_one_name_one_wins(s3: Radosgw) -> None:
    lets_one_writer_win(s3.store("bucket", "race"), rounds=10)


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
    lists_in_pages(s3.store("bucket", "pages", page=7), count=30)


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
    stores_wal_once(s3.store("bucket", "wal"))


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
