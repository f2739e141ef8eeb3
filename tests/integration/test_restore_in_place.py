"""flypg restore --in-place on a whole local cluster: refused, failed and withdrawn, cut off, carried out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.local import ARCHIVING, PATIENCE_S, ROWS, Local, archived, cluster, needs_programs, write

pytestmark = [needs_programs, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with cluster(2, *ARCHIVING) as flypg:
        flypg.query("CREATE TABLE story (id serial, stage text)")
        yield flypg


def cluster_of(local: Local) -> str:
    return str(local.status()["cluster"])


def untouched(local: Local) -> dict[str, Any]:
    status = local.status()
    return {k: status[k] for k in ("primary", "term", "timeline")}


def test_status_has_a_line_of_backups_at_once(local: Local) -> None:
    local.healthy()
    backups = local.status()["backups"]
    assert backups["configured"] and backups["archiving"] and backups["newest_id"] == ""
    assert "backups   no snapshot yet; next " in local.ok("status").out


def test_what_cannot_be_done_is_refused_and_changes_nothing(local: Local) -> None:
    local.healthy()
    before = untouched(local)
    assert local("restore", "--in-place").code == 2, "there is no snapshot"
    local.ok("snapshots", "create", "--node", "n1")
    name = cluster_of(local)
    for words in (
        ("--snapshot", "vs_0000000000000000", "--confirm", name),
        ("--node", "n9", "--confirm", name),
        ("--confirm", "another"),
        ("--confirm", name, "--yes"),
        ("--to-lsn", "FF/0", "--confirm", name),
        ("--to-time", "2001-01-01", "--confirm", name),
        ("--follow",),
        ("--cancel",),
    ):
        ran = local("restore", "--in-place", *words)
        assert ran.code == 2, (words, ran)
    ran = local("restore", "--in-place")
    assert ran.code == 3 and "nobody is here to confirm" in ran.err + ran.out
    assert "LOST" in ran.err + ran.out and "pgdata.before-restore" in ran.err + ran.out
    assert local("restore", "--into", "/tmp/x", "--node", "n1").code == 2
    plan = local.ok("restore", "--in-place", "--plan", "--json").json()
    assert plan["node"] == before["primary"]
    assert untouched(local) == before


def test_a_repository_that_is_away_loses_nothing(local: Local) -> None:
    """The order fails, is tried again, and is withdrawn: the cluster starts as it was."""
    before = local.healthy()
    write(local, "withdrawn")
    name, catalog = cluster_of(local), next((local.root / "snapshots").glob("*/*/catalog"))
    archived(local)
    parts = catalog.with_name("snapshots")
    parts.rename(parts.with_name("aside"))
    ran = local("restore", "--in-place", "--confirm", name, "--json")
    assert ran.code == 1 and "tried again" in ran.out, ran
    assert local("restore", "--in-place", "--confirm", name).code == 2, "one at a time"
    local.ok("restore", "--in-place", "--cancel")
    parts.with_name("aside").rename(parts)
    local.healthy()
    assert local.query(ROWS) == "withdrawn"
    assert not list(local.root.glob("n*/pgdata.*restor*"))
    assert before["nodes"][0]["timeline"] >= 1


def test_back_to_a_moment_before_a_failover_with_the_agent_killed_half_way(local: Local) -> None:
    """Rows after the restore point are gone on both nodes; archiving begins a path of its own."""
    local.healthy()
    write(local, "kept")
    local.query("SELECT pg_create_restore_point('before')")
    target = next(n["node"] for n in local.status()["nodes"] if n["role"] == "standby")
    local.ok("switchover", "--to", target)
    local.healthy()
    write(local, "lost")
    archived(local)
    before, name = local.status(), cluster_of(local)
    given = local.ok("restore", "--in-place", "--to-name", "before", "--confirm", name, "--no-wait", "--json").json()
    note = local.root / given["node"] / "pgdata.restoring"
    until = time.monotonic() + PATIENCE_S
    while not note.exists() and local.status()["timeline"] == before["timeline"]:
        assert time.monotonic() < until, "it begins"
        time.sleep(0.05)
    local.ok("local", "node", "kill", given["node"])
    local.ok("local", "node", "start", given["node"])
    done = local.ok("restore", "--in-place", "--follow", "--json").json()
    assert done["order"] == given["order"]
    after = local.healthy()
    assert after["primary"] == given["node"]
    assert after["timeline"] > before["timeline"], "a number that no node of the old cluster has used"
    assert local.query(ROWS) == "withdrawn,kept"
    for node in ("n1", "n2"):
        (aside,) = (local.root / node).glob("pgdata.before-restore-*")
        assert (aside / "PG_VERSION").exists()
    assert any(e["kind"] == "restore" for e in after["events"]) or "restored in place" in local.ok("why").out
    write(local, "new")
    archived(local)
    assert len(list((local.root / "snapshots" / name).iterdir())) == 2, "the old history stays as it was"
    local.ok("snapshots", "create", "--node", "n1")
    assert len(local.ok("snapshots", "list", "--json").json()["snapshots"]) == 1
    local.ok("switchover")
    local.healthy()
    assert local.query(ROWS) == "withdrawn,kept,new"


def test_old_data_is_discarded_when_asked(local: Local) -> None:
    local.healthy()
    local.ok("snapshots", "create", "--node", "n1")
    rows = local.query(ROWS)
    archived(local)
    kept = sorted(local.root.glob("n*/pgdata.before-restore-*"))
    local.ok("restore", "--in-place", "--yes", "--discard-old")
    local.healthy()
    assert local.query(ROWS) == rows
    assert sorted(local.root.glob("n*/pgdata.before-restore-*")) == kept, "what an earlier restore kept stays"
