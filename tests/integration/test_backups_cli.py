"""The commands, one after the other as an operator would use them, on a real PostgreSQL and a directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flypg.main import main
from tests.support.archive import rows_of
from tests.support.pgserver import BIN, PgServer

pytestmark = [
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
]


@pytest.fixture
def server() -> Iterator[PgServer]:
    made = PgServer()
    made.initdb()
    made.start()
    yield made
    made.remove()


def test_from_the_first_snapshot_to_a_restored_cluster(
    server: PgServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLYPG_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("FLYPG_CLUSTER", "shop")
    monkeypatch.setenv("FLYPG_SNAPSHOT_URL", f"file://{server.root}/repository")
    monkeypatch.setenv("FLYPG_SNAPSHOT_MIN_FREE_PERCENT", "0")
    monkeypatch.setenv("FLYPG_SNAPSHOT_KEY", "ab" * 32)
    monkeypatch.setenv("FLYPG_LOCAL_DIR", str(tmp_path / "none"))  # nothing of this needs a cluster or etcd
    monkeypatch.delenv("FLYPG_ETCD_ENDPOINTS", raising=False)

    def flypg(*words: str, exit: int = 0) -> tuple[dict[str, Any], str]:
        """The answer as data and as complained of."""
        code = main([*words, "--json"])
        out, err = capsys.readouterr()
        assert code == exit, out + err
        return json.loads(out), out

    def said(*words: str) -> str:
        main(list(words))
        return capsys.readouterr().out

    _, text = flypg("snapshots", "list", exit=3)
    assert "no snapshots yet" in text
    server.sql("CREATE TABLE t AS SELECT 42 AS n")
    made, _ = flypg("snapshots", "create", "--conninfo", server.conninfo)
    other, _ = flypg("snapshots", "create", "--conninfo", server.conninfo)
    monkeypatch.setenv("FLYPG_SNAPSHOT_BEFORE", "echo the other disk is away >&2; false")
    _, text = flypg("snapshots", "create", "--conninfo", server.conninfo, exit=1)
    assert "FLYPG_SNAPSHOT_BEFORE failed: sh exited 1: the other disk is away" in text
    monkeypatch.delenv("FLYPG_SNAPSHOT_BEFORE")
    listed, _ = flypg("snapshots", "list")
    assert [s["id"] for s in listed["snapshots"]] == [other["id"], made["id"]], "newest first"
    table = said("snapshots", "list").splitlines()
    assert table[0].split()[:4] == ["ID", "SIZE", "CREATED", "AT"]
    assert table[1].startswith(other["id"])
    assert "just now" in table[1] and "never" in table[1]
    assert said("snapshots", "show", made["id"]).count(made["id"]) == 1

    tried, _ = flypg("snapshots", "verify", made["id"], "--scratch", str(server.root / "scratch"))
    assert tried["ok"] and tried["restore_s"] > 0
    assert "ok, restored in" in said("snapshots", "list")
    flypg("snapshots", "pin", made["id"])
    assert flypg("snapshots", "show", made["id"])[0]["pinned"] is True

    checked, _ = flypg("backups", "check", "--deep")
    assert checked["problems"] == []
    swept, _ = flypg("backups", "sweep", "--dry-run")
    assert swept["deleted"] == []
    assert flypg("backups", "status")[0]["snapshots"] == 2

    into = server.root / "restored"
    plan, _ = flypg("restore", "--into", str(into), "--snapshot", made["id"], "--plan")
    assert plan["snapshot"] == made["id"] and plan["warnings"]
    assert not into.exists(), "a plan touches nothing"
    _, text = flypg("restore", "--into", str(into), exit=3)
    assert "nobody is here to confirm" in text, "without --yes and without a terminal, nothing is done"
    restored, _ = flypg("restore", "--into", str(into), "--snapshot-only", "--yes")
    assert restored["timeline"] == 1
    _, text = flypg("restore", "--into", str(into), "--snapshot-only", "--yes", exit=3)
    assert "not empty" in text
    assert rows_of(into, "SELECT n FROM t") == [(42,)]
    flypg("restore", "--into", str(into), "--to-time", "soon", exit=2)
    flypg("restore", "--into", str(into), "--to-lsn", "0/1", "--to-name", "x", exit=2)
    _, text = flypg("restore", "--into", str(into), "--in-place", "--snapshot-only", "--yes")
    assert len(list(server.root.glob("restored.before-restore-*"))) == 1, "what was there is kept"
    _, text = flypg("restore", "--into", str(server.data), "--in-place", "--snapshot-only", "--yes", exit=3)
    assert "PostgreSQL runs on" in text

    flypg("snapshots", "delete", other["id"], exit=3)
    gone, _ = flypg("snapshots", "delete", other["id"], "--yes")
    assert gone["left"] == 1
    flypg("snapshots", "show", other["id"], exit=3)
    flypg("snapshots", "show", "../../etc/passwd", exit=2)

    monkeypatch.setenv("FLYPG_SNAPSHOT_KEY", "cd" * 32)
    _, text = flypg("backups", "check", "--deep", exit=1)
    assert "sealed with key" in text
    monkeypatch.setenv("FLYPG_SNAPSHOT_URL", f"file://{server.root}/nowhere")
    flypg("snapshots", "list", exit=3)
    assert not (server.root / "nowhere").exists(), "looking creates nothing"
