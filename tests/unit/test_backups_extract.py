"""Unpacking a base backup: what is in it stays in its directory, and nothing is taken that PostgreSQL does not send."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups import writeback
from backups.errors import ObjectDamaged
from backups.untar import Untar
from backups.writeback import SEND_BYTES, WHOLE_BYTES, WriteBack


def archive(*members: tuple[str, str], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Files with their content; `->` begins a link, `=>` a hard link; a name that ends with a slash is a directory."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o666
            if content.startswith(("->", "=>")):
                info.type = tarfile.SYMTYPE if content.startswith("->") else tarfile.LNKTYPE
                info.linkname = content[2:]
                tar.addfile(info)
            elif name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o700
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
    return made.getvalue()


def pieces(tar: bytes, size: int) -> Iterator[memoryview]:
    """As they come from the network: cut anywhere, in a buffer that is used over and over."""
    buffer = bytearray(size)
    for at in range(0, len(tar), size):
        part = tar[at : at + size]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]


def untar(tar: bytes, target: Path, size: int = 1 << 20) -> None:
    with WriteBack() as disk:
        Untar(target, None, disk).all(pieces(tar, size))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("size", [1, 511, 513, 1 << 20])
def test_a_backup_is_unpacked(target: Path, size: int) -> None:
    long = "long" * 1000
    made = archive(("PG_VERSION", "15\n"), ("base/", ""), ("base/1/", ""), ("base/1/112", "x"), ("./log", long))
    untar(made, target, size)
    assert (target / "PG_VERSION").read_text() == "15\n"
    assert (target / "log").read_text() == long
    assert (target / "base/1/112").stat().st_mode & 0o777 == 0o644, "nobody else may write"
    assert (target / "base/1").stat().st_mode & 0o777 == 0o700


def test_directories_are_made_where_none_are_sent(target: Path) -> None:
    untar(archive(("base/1/112", "x"), ("base/1/", ""), ("empty", "")), target)
    assert (target / "base/1/112").read_text() == "x"
    assert (target / "base").stat().st_mode & 0o077 == 0
    assert (target / "empty").stat().st_size == 0


def test_a_link_to_a_tablespace_is_one(target: Path) -> None:
    untar(archive(("pg_tblspc/16384", "->/mnt/elsewhere")), target)
    assert (target / "pg_tblspc/16384").readlink() == Path("/mnt/elsewhere")


def test_a_file_longer_than_octal_digits_can_say(target: Path) -> None:
    """8 GiB and more are written in binary; PostgreSQL does so for large WAL segments."""
    info = tarfile.TarInfo("big")
    info.size = 3
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + (3).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    untar(bytes(block) + b"abc".ljust(512, b"\0") + bytes(1024), target)
    assert (target / "big").read_text() == "abc"


OUTSIDE = [
    ("above", [("../evil", "x")]),
    ("above, later", [("base/../../evil", "x")]),
    ("anywhere", [("/tmp/flypg-evil", "x")]),
    ("at the root", [("/flypg-evil", "x")]),
    ("through a link", [("out", "->.."), ("out/evil", "x")]),
    ("through a link, further down", [("base/", ""), ("base/out", "->../.."), ("base/out/new/evil", "x")]),
    ("a directory through a link", [("out", "->.."), ("out/evil/", "")]),
    ("itself", [(".", "x")]),
]


@pytest.mark.parametrize(("where", "members"), OUTSIDE, ids=[o[0] for o in OUTSIDE])
def test_nothing_leaves_the_directory(target: Path, where: str, members: list[tuple[str, str]]) -> None:
    with pytest.raises(ObjectDamaged, match="outside"):
        untar(archive(*members), target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["data"]
    assert not Path("/flypg-evil").exists() and not Path("/tmp/flypg-evil").exists()


GOOD = archive(("PG_VERSION", "15\n"))
BAD = [
    ("a file twice", archive(("a", "x"), ("a", "y")), "twice"),
    ("a link, then a file of its name", archive(("a", "->../evil"), ("a", "y")), "twice"),
    ("a link, then a directory of its name", archive(("a", "->.."), ("a/", "")), "twice"),
    ("a hard link", archive(("a", "=>/etc/passwd")), "does not send"),
    ("a name that needs an extension", archive(("n" * 150, "x"), form=tarfile.PAX_FORMAT), "PaxHeader"),
    ("no tar", b"x" * 2048, "no tar archive"),
    ("a header that was altered", GOOD.replace(b"PG_VERSION", b"PG_VERSIOM"), "checksum"),
    ("cut short in a file", GOOD[:514], "cut short"),
    ("cut short before its end", GOOD[:1024], "cut short"),
    ("something behind its end", GOOD + GOOD, "follows"),
]


@pytest.mark.parametrize(("what", "tar", "match"), BAD, ids=[b[0] for b in BAD])
def test_what_postgresql_does_not_send_is_refused(target: Path, what: str, tar: bytes, match: str) -> None:
    with pytest.raises(ObjectDamaged, match=match):
        untar(tar, target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["data"]


def test_the_disk_is_given_what_is_worth_it(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with WriteBack() as disk:
        assert disk.send(descriptor, SEND_BYTES - 1) == SEND_BYTES - 1
        assert disk.send(descriptor, SEND_BYTES) == 0
        assert disk.send(descriptor, WHOLE_BYTES - 1, ended=True) == WHOLE_BYTES - 1
        assert disk.send(descriptor, WHOLE_BYTES, ended=True) == 0
    os.close(descriptor)


def test_a_disk_that_is_behind_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is not given is left to the sync at the end; no more descriptors are open than that."""
    go = threading.Event()
    monkeypatch.setattr(writeback.os, "fdatasync", lambda _: go.wait(30))
    before = len(os.listdir("/proc/self/fd"))
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with WriteBack() as disk:
        assert max(disk.send(descriptor, SEND_BYTES) for _ in range(100)) == SEND_BYTES
        assert len(os.listdir("/proc/self/fd")) <= before + 1 + writeback.WAITING + 1
        go.set()
    os.close(descriptor)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_the_disk_refuses_is_not_forgotten() -> None:
    """A later sync may not be told of it again (a pipe has no disk: EINVAL)."""
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Invalid argument"), WriteBack() as disk:
        disk.send(writer, SEND_BYTES)
    with pytest.raises(OSError, match="Invalid argument"), WriteBack() as disk:
        disk.send(writer, SEND_BYTES)
        for _ in range(300):
            disk.send(writer, 0)
            time.sleep(0.01)
        raise AssertionError("it was not told while it wrote")
    with pytest.raises(ObjectDamaged, match="first"), WriteBack() as disk:
        disk.send(writer, SEND_BYTES)
        raise ObjectDamaged("what failed first is what is told")
    os.close(reader)
    os.close(writer)
