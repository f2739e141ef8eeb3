"""flypg restore: what is typed wrong, what a machine refuses, and what an interrupted one leaves."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from backups import unpacked, verify
from backups.catalog import SnapshotRecord
from backups.errors import RestoreFailed, RestorePrevented
from backups.extract import tablespaces
from backups.repository import Path as RepositoryPath
from flypg import local_restore
from flypg.cli import build_parser
from flypg.commands.restore import place_of, target_of
from flypg.ending import ended_in_order
from flypg.local_layout import Layout
from flypg.progress import Progress
from flypg.reply import BadInput
from postgres.config import quoted
from postgres.scratch import death

RECORD = cast(
    SnapshotRecord,
    SimpleNamespace(id="vs_a", cluster="c", timeline=1, major=15, raw_bytes=1, stored_bytes=1, encrypted_with=""),
)
WRONG = [
    ("an empty time is not the end of the WAL", ["--to-time", ""], "--to-time: it is empty"),
    ("nor is an empty name", ["--to-name", ""], "--to-name: it is empty"),
    ("nor an empty transaction", ["--to-xid", ""], "--to-xid: it is empty"),
    ("nor an empty place", ["--to-lsn", "", "--exclusive"], "--to-lsn: it is empty"),
    ("two targets, one empty", ["--to-lsn", "", "--to-name", "a"], "give one of"),
    ("a name that PostgreSQL could not read again", ["--to-name", "a\nb"], "a line break"),
    ("a timeline that would not be followed", ["--snapshot-only", "--timeline", "2"], "follows no --timeline"),
]


@pytest.mark.parametrize(("story", "options", "why"), WRONG, ids=[s[0] for s in WRONG])
def test_targets(story: str, options: list[str], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        target_of(build_parser().parse_args(["restore", "--into", "x", *options]))


def test_places(tmp_path: Path) -> None:
    """A link may lead to the directory; --in-place moves aside what it leads to, not the link."""
    (tmp_path / "real").mkdir()
    for link, to in (("link", "real"), ("lost", "nowhere"), ("loop", "loop")):
        (tmp_path / link).symlink_to(to)
    assert place_of(str(tmp_path / "link"), in_place=False) == tmp_path / "link"
    assert place_of(str(tmp_path / "link"), in_place=True) == tmp_path / "real"
    for name, why in (("lost", "which is not there"), ("loop", "loop"), ("x" * 300, "too long"), ("a\0", "null")):
        with pytest.raises(BadInput, match=why):
            place_of(str(tmp_path / name), in_place=False)


def unpack_by(monkeypatch: pytest.MonkeyPatch, work: Callable[..., bool]) -> RepositoryPath:
    monkeypatch.setattr(unpacked, "find_programs", lambda *_: Path("/nowhere"))
    monkeypatch.setattr(verify, "find_programs", lambda *_: Path("/nowhere"))
    monkeypatch.setattr(unpacked, "unpack", work)
    return cast(RepositoryPath, SimpleNamespace(opens=lambda _: True))


def test_a_full_disk_says_nothing_of_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`path` cannot record a result: there is none. The error names the directory."""

    def full(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = unpack_by(monkeypatch, full)
    with pytest.raises(RestorePrevented, match=f"^{tmp_path}.* cannot be written: No space left on device$"):
        asyncio.run(verify.verify(path, RECORD, tmp_path, owner=None, node="n1"))
    assert not list(tmp_path.iterdir())


def test_it_stops_unpacking_when_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a large snapshot may take an hour."""
    began = threading.Event()
    ended: list[str] = []

    def slowly(*_: object, progress: Callable[[int], None], **__: object) -> bool:
        until = time.monotonic() + 60
        began.set()
        try:
            while time.monotonic() < until:
                progress(1)
        except RestoreFailed as error:
            ended.append(str(error))
            raise
        return True

    path = unpack_by(monkeypatch, slowly)

    async def interrupted() -> None:
        async def work() -> None:
            async with unpacked.unpacked(path, RECORD, tmp_path / "into", owner=None):
                pass

        task = asyncio.create_task(work())
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert ended == ["it was stopped"]


@contextmanager
def handled(number: int, how: Any) -> Iterator[None]:
    before = signal.signal(number, how)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_it_ends_in_order_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        with handled(number, signal.SIG_DFL), pytest.raises(KeyboardInterrupt), ended_in_order():
            signal.raise_signal(number)
    with handled(signal.SIGHUP, signal.SIG_IGN), ended_in_order():  # nohup
        signal.raise_signal(signal.SIGHUP)


def test_what_a_server_died_of() -> None:
    log = """\
2026-11-30 21:28:06 GMT [9] LOG:  restored log file "000000010000000000000009" from archive
2026-11-30 21:28:06 GMT [30] FATAL:  the database system is not accepting connections
2026-11-30 21:28:06 GMT [30] DETAIL:  Hot standby mode is disabled.
2026-11-30 21:28:06 GMT [9] FATAL:  could not extend file "base/5/16408": No space left on device
2026-11-30 21:28:06 GMT [9] HINT:  Check free disk space.
2026-11-30 21:28:06 GMT [31] FATAL:  the database system is not accepting connections
2026-11-30 21:28:06 GMT [8] LOG:  database system is shut down
"""
    assert death(log) == 'could not extend file "base/5/16408": No space left on device (Check free disk space.)'
    assert death("2026-11-30 21:28:06 GMT [8] LOG:  database system is shut down\n") == ""


def test_quoting() -> None:
    assert quoted("it's\na \\") == r"'it''s\na \\'"


def test_a_local_cluster_begins_anew_after_a_restore_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half there would be taken for its data."""
    found = SimpleNamespace(snapshot=RECORD, path=None)
    monkeypatch.setattr(local_restore, "open_path", lambda _: found)
    monkeypatch.setattr(local_restore, "make_plan", lambda *_, **__: found)
    layout = cast(Layout, SimpleNamespace(names=["n1"], root=tmp_path, node_dir=lambda name: tmp_path / name))
    tries: list[Path] = []

    async def fails(path: object, plan: object, directory: Path, **_: object) -> None:
        tries.append(directory)
        for made in (directory, tablespaces(directory)):
            made.mkdir()
            (made / "PG_VERSION").touch()
        raise RestoreFailed("the repository is away")

    monkeypatch.setattr(local_restore, "restore", fails)
    args = argparse.Namespace(repository="file:///r", path=None, from_snapshot="latest")
    for _ in range(2):
        with pytest.raises(RestoreFailed):
            local_restore.restore_first_node(args, layout, None, Progress())
    assert tries == [tmp_path / "n1" / "pgdata"] * 2 and not list((tmp_path / "n1").iterdir())
