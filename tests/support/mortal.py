"""Work on a repository, killed -9 after each of its steps in turn; run as a process of its own, since it forks.

    python -m tests.support.mortal snapshot|archive|sweep ROOT CONNINFO PG_WAL

A step is whatever changes the disk: a file made, half written, synced, linked, removed. What each scenario promises is
asserted after every death; the last line of output says how many there were.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backups import directory
from backups.base import SnapshotOptions, take_snapshot
from backups.codec import Codec
from backups.directory import DirectoryStore
from backups.layout import PathName, Segment
from backups.repository import Path as RepositoryPath
from backups.repository import PathInfo, Repository
from backups.retention import GRACE_S, Keep
from backups.segments import LONG, LONG_HEADER
from backups.upkeep import audit, sweep
from backups.wal import WalArchiver
from postgres.basebackup import server_facts

DAY_S = 86400.0
STEPS = ("fsync", "link", "replace", "unlink", "mkdir", "rmdir")


def die_after(steps: int) -> None:
    """From now on, this process ends itself after so many steps; one that is a write, in the middle of it."""
    left = steps

    def count() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return real(*arguments, **named)
            finally:
                if count():
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    def write(path: Path, data: bytes) -> None:
        if count():
            path.write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        whole(path, data)

    whole = directory._write
    directory._write = write
    for name in STEPS:
        setattr(os, name, mortal(getattr(os, name)))


def killed_after_each_step(
    work: Callable[[int], None], promise: Callable[[int], None], before: Callable[[], None] = lambda: None
) -> int:
    """Do `work(n)` in a process that dies after n steps, n = 1, 2, …, until one lives; `promise(n)` after each."""
    for n in range(1, 1000):
        before()
        pid = os.fork()
        if pid == 0:
            try:
                die_after(n)
                work(n)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, f"it failed instead of dying at step {n}"
            return n - 1
        assert os.WTERMSIG(status) == signal.SIGKILL
        promise(n)
    raise AssertionError("a thousand steps, and it still is not done")


class Scenario:
    def __init__(self, root: Path, conninfo: str, pg_wal: Path) -> None:
        self.root = root
        self.conninfo = conninfo
        self.pg_wal = pg_wal
        self.facts = server_facts(conninfo)
        repository = Repository(DirectoryStore(root), Codec())
        repository.open()
        name = PathName("c", self.facts.system_id, "0a0b0c0d")
        self.path: RepositoryPath = repository.begin_path(PathInfo(name.cluster, name.system_id, name.incarnation, 1.0))

    def take(self, name: str, *, age_s: float = 0.0) -> None:
        at = time.time() - age_s
        options = SnapshotOptions(part_bytes=4 << 20)
        take_snapshot(*(self.path, Codec(), self.conninfo), snapshot=name, node="n1", options=options, wall=lambda: at)

    def whole(self, n: int) -> None:
        found = audit(self.path, deep=True)
        assert not found.problems, f"killed after step {n}: {found.problems}"

    def tidy(self) -> None:
        """The next retention run, a day later, leaves nothing but what is listed."""
        before = [s.id for s in self.path.snapshots()]
        sweep(self.path, Keep(days=50), wall=lambda: time.time() + GRACE_S + 60)
        found = audit(self.path, deep=True)
        assert not found.problems and not found.garbage, found
        assert [s.id for s in found.snapshots] == before
        assert not [f for f in self.root.rglob("*") if f.name.startswith(directory.TEMPORARY)]

    def snapshot(self) -> int:
        """What is listed is whole, whenever the one that takes it dies."""
        deaths = killed_after_each_step(lambda n: self.take(f"vs_{n:016d}"), self.whole)
        self.tidy()
        return deaths

    def archive(self) -> int:
        """What PostgreSQL was told `ok` for is stored; the rest is stored when it asks again."""
        names = sorted(f.name.removesuffix(".ready") for f in (self.pg_wal / "archive_status").glob("*.ready"))
        told = self.root.with_name("told")
        told.touch()

        def push(_: int) -> None:
            archiver = WalArchiver(self.path, self.pg_wal, segment_bytes=self.facts.segment_bytes)
            archiver.stand(1)
            with told.open("a") as file:
                for name in names:
                    answer = archiver.handle(["push", str(self.pg_wal / name)])
                    assert answer == "ok", answer
                    file.write(f"{name}\n")
                    file.flush()
            archiver.stop()

        def stored(n: int) -> None:
            for name in set(told.read_text().split()):
                assert self.path.get_wal(name) == (self.pg_wal / name).read_bytes(), f"step {n}: {name}"

        deaths = killed_after_each_step(push, stored)
        stored(deaths + 1)
        assert set(names) <= set(told.read_text().split())
        assert not audit(self.path).conflicts
        self.tidy()
        return deaths

    def segment(self, number: int) -> bytes:
        """One that PostgreSQL could have begun, of timeline 1."""
        size, system = self.facts.segment_bytes, int(self.facts.system_id)
        head = LONG_HEADER.pack(0xD110, LONG, 1, number * size, 0, system, size, 8192)
        return head.ljust(size, b"\0")

    def sweep(self) -> int:
        """Never a snapshot without its parts, or without the WAL that follows it; the next run finishes the work."""
        for letter, days in (("a", 30), ("b", 20), ("c", 10), ("d", 1)):
            self.take("vs_" + letter * 16, age_s=days * DAY_S)
        size = self.facts.segment_bytes
        floor = self.path.snapshots()[2].start_lsn // size
        needed = {Segment(1, number).name(size) for number in range(floor, floor + 8)}
        for number in range(floor - 4, floor + 8):
            self.path.put_wal(Segment(1, number).name(size), self.segment(number))
        keep = Keep(days=5)
        listed, wanted = [["vs_" + letter * 16 for letter in letters] for letters in ("abcd", "cd")]
        saved = self.root.with_name("saved")
        shutil.copytree(self.root, saved)

        def restore() -> None:
            shutil.rmtree(self.root)
            shutil.copytree(saved, self.root)

        def promise(n: int) -> None:
            self.whole(n)
            found = [s.id for s in self.path.snapshots()]
            assert found == listed[-len(found) :] and found[-2:] == wanted, f"step {n}: {found}"
            assert needed <= set(self.path.wal_names())
            sweep(self.path, keep)
            self.whole(n)
            assert [s.id for s in self.path.snapshots()] == wanted
            assert set(self.path.wal_names()) == needed

        deaths = killed_after_each_step(lambda _: _swept(self.path, keep), promise, restore)
        promise(deaths + 1)
        self.tidy()
        return deaths


def _swept(path: RepositoryPath, keep: Keep) -> None:
    sweep(path, keep)


def main() -> None:
    scenario, root, conninfo, pg_wal = sys.argv[1:]
    deaths = getattr(Scenario(Path(root), conninfo, Path(pg_wal)), scenario)()
    print(json.dumps({"deaths": deaths}))


if __name__ == "__main__":
    main()
