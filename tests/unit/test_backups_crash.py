"""Cut off at any call to the repository: what is listed is whole, and the next run finishes the work."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator

import pytest

from backups.codec import Codec
from backups.errors import SnapshotFailed
from backups.layout import Segment
from backups.objects import ObjectInfo
from backups.pipeline import PartWriter
from backups.repository import Path as RepositoryPath
from backups.retention import GRACE_S, Keep
from backups.upkeep import audit, sweep
from tests.support.memory import NOW, MemoryStore, path_on, take
from tests.support.snapshots import SEGMENT, record, wal_segment

WAL = range(87, 94)


class Killed(BaseException):
    """The process ends here."""


class MortalStore:
    """A store that dies at its n-th call, before or after it was carried out; then every call fails."""

    def __init__(self, inner: MemoryStore, dies_at: int, *, after: bool) -> None:
        self._inner = inner
        self._left = dies_at
        self._after = after

    def _call(self) -> bool:
        """True: carry it out and die."""
        self._left -= 1
        if self._left < 0 or (self._left == 0 and not self._after):
            raise Killed
        return self._left == 0

    def put(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        last = self._call()
        done = self._inner.put(key, data, if_absent=if_absent)
        if last:
            raise Killed
        return done

    def get(self, key: str) -> bytes:
        self._call()
        return self._inner.get(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._call()
        return self._inner.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            last = self._call()
            self._inner.delete([key])
            if last:
                raise Killed

    def tidy(self, before: float) -> None:
        self._inner.tidy(before)

    def describe(self) -> str:
        return "mortal"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_snapshot_that_is_cut_off_anywhere(after: bool) -> None:
    for dies_at in itertools.count(1):
        real = MemoryStore()
        take(path_on(real), record("a", day=98))
        try:
            take(path_on(MortalStore(real, dies_at, after=after)), record("b", day=99))
        except Killed:
            found = audit(path_on(real), deep=True)
            assert not found.problems, f"killed at call {dies_at}"
            assert len(found.snapshots) in (1, 2)
            real.modified = NOW - GRACE_S - 1
            sweep(path_on(real), Keep(days=50), wall=lambda: NOW)
            again = audit(path_on(real), deep=True)
            assert not again.problems and not again.garbage
            assert again.snapshots == found.snapshots
        else:
            assert dies_at > 5
            return


def test_parts_that_cannot_be_stored_end_the_snapshot() -> None:
    """The error of an uploading thread reaches the one that writes, and no thread is left behind."""

    def refuse(key: str, frame: bytes) -> None:
        raise SnapshotFailed(f"no room for {key}")

    writer = PartWriter(Codec(), refuse, part_bytes=64 << 10)  # type: ignore[arg-type]
    writer.begin("base.tar", lambda n: f"part-{n}")
    with pytest.raises(SnapshotFailed, match="no room for part-0"):
        for _ in range(1000):
            writer.write(os.urandom(100 << 10))
    writer.abandon()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_sweep_that_is_cut_off_anywhere(after: bool) -> None:
    """No snapshot is ever listed without its parts, or without the WAL that follows it; the next sweep finishes."""
    full = MemoryStore()
    for letter, day, segment in (("a", 85, 88), ("b", 90, 90), ("c", 99, 92)):
        take(path_on(full), record(letter, day=day, segment=segment), 100)
    for number in WAL:
        path_on(full).put_wal(Segment(1, number).name(), wal_segment(number))
    for dies_at in itertools.count(1):
        real = MemoryStore()
        real.objects |= full.objects
        path = path_on(real)
        keep = Keep(days=5, window=True)
        try:
            sweep(path_on(MortalStore(real, dies_at, after=after)), keep, wall=lambda: NOW)
        except Killed:
            _whole(path)
            sweep(path, keep, wall=lambda: NOW + GRACE_S)
        else:
            assert dies_at > 10
            return
        _whole(path)
        assert [s.id[3] for s in path.snapshots()] == ["b", "c"]
        assert min(path.wal_names()) == Segment(1, 90).name()


def _whole(path: RepositoryPath) -> None:
    found = audit(path, deep=True)
    assert not found.problems
    oldest = min(s.start_lsn for s in found.snapshots) // SEGMENT
    assert {Segment(1, n).name() for n in WAL if n >= oldest} <= set(path.wal_names())
