"""The archiver process: it answers without a repository, and one that cannot start says why."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from backups import archiver, wal
from backups.archiver import FROZEN_S, SILENT_S, STARTING_S, ArchiverProcess, Standing
from backups.codec import Codec
from backups.directory import DirectoryStore
from backups.errors import ObjectMissing, RepositoryUnavailable
from backups.late import LatePath
from backups.layout import MARKER, Segment
from backups.repository import PathInfo, Repository
from backups.wal import WalArchiver, WalOptions
from backups.wire import LineServer
from tests.support.memory import NAME, MemoryStore, path_on
from tests.support.snapshots import SEGMENT, wal_segment

OPEN = Standing(1, False)


class Away(MemoryStore):
    """A repository that may not answer."""

    here = False

    def put(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        if not self.here:
            raise RepositoryUnavailable("nobody answers")
        return super().put(key, data, if_absent=if_absent)


def test_it_answers_while_the_repository_is_away_and_begins_when_it_is_back(tmp_path: Path) -> None:
    store = Away()
    notes = tmp_path / "archive_status"
    notes.mkdir()
    names = [Segment(1, n).name() for n in range(1, 5)]
    for number, name in enumerate(names, 1):
        (tmp_path / name).write_bytes(wal_segment(number))
        (notes / f"{name}.ready").touch()
    late = LatePath(Repository(store, Codec()), PathInfo("c", "7301", "00000000", 1.0))
    options = WalOptions(workers=1, queue_limit_bytes=3 * SEGMENT, drop_past_limit=True)
    made = WalArchiver(late, tmp_path, segment_bytes=SEGMENT, options=options)
    made.stand(1)
    try:
        assert made.handle(["push", f"pg_wal/{names[0]}"]) == "ok", "four wait, three may: it is let go"
        assert made.status().error == "nobody answers" and made.status().dropped == 1
        (notes / f"{names[0]}.ready").unlink()
        (notes / f"{names[1]}.ready").unlink()
        (notes / f"{names[2]}.ready").unlink()
        assert made.handle(["push", f"pg_wal/{names[3]}"]).startswith("no ")
        assert not store.objects
        store.here = True
        assert made.handle(["push", f"pg_wal/{names[3]}"]) == "ok"
    finally:
        made.stop()
    assert {MARKER, f"_paths/{NAME}.json"} <= set(store.objects), "begun with the first file"
    assert path_on(store).get_wal(names[3]) == wal_segment(4)


class Hanging(MemoryStore):
    """A repository that takes a connection, and does not answer until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may = threading.Event(), threading.Event()

    def put(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        self.asked.set()
        self.may.wait(60)
        return super().put(key, data, if_absent=if_absent)


def test_a_primary_that_was_replaced_is_not_held_up_while_it_stops(tmp_path: Path) -> None:
    """PostgreSQL asks three times while it stops, and its cluster waits for it as a standby: that took 11 s."""
    store = Hanging()
    name = Segment(1, 1).name()
    (tmp_path / name).write_bytes(wal_segment(1))
    made = WalArchiver(path_on(store), tmp_path, segment_bytes=SEGMENT)
    made.stand(1, draining=True)
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(made.handle, ["push", f"pg_wal/{name}"])
            assert store.asked.wait(30)
            made.stand(None)
            assert re.match("end .* not the primary", answer.result(timeout=wal.OPEN_WAIT_S / 2))
            made._note_failure(RepositoryUnavailable("away"))
            assert made.status().error == "", "an error of one that is not the primary any more stayed for ever"
            again = pool.submit(made.handle, ["push", f"pg_wal/{name}"])
            assert re.match("end .* not the primary", again.result(timeout=wal.OPEN_WAIT_S / 2))
            store.may.set()
            made.stand(3)
            assert made.handle(["push", f"pg_wal/{name}"]) == "ok"
    finally:
        store.may.set()
        made.stop()


def test_a_file_system_that_is_not_mounted_any_more_is_not_begun_anew(tmp_path: Path) -> None:
    """WAL went to the disk below it, and PostgreSQL forgot it."""
    mounted, aside = tmp_path / "mounted", tmp_path / "aside"
    info = PathInfo("c", "7301", "00000000", 1.0)

    def late(begun: bool) -> LatePath:
        return LatePath(Repository(DirectoryStore(mounted), Codec()), info, begun=begun)

    path = late(False)
    path.put_wal(Segment(1, 1).name(), b"one")
    mounted.rename(aside)
    mounted.mkdir()
    with pytest.raises(RepositoryUnavailable, match=r"flypg-repository.json is gone: is its file system mounted\?"):
        path.put_wal(Segment(1, 2).name(), b"two")
    with pytest.raises(ObjectMissing, match=r"no repository of flypg is here: is its file system mounted\?"):
        late(True).put_wal(Segment(1, 2).name(), b"two")
    assert not list(mounted.iterdir())
    mounted.rmdir()
    aside.rename(mounted)
    for each in (path, late(True)):
        each.put_wal(Segment(1, 2).name(), b"two")
    assert list(path.wal_names()) == [Segment(1, 1).name(), Segment(1, 2).name()]


async def test_one_that_is_frozen_is_named_then_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that has lost its socket: it runs, and does not answer any more."""
    pids: list[int] = []

    def spawn(argv: list[str], **_: object) -> int:
        pids.append(os.posix_spawn(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {}))
        return pids[-1]

    now = 1000.0
    monkeypatch.setattr(archiver, "spawn", spawn)
    process = ArchiverProcess(tmp_path / "sock", tmp_path / "log", {}, monotonic=lambda: now)
    await process.tell(OPEN, [])
    now += STARTING_S - 0.1
    await process.tell(OPEN, [])
    assert (len(pids), process.status) == (1, None), "it is still starting"
    try:
        with answering(tmp_path / "sock"):
            await process.tell(OPEN, [])
            assert process.status is not None and not process.status.error
        for later_s, says in ((0.0, False), (SILENT_S, True), (FROZEN_S - SILENT_S - 0.1, True)):
            now += later_s
            await process.tell(OPEN, [])
            text = process.status.error if process.status else ""
            assert (f"process {pids[0]}) does not answer" in text, len(pids)) == (says, 1)
        now += 0.1
        await process.tell(OPEN, [])
        assert len(pids) == 1
        await asyncio.to_thread(os.waitid, os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)  # it was killed
        await process.tell(OPEN, [])
        assert len(pids) == 2
        with pytest.raises(ProcessLookupError):  # and has left no zombie
            os.kill(pids[0], 0)
    finally:
        os.kill(pids[-1], signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, pids[-1], 0)


async def test_one_that_never_answers_is_replaced_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def spawn(argv: list[str], **_: object) -> int:
        (tmp_path / "log").write_text("connecting\n")
        pids.append(os.posix_spawn(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {}))
        return pids[-1]

    now = 1000.0
    monkeypatch.setattr(archiver, "spawn", spawn)
    process = ArchiverProcess(tmp_path / "sock", tmp_path / "log", {}, monotonic=lambda: now)
    await process.tell(OPEN, [])
    try:
        now += STARTING_S
        await process.tell(OPEN, [])
        await asyncio.to_thread(os.waitid, os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)  # it was killed
        for _ in range(2):
            await process.tell(OPEN, [])
            assert process.status is not None and "does not start: connecting" in process.status.error
            now += 10
        assert len(pids) == 2, "after a pause"
    finally:
        os.kill(pids[-1], signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, pids[-1], 0)


@contextmanager
def answering(path: Path) -> Iterator[None]:
    lines = LineServer(path, lambda _: "ok {}", None)
    lines.start()
    try:
        yield
    finally:
        lines.stop()


async def test_one_that_cannot_start_says_why_and_is_started_less_and_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def spawn(argv: list[str], *, output: Path, **_: object) -> int:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", "print('FLYPG_SNAPSHOT_KEY: must be hexadecimal')"],
            {},
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)],
        )
        pids.append(pid)
        return pid

    now = 1000.0
    monkeypatch.setattr(archiver, "spawn", spawn)
    process = ArchiverProcess(tmp_path / "sock", tmp_path / "log", {}, monotonic=lambda: now)
    await process.tell(OPEN, [])
    assert (len(pids), process.status) == (1, None), "it is starting"

    for failures, pause_s in enumerate((2, 4, 8, 16, 32, 60, 60), 1):
        await asyncio.to_thread(os.waitid, os.P_PID, pids[-1], os.WEXITED | os.WNOWAIT)
        await process.tell(OPEN, [])
        assert len(pids) == failures, "not at once"
        assert process.status is not None
        assert process.status.error == "the archiver does not start: FLYPG_SNAPSHOT_KEY: must be hexadecimal"
        now += pause_s
        await process.tell(OPEN, [])
        assert len(pids) == failures + 1
        assert process.status is not None, "what was wrong is said until it answers"
    await process.tell(Standing(0, False), [])
    assert process.status is None, "somebody else's to say"
