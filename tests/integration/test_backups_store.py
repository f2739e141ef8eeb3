"""Both kinds of repository keep what they promise, and S3 in the face of what real services do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backups.codec import Codec
from backups.directory import DirectoryStore
from backups.errors import ObjectMissing, RepositoryRefused, RepositoryUnavailable
from backups.layout import PathName
from backups.objects import FIRST_PAUSE_S, LONGEST_PAUSE_S, ObjectStore, S3Store
from backups.repository import Repository
from cluster.errors import StoredFormatError
from tests.support.s3 import S3Service, s3_service
from tests.support.storing import keeps_the_contract, lets_one_writer_win, lists_in_pages, stores_wal_once


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Service]:
    with s3_service() as service:
        yield service


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        return DirectoryStore(tmp_path / "repository")
    service: S3Service = request.getfixturevalue("s3")
    return service.store(f"contract/{tmp_path.name}")


def test_the_contract(store: ObjectStore) -> None:
    keeps_the_contract(store)


def test_of_many_writers_of_one_name_one_wins(store: ObjectStore) -> None:
    lets_one_writer_win(store, rounds=5)


def test_long_listings_come_in_pages(s3: S3Service) -> None:
    lists_in_pages(S3Store(replace(s3.options("pages"), page=10)), count=25)
    assert sum("GET /bucket" in seen for seen in s3.faults.seen) >= 3


@pytest.mark.parametrize(
    "faults",
    [
        [("PUT", "InternalError")],
        [("PUT", "SlowDown")] * 3,
        [("PUT", "reset")],
        [("PUT", "etag")],
        [("PUT", "half"), ("PUT", "half")],
        [("GET", "InternalError"), ("GET", "reset")],
        [("GET", "short")],
        [("PUT", "page"), ("GET", "page")],
    ],
    ids=lambda f: "+".join(fault for _, fault in f),
)
def test_passing_faults_are_ridden_out(s3: S3Service, faults: list[tuple[str, str]], tmp_path: Path) -> None:
    store = s3.store(f"faults/{tmp_path.name}")
    store.put("warm", b"up")
    s3.faults.plan = list(faults)
    path = Repository(store, Codec()).path(PathName("c", "1", "00000000"))
    part = path.put_part("snapshots/x/base.tar.zst.000000", Codec().pack(b"data" * 1000, "x"))
    assert Codec().unpack(path.get_part(part), "x") == b"data" * 1000
    assert not s3.faults.plan, "every fault was met"


def test_a_slow_answer_is_not_waited_for(s3: S3Service) -> None:
    """What was sent may still be carried out, after it was sent again: either way it is stored once, and whole."""
    s3.store("slow").put("warm", b"up")
    path = Repository(s3.store("slow", timeout_s=2), Codec()).path(PathName("c", "1", "00000000"))
    s3.faults.plan = [("PUT", "slow"), ("GET", "slow")]
    data = Codec().pack(b"data" * 1000, "x")
    part = path.put_part("snapshots/x/base.tar.zst.000000", data)
    assert path.get_part(part) == data
    assert not s3.faults.plan, "every fault was met"


def test_attempts_come_slower_and_slower(s3: S3Service) -> None:
    pauses: list[float] = []
    store = S3Store(s3.options("pauses"), pause=pauses.append, attempts=8)
    s3.faults.plan = [("PUT", "SlowDown")] * 7
    assert store.put("k", b"x", if_absent=False) is True
    longest = [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**n) for n in range(7)]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True)), pauses


def test_faults_that_stay_end_in_the_right_error(s3: S3Service, tmp_path: Path) -> None:
    store = s3.store(f"stay/{tmp_path.name}", attempts=3)
    store.put("warm", b"up")
    for fault, error in (
        ("InternalError", RepositoryUnavailable),
        ("reset", RepositoryUnavailable),
        ("ExpiredToken", RepositoryRefused),
        ("AccessDenied", RepositoryRefused),
    ):
        s3.faults.plan = [("PUT", fault)] * 9
        before = len(s3.faults.seen)
        with pytest.raises(error, match="k/1") as caught:
            store.put("k/1", b"x", if_absent=False)
        tries = len(s3.faults.seen) - before
        assert tries == (3 if error is RepositoryUnavailable else 1), f"{fault}: {caught.value}"
        s3.faults.plan = []


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_one_that_sends_us_elsewhere_is_refused(s3: S3Service, method: str) -> None:
    """Every request, as from http to https: boto3 asks where the bucket is, and is sent elsewhere there, too."""
    store = s3.store("elsewhere", attempts=3)
    store.put("k/1", b"x")
    s3.faults.plan = [(m, "PermanentRedirect") for m in (method, "HEAD")] * 9
    ask = {"PUT": lambda: store.put("k/2", b""), "GET": lambda: store.get("k/1"), "DELETE": lambda: store.delete(["k"])}
    try:
        with pytest.raises(RepositoryRefused, match=r"PermanentRedirect.*FLYPG_S3_ENDPOINT.*FLYPG_S3_REGION"):
            ask[method]()
    finally:
        s3.faults.plan = []


def test_a_listing_that_is_none_is_not_an_empty_one(s3: S3Service) -> None:
    """What is in no listing counts as deleted."""
    store = s3.store("listing", attempts=2)
    store.put("k/1", b"x")
    s3.faults.plan = [("GET", "page")] * 2
    with pytest.raises(RepositoryUnavailable, match="is not S3"):
        list(store.list("k/"))


def test_who_may_not_delete_can_write(s3: S3Service) -> None:
    """Credentials of an archiver often may not, and nothing is left behind by each of its processes."""
    for turn in range(3):
        s3.faults.plan = [("DELETE", "AccessDenied")] * 3
        assert s3.store("nodelete").put(f"k/{turn}", b"x") is True
    s3.faults.plan = []
    assert len(list(s3.store("nodelete").list(""))) == 4, "one of them to try conditions with"


def test_a_file_of_certificates_that_is_not_there_is_named(
    s3: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", f"{tmp_path}/ca.pem")
    with pytest.raises(RepositoryRefused, match=r"AWS_CA_BUNDLE.*ca.pem"):
        s3.store("certificates")


def test_nobody_there_is_unavailable_and_no_bucket_is_refused(s3: S3Service) -> None:
    gone = S3Store(type(s3)("http://127.0.0.1:9", "bucket", s3.faults).options(), pause=lambda _: None, attempts=2)
    with pytest.raises(RepositoryUnavailable, match=r"s3://bucket/p at http://127\.0\.0\.1:9: k"):
        gone.get("k")
    other = S3Store(type(s3)(s3.endpoint, "nosuchbucket", s3.faults).options(), pause=lambda _: None)
    with pytest.raises(RepositoryRefused, match="nosuchbucket"):
        other.put("k", b"")


def test_a_service_that_ignores_conditions_is_found_out(s3: S3Service) -> None:
    s3.faults.ignore_conditions = True
    try:
        store = s3.store("dialect")
        assert store.put("k", b"one") is True
        assert store.put("k", b"two") is False
        assert store.get("k") == b"one"
    finally:
        s3.faults.ignore_conditions = False


def test_a_service_that_refuses_conditions_is_found_out(s3: S3Service) -> None:
    store = s3.store("refuses")
    s3.faults.plan = [("PUT", "NotImplemented")]
    assert store.put("k", b"one") is True
    assert store.put("k", b"two") is False


def test_wal_is_stored_once(store: ObjectStore) -> None:
    stores_wal_once(store)


def test_a_repository_of_another_format_is_refused(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissing, match="no repository"):
        Repository(store, Codec()).open(create=False)
    Repository(store, Codec()).open()
    store.put("flypg-repository.json", b'{"format_version": 99}', if_absent=False)
    with pytest.raises(StoredFormatError, match="99"):
        Repository(store, Codec()).open()


def test_a_directory_leaves_room_for_postgresql(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, min_free_bytes=1 << 60)
    with pytest.raises(RepositoryRefused, match="MiB free"):
        store.put("a/b", b"x")
    assert list(store.list("")) == []


def test_a_directory_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    """A mount that fails: what is in no listing counts as deleted."""
    store = DirectoryStore(tmp_path)
    store.put("catalog/a", b"x")
    assert list(store.list("none/")) == []
    (tmp_path / "catalog").rename(tmp_path / "elsewhere")
    (tmp_path / "catalog").symlink_to("catalog")
    with pytest.raises(RepositoryUnavailable, match=r"catalog.*symbolic links"):
        list(store.list("catalog/"))


def test_an_interrupted_write_is_tidied_up(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/b", b"x")
    (tmp_path / "a" / ".tmp-1-abc").write_bytes(b"half")
    assert [o.key for o in store.list("")] == ["a/b"]
    store.tidy(0.0)
    assert (tmp_path / "a" / ".tmp-1-abc").exists(), "it may be one that is being written"
    store.tidy(9e9)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
