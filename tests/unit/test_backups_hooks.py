"""The operator's commands around a snapshot: what they are told, and what their failures mean."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from backups.config import read_config
from backups.errors import SnapshotFailed
from backups.hooks import Hooks, about, hooked
from cluster.errors import SettingsError

TOLD = about("vs_1", "main", "n2", Path("/data"), "host=/data/run port=5433 user=postgres password=secret")


def story(hooks: Hooks, tmp_path: Path, fails: str = "") -> tuple[list[str], str, str]:
    """What happened in its order, the exception, and what was wrong afterwards. `hooks` say `said WORD`."""
    seen = tmp_path / "seen"
    say = f'said() {{ echo "$*" >> {seen}; }}; '
    hooks = Hooks(hooks.before and say + hooks.before, hooks.after and say + hooks.after, hooks.timeout_s)

    def take() -> str:
        with seen.open("a") as file:
            file.write("taken\n")
        if fails:
            raise SnapshotFailed(fails)
        return "it"

    raised = doubt = ""
    try:
        taken, doubt = hooked(hooks, TOLD, take)
        assert taken == "it"
    except SnapshotFailed as error:
        raised = str(error)
    return (seen.read_text().split("\n")[:-1] if seen.exists() else []), raised, doubt


RESULT = "said after $FLYPG_SNAPSHOT_RESULT $FLYPG_SNAPSHOT_ERROR"
STORIES = (
    ("none", Hooks(), "", ["taken"], "", ""),
    ("both", Hooks("said before", RESULT), "", ["before", "taken", "after ok"], "", ""),
    (
        "a failed snapshot is told to the second",
        Hooks("said before", RESULT),
        "the\nlink broke",
        ["before", "taken", "after failed the link broke"],
        "the\nlink broke",
        "",
    ),
    (
        "no snapshot without the first",
        Hooks("said before; echo busy >&2; exit 3", RESULT),
        "",
        ["before", "after failed FLYPG_SNAPSHOT_BEFORE failed: sh exited 3: busy"],
        "FLYPG_SNAPSHOT_BEFORE failed: sh exited 3: busy",
        "",
    ),
    (
        "a snapshot stays when the second fails",
        Hooks("", "said after; echo full >&2; exit 1"),
        "",
        ["taken", "after"],
        "",
        "FLYPG_SNAPSHOT_AFTER failed: sh exited 1: full",
    ),
    ("what failed first is what is told", Hooks("", "exit 1"), "the link broke", ["taken"], "the link broke", ""),
    (
        "one that hangs is killed",
        Hooks("said before; sleep 60", "", 1.0),
        "",
        ["before"],
        "FLYPG_SNAPSHOT_BEFORE did not finish within 1 s and was killed",
        "",
    ),
    ("one that is not there", Hooks("/nonexistent", ""), "", [], "FLYPG_SNAPSHOT_BEFORE failed: sh exited 127", ""),
)


@pytest.mark.parametrize(
    ("hooks", "fails", "seen", "raised", "doubt"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES]
)
def test_hooks(hooks: Hooks, fails: str, seen: list[str], raised: str, doubt: str, tmp_path: Path) -> None:
    found = story(hooks, tmp_path, fails)
    assert found[0] == seen
    assert found[1].startswith(raised) and bool(found[1]) == bool(raised)
    assert found[2] == doubt


def test_what_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server is, and no secret: neither the connection's nor the repository's."""
    monkeypatch.setenv("FLYPG_S3_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    out = tmp_path / "env"
    hooked(Hooks(f"env > {out}"), TOLD, lambda: None)
    lines = dict(line.split("=", 1) for line in out.read_text().splitlines())
    ours = {k: v for k, v in lines.items() if k.startswith(("FLYPG", "PG", "AWS"))}
    assert ours == {
        "FLYPG_SNAPSHOT_ID": "vs_1",
        "FLYPG_CLUSTER": "main",
        "FLYPG_NODE": "n2",
        "FLYPG_DATA_DIR": "/data",
        "PGHOST": "/data/run",
        "PGPORT": "5433",
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
    }
    assert "secret" not in out.read_text()


def test_what_one_that_hangs_has_started_is_killed_as_well(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(SnapshotFailed, match="was killed"):
        hooked(Hooks(f"sleep 600 & echo $! > {pid}; wait", "", 1.0), TOLD, lambda: None)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid.read_text().strip()}/exe"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_second_runs_when_somebody_breaks_off(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def take() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hooked(Hooks("", f"echo $FLYPG_SNAPSHOT_RESULT $FLYPG_SNAPSHOT_ERROR > {out}"), TOLD, take)
    assert out.read_text() == "failed KeyboardInterrupt\n"


def test_their_settings() -> None:
    found = read_config({"FLYPG_SNAPSHOT_BEFORE": "a", "FLYPG_SNAPSHOT_AFTER": "b"}, Path("/data"), 1000)
    assert found.hooks == Hooks("a", "b", 300.0)
    assert found.values["FLYPG_SNAPSHOT_BEFORE"] == "a", "the process that takes snapshots gets them"
    with pytest.raises(SettingsError) as caught:
        read_config({"FLYPG_SNAPSHOT_HOOK_TIMEOUT_S": "0"}, Path("/data"), 1000)
    assert caught.value.key == "FLYPG_SNAPSHOT_HOOK_TIMEOUT_S"
