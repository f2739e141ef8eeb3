"""Where the tests write: in memory only where there is plenty of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import conftest

PLENTY_KB = 16 << 20


def volume(free: int, *, flags: int = 0) -> os.statvfs_result:
    blocks = free // 4096
    return os.statvfs_result((4096, 4096, blocks, blocks, blocks, 10, 10, 10, flags, 255))


STORIES = (
    ("plenty of both", volume(16 << 30), PLENTY_KB, True),
    ("a container's 64 MB", volume(64 << 20), PLENTY_KB, False),
    ("a volume larger than what is left of the machine", volume(16 << 30), 2 << 20, False),
    ("nothing can be run from there", volume(16 << 30, flags=os.ST_NOEXEC), PLENTY_KB, False),
)


@pytest.mark.parametrize(("found", "available_kb", "wanted"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES])
def test_memory_is_used_where_there_is_plenty(
    found: os.statvfs_result, available_kb: int, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {available_kb} kB\n")
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert conftest.in_memory(tmp_path, meminfo) is wanted


def test_a_machine_without_such_a_volume(tmp_path: Path) -> None:
    assert not conftest.in_memory(tmp_path / "none")
    assert not conftest.in_memory(tmp_path, tmp_path / "no-meminfo")
