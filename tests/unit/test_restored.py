"""A volume from another cluster's snapshot is taken over once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agent.restored import MARKER, take_over
from cluster.codec import decode, encode
from cluster.model import Disk

LOG = logging.getLogger("test")
WORDS = Disk(promised=7, was_primary=6)


def words(file: Path) -> Disk:
    return decode(Disk, file.read_bytes(), str(file))


def volume(root: Path, *, data: bool = True, state: bool = True, marker: str = "") -> Path:
    if data:
        (root / "pgdata").mkdir()
        (root / "pgdata" / "PG_VERSION").write_text("15\n")
    if state:
        (root / "state.json").write_bytes(encode(WORDS))
    if marker:
        (root / MARKER).write_text(marker)
    return root


STORIES = [
    ("a restored volume", {}, "vol_1", True),
    ("an ordinary machine", {}, "", False),
    ("a new standby without data", {"data": False, "state": False}, "vol_1", False),
    ("taken over before", {"marker": "new\n"}, "vol_1", False),
    ("taken over by the cluster that this snapshot is of", {"marker": "old"}, "vol_1", True),
    ("a volume that Fly's own app has left", {"state": False}, "vol_1", True),
]


@pytest.mark.parametrize(("story", "found", "restored_from", "expected"), STORIES, ids=[s[0] for s in STORIES])
def test_take_over(tmp_path: Path, story: str, found: dict[str, object], restored_from: str, expected: bool) -> None:
    root = volume(tmp_path, **found)  # type: ignore[arg-type]
    had, before = (root / "state.json").exists(), root / "state.json.before-restore"
    arguments = (root / "state.json", root / "pgdata", "new", restored_from, LOG)
    assert take_over(*arguments) is expected
    if had:
        assert words(root / "state.json") == (Disk() if expected else WORDS)
    assert before.exists() is (had and expected), "nothing is deleted"
    if expected:
        (root / "state.json").write_bytes(encode(Disk(promised=1)))
        assert take_over(*arguments) is False, "once"
        assert words(root / "state.json").promised == 1


def test_what_a_new_standby_promises_is_never_forgotten(tmp_path: Path) -> None:
    """It comes without data on a machine with FLY_RESTORED_FROM, copies the primary, promises, and is restarted."""
    arguments = (tmp_path / "state.json", tmp_path / "pgdata", "new", "vol_1", LOG)
    assert take_over(*arguments) is False
    volume(tmp_path)
    assert take_over(*arguments) is False
    assert words(tmp_path / "state.json") == WORDS


def test_cut_off_before_the_last_step_it_is_done_again(tmp_path: Path) -> None:
    root = volume(tmp_path)
    arguments = (root / "state.json", root / "pgdata", "new", "vol_1", LOG)
    assert take_over(*arguments) is True
    (root / MARKER).unlink()
    assert take_over(*arguments) is True
    assert words(root / "state.json.before-restore") == WORDS


def test_an_unfinished_copy_stays_one(tmp_path: Path) -> None:
    """The snapshot was taken while the node was copying its data: that must never become the cluster's."""
    root = volume(tmp_path)
    (root / "state.json").write_bytes(encode(Disk(promised=7, copying=True)))
    assert take_over(root / "state.json", root / "pgdata", "new", "vol_1", LOG) is True
    assert words(root / "state.json") == Disk(copying=True)
