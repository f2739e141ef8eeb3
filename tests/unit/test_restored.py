"""A volume from another cluster's snapshot is taken over once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agent.restored import MARKER, take_over

LOG = logging.getLogger("test")


def volume(root: Path, *, data: bool = True, state: bool = True, marker: str = "") -> Path:
    if data:
        (root / "pgdata").mkdir()
        (root / "pgdata" / "PG_VERSION").write_text("15\n")
    if state:
        (root / "state.json").write_text("promised 7")
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
    had = (root / "state.json").exists()
    arguments = (root / "state.json", root / "pgdata", "new", restored_from, LOG)
    assert take_over(*arguments) is expected
    assert (root / "state.json").exists() is (had and not expected)
    assert (root / "state.json.before-restore").exists() is (had and expected), "nothing is deleted"
    if expected:
        (root / "state.json").write_text("promised 1, in the new cluster")
        assert take_over(*arguments) is False, "once"
        assert (root / "state.json").exists()


def test_what_a_new_standby_promises_is_never_forgotten(tmp_path: Path) -> None:
    """It comes without data on a machine with FLY_RESTORED_FROM, copies the primary, promises, and is restarted."""
    arguments = (tmp_path / "state.json", tmp_path / "pgdata", "new", "vol_1", LOG)
    assert take_over(*arguments) is False
    volume(tmp_path)
    assert take_over(*arguments) is False
    assert (tmp_path / "state.json").read_text() == "promised 7"


def test_cut_off_between_the_two_steps_it_is_done_again(tmp_path: Path) -> None:
    root = volume(tmp_path)
    (root / "state.json").rename(root / "state.json.before-restore")
    assert take_over(root / "state.json", root / "pgdata", "new", "vol_1", LOG) is True
    assert (root / "state.json.before-restore").read_text() == "promised 7"
