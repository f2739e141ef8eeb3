"""Giving WAL to a recovery: in its order, fetched ahead, and never in memory as a whole."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from backups.codec import Codec, SealingKey
from backups.layout import Segment
from backups.repository import Repository
from backups.walget import AHEAD, SPOOLED, WalFetcher
from tests.support.memory import NAME, MemoryStore, path_on
from tests.support.snapshots import SEGMENT, wal_segment

HISTORY = "00000002.history"


def content(number: int) -> bytes:
    """As hard to compress as WAL is."""
    return wal_segment(number)[:64] + random.Random(number).randbytes(SEGMENT // 2).ljust(SEGMENT - 64, b"\0")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "pg_wal").mkdir(parents=True)
    return tmp_path / "data"


def filled(count: int, key: SealingKey | None = None) -> MemoryStore:
    store = MemoryStore()
    path = Repository(store, Codec(key=key)).path(NAME)
    for number in range(1, count + 1):
        path.put_wal(Segment(1, number).name(), content(number))
    path.put_wal(HISTORY, b"1\t0/5000000\tno reason\n")
    return store


def fetcher(store: MemoryStore, data: Path, **more: object) -> WalFetcher:
    return WalFetcher(path_on(store), data, highest_timeline=1, segment_bytes=SEGMENT, owner=None, **more)  # type: ignore[arg-type]


def spooled(data: Path) -> list[str]:
    return sorted(name.rpartition("-")[2] for name in os.listdir(data / "pg_wal") if name.startswith(SPOOLED))


def soon(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_a_recovery_gets_what_it_asks_for_and_leaves_nothing_behind(data: Path) -> None:
    made = fetcher(filled(5), data)
    target = data / "pg_wal" / "RECOVERYXLOG"
    for number in range(1, 6):
        assert made.handle(["get", Segment(1, number).name(), str(target)]) == "ok"
        assert target.read_bytes() == content(number)
        assert target.stat().st_mode & 0o777 == 0o600
    ahead = [Segment(1, n).name() for n in (2, 3)]
    assert made.handle(["get", Segment(1, 1).name(), str(target)]) == "ok", "anything may be asked for again"
    soon(lambda: spooled(data) == ahead, "the next ones are there before they are asked for")
    assert made.handle(["get", Segment(1, 6).name(), str(target)]) == "no"
    history = data / "pg_wal" / "RECOVERYHISTORY"
    assert made.handle(["get", HISTORY, str(history)]) == "ok"
    assert history.read_bytes() == b"1\t0/5000000\tno reason\n"
    made.stop()
    assert sorted(os.listdir(data / "pg_wal")) == ["RECOVERYHISTORY", "RECOVERYXLOG"]


def test_what_somebody_who_was_killed_has_left_goes(data: Path) -> None:
    (data / "pg_wal" / f"{SPOOLED}7-{Segment(1, 2).name()}").write_bytes(b"half")
    made = fetcher(filled(1), data)
    assert spooled(data) == []
    made.stop()


def test_no_file_but_those_of_pg_wal_is_written(data: Path, tmp_path: Path) -> None:
    made = fetcher(filled(1), data)
    (tmp_path / "elsewhere").mkdir()
    (data / "base").mkdir()
    (data / "pg_wal" / "archive_status").mkdir()
    (data / "link").symlink_to(tmp_path / "elsewhere")
    inside = ("base/x", "x", "link/x", "pg_wal/../x", "pg_wal/archive_status/x")
    for place in ("elsewhere/x", *(f"data/{name}" for name in inside)):
        answer = made.handle(["get", Segment(1, 1).name(), str(tmp_path / place)])
        assert answer.startswith("stop ") and "is not in pg_wal" in answer, place
        assert not (tmp_path / place).exists()
    made.stop()


def test_wal_may_have_a_volume_of_its_own(data: Path, tmp_path: Path) -> None:
    (data / "pg_wal").rename(tmp_path / "wal")
    (data / "pg_wal").symlink_to(tmp_path / "wal")
    made = fetcher(filled(1), data)
    assert made.handle(["get", Segment(1, 1).name(), str(data / "pg_wal" / "RECOVERYXLOG")]) == "ok"
    assert (tmp_path / "wal" / "RECOVERYXLOG").read_bytes() == content(1)
    made.stop()


@pytest.mark.parametrize("at", [0, 5, 1000, -5, -1])
def test_a_damaged_segment_is_not_given(data: Path, at: int) -> None:
    """Nor one that was cut off, however little is missing."""
    store = filled(3)
    key = next(k for k in store.objects if Segment(1, 2).name() in k)
    good = store.objects[key]
    for bad in (
        good[:at] + bytes([good[at] ^ 0x10]) + (good[at + 1 :] if at != -1 else b""),
        good[:at],
        good + b"more",
    ):
        store.objects[key] = bad
        made = fetcher(store, data)
        target = data / "pg_wal" / "RECOVERYXLOG"
        assert made.handle(["get", Segment(1, 1).name(), str(target)]) == "ok"
        answer = made.handle(["get", Segment(1, 2).name(), str(target)])
        if answer == "ok":  # one byte of the frame says how much memory unpacking may take
            assert at == 5 and target.read_bytes() == content(2)
        else:
            assert answer.startswith("stop ") and Segment(1, 2).name() in answer
            assert made.failure
        made.stop()
        assert spooled(data) == []
        target.unlink()


@pytest.mark.parametrize("key", [None, SealingKey(b"k" * 32)], ids=["plain", "sealed"])
def test_memory(data: Path, key: SealingKey | None) -> None:
    """Some segments as they are stored, which is half of their size here, none as a whole."""
    store = filled(6, key)
    path = Repository(store, Codec(key=key)).path(NAME)
    made = WalFetcher(path, data, highest_timeline=1, segment_bytes=SEGMENT, owner=None)
    stored = max(map(len, store.objects.values()))
    tracemalloc.start()
    try:
        for number in range(1, 5):
            assert made.handle(["get", Segment(1, number).name(), str(data / "pg_wal" / "RECOVERYXLOG")]) == "ok"
        made.stop()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    opened = 2 * stored if key else 0  # in chunks and as a whole; what is sealed is the store's own here
    assert peak < AHEAD * (opened + (2 << 20)), peak >> 20
