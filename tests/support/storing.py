"""What every store of objects promises, whichever service is behind it: asked of each in the same words."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from backups.codec import Codec
from backups.errors import DifferentContent, ObjectMissing
from backups.layout import PathName
from backups.objects import ObjectStore
from backups.repository import Repository


def keeps_the_contract(store: ObjectStore) -> None:
    """`store` is empty."""
    assert list(store.list("")) == []
    assert store.put("a/1", b"one") is True
    assert store.put("a/1", b"two") is False, "a second writer of one name is refused"
    assert store.get("a/1") == b"one"
    assert store.put("a/1", b"three", if_absent=False) is True
    assert store.get("a/1") == b"three"
    assert store.put("a/2", b"") is True
    store.put("ab/1", b"x" * 100_000)
    assert [(o.key, o.size) for o in store.list("a/")] == [("a/1", 5), ("a/2", 0)]
    assert [o.key for o in store.list("a")] == ["a/1", "a/2", "ab/1"]
    assert all(o.modified > 1e9 for o in store.list(""))
    store.delete(["a/1", "a/none"])
    assert [o.key for o in store.list("a/")] == ["a/2"]
    with pytest.raises(ObjectMissing, match="a/1"):
        store.get("a/1")
    assert "secret" not in store.describe()


def lets_one_writer_win(store: ObjectStore, rounds: int) -> None:
    """Six write the same name at once: one is told that it did, and what it wrote is there."""
    for turn in range(rounds):
        gate = threading.Barrier(6)

        def write(number: int, key: str = f"race/{turn}", gate: threading.Barrier = gate) -> bool:
            gate.wait(10)
            return store.put(key, str(number).encode())

        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(write, range(6)))
        assert won.count(True) == 1
        assert store.get(f"race/{turn}") == str(won.index(True)).encode()


def lists_in_pages(store: ObjectStore, count: int) -> None:
    """`store` gets fewer than `count` names with one answer; then it is empty again."""
    keys = [f"k/{i:04d}" for i in range(count)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.put(key, b"", if_absent=False), keys))
    assert [o.key for o in store.list("k/")] == keys
    store.delete(keys)
    assert list(store.list("k/")) == []


def stores_wal_once(store: ObjectStore) -> None:
    path = Repository(store, Codec()).path(PathName("c", "1", "00000000"))
    name = "000000010000000000000003"
    assert path.put_wal(name, b"w" * 1000) > 0
    assert path.put_wal(name, b"w" * 1000) == 0, "the same content again is fine"
    with pytest.raises(DifferentContent, match="conflict/"):
        path.put_wal(name, b"v" * 1000)
    assert path.get_wal(name) == b"w" * 1000
    assert len(list(path.stored("conflict/"))) == 1, "what was refused is kept for whoever looks into it"
    assert list(path.wal_names(1)) == [name]
