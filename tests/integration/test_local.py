"""`flypg local` for real: etcd, agents, PostgreSQL and HAProxy, driven as an operator drives them."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flypg.local_layout import Layout
from flypg.local_processes import running_from
from tests.support.local import PATIENCE_S, Local, cluster, needs_programs

pytestmark = [needs_programs, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with cluster(2) as flypg:
        yield flypg


def test_status_is_healthy_and_says_what_a_failover_costs(local: Local) -> None:
    status = local.healthy()
    assert {node["node"]: node["sync"] for node in status["nodes"]} == {status["primary"]: ""} | {
        node["node"]: "quorum" for node in status["nodes"] if node["node"] != status["primary"]
    }
    text = local.ok("status").out
    assert "served" in text and "ANY 1" in text and "\x1b" not in text
    assert local.ok("members").out.count("127.0.0.1") == 2
    assert "founded" in local.ok("why", "1").out


def test_env_leads_a_client_to_the_primary(local: Local) -> None:
    local.healthy()
    assert local.query("select pg_is_in_recovery()") is False
    assert local.environment("--node", "n2")["PGPORT"] != local.environment("--node", "n1")["PGPORT"]


def test_passwords_are_for_our_eyes_only(local: Local) -> None:
    secrets = local.root / "secrets.json"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    password = local.environment()["PGPASSWORD"]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert password.encode() not in entry.read_bytes()
        except OSError:
            continue  # it has ended
    assert not any(password in log.read_text(errors="replace") for log in (local.root / "log").glob("*.log"))


def test_up_again_changes_nothing(local: Local) -> None:
    local.healthy()
    before = local.ok("local", "status", "--json").json()
    ran = local.ok("local", "up")
    assert "running already" in ran.err
    assert local.ok("local", "status", "--json").json() == before


def test_switchover_moves_the_primary(local: Local) -> None:
    before = local.healthy()
    local.query("create table if not exists moved (term int)")
    target = next(n["node"] for n in before["nodes"] if n["node"] != before["primary"])
    answer = local.ok("switchover", "--to", target, "--json").json()
    assert str(answer["outcome"]).startswith("done")
    after = local.healthy()
    assert (after["primary"], after["term"]) == (target, before["term"] + 1)
    assert local.query("select count(*) from moved") == 0


def test_a_switchover_to_the_primary_is_refused_and_changes_nothing(local: Local) -> None:
    before = local.healthy()
    ran = local("switchover", "--to", before["primary"])
    assert ran.code == 3 and "refused" in ran.err + ran.out
    assert local.status()["term"] == before["term"]


def test_a_switchover_names_open_transactions_and_can_be_called_off(local: Local) -> None:
    before = local.healthy()
    found = local.environment()
    with psycopg.connect(
        host=found["PGHOST"],
        port=int(found["PGPORT"]),
        user=found["PGUSER"],
        password=found["PGPASSWORD"],
        dbname=found["PGDATABASE"],
        application_name="monthly report",
    ) as client:
        client.execute("SELECT pg_sleep(0.6)")  # the transaction stays open
        ran = local("switchover", "--wait-transactions", "0.3", "--then", "call-off", "--json")
        assert ran.code == 3, ran.err
        (named,) = ran.json()["transactions"]
        assert (named["application"], named["state"]) == ("monthly report", "idle in transaction")
        assert named["user"] == found["PGUSER"] and named["query"].startswith("SELECT pg_sleep")
        assert local.status()["term"] == before["term"], "nothing was changed"
        assert client.execute("SELECT 1").fetchone() == (1,)
    ran = local.ok("switchover", "--then", "call-off", "--json")
    assert ran.json()["transactions"] == []
    assert local.healthy()["term"] > before["term"]


def test_a_killed_primary_is_replaced_and_comes_back(local: Local) -> None:
    before = local.healthy()
    local.query("create table if not exists survived (id int)")
    rows = local.query("insert into survived values (1) returning (select count(*) from survived)")
    victim = before["primary"]
    assert "with signal 9" in local.ok("local", "node", "kill", victim).out
    assert running_from(local.root / victim) == []
    local.until(lambda s: bool(s["serving"] and s["primary"] not in (None, victim)))
    assert local.query("select count(*) from survived") == rows + 1
    local.ok("local", "node", "start", victim)
    after = local.healthy()
    assert next(n for n in after["nodes"] if n["node"] == victim)["state"] == "streaming"
    assert victim in local.ok("why").out


def test_wishes_are_checked_shown_and_applied(local: Local) -> None:
    local.healthy()
    ran = local("spec", "set", "durabilty=strict")
    assert ran.code == 2 and "did you mean durability?" in ran.err
    ran = local.ok("spec", "set", "parameters.work_mem=17MB", "--dry-run")
    assert "work_mem: (default) -> 17MB" in ran.out
    local.ok("spec", "set", "parameters.work_mem=17MB")
    end = time.monotonic() + PATIENCE_S
    while local.query("show work_mem") != "17MB":
        assert time.monotonic() < end, "the parameter was not applied"
        time.sleep(0.3)
    assert local.ok("spec", "show", "--json").json()["spec"]["parameters"] == {"work_mem": "17MB"}
    assert local("init").code == 3


def test_pause_and_resume(local: Local) -> None:
    local.healthy()
    local.ok("pause")
    assert local.status()["paused"] is True
    assert "paused" in local.status()["failover_why"]
    local.ok("resume")
    local.healthy()


BAD = [
    (("status", "--etcd", "127.0.0.1:1", "--cluster", "x"), 4, "etcd cannot be reached"),
    (("switchover", "--to", "n9"), 2, "no node 'n9'"),
    (("node", "restart", "n11"), 2, "did you mean n1?"),
    (("node", "remove", "n2"), 3, "nobody is here to confirm"),
    (("failover", "--accept-data-loss"), 3, "nobody is here to confirm"),
    (("local", "up", "--nodes", "1"), 2, "has 2 nodes"),
    (("local", "up", "--port-base", "9000"), 2, "set up with other values"),
    (("local", "node", "kill", "n3"), 2, "it has n1, n2"),
    (("local", "logs", "n3"), 2, "no such process"),
    (("local", "down", "--destroy"), 3, "nobody is here to confirm"),
    (("why", "9999"), 2, "has not come yet"),
]


@pytest.mark.parametrize(("words", "code", "text"), BAD, ids=[" ".join(b[0]) for b in BAD])
def test_what_cannot_be_done_says_why(local: Local, words: tuple[str, ...], code: int, text: str) -> None:
    ran = local(*words)
    assert ran.code == code, ran.out + ran.err
    assert text in ran.err
    assert ran.out == ""


def test_ports_in_use_are_named(local: Local) -> None:
    layout_base = json.loads((local.root / "local.json").read_text())["port_base"]
    other = Local(local.root.parent / "other")
    ran = other("local", "up", "--nodes", "1", "--port-base", str(layout_base))
    assert ran.code == 2 and "is in use; choose another --port-base" in ran.err
    assert Layout(local.root, port_base=layout_base).etcd()[0].client in [
        int(w) for w in ran.err.split() if w.isdigit()
    ]


def test_logs_are_readable(local: Local) -> None:
    text = local.ok("local", "logs", "n1").out
    assert "keeper | plan step=" in text and not text.lstrip().startswith("{")


def test_down_and_up_keep_the_data(local: Local) -> None:
    local.healthy()
    local.query("create table if not exists kept (id int)")
    local.query("insert into kept values (1)")
    local.ok("local", "down")
    assert local("status").code == 4
    assert {p["running"] for p in local.ok("local", "status", "--json").json()["processes"]} == {False}
    local.ok("local", "up", "--wait", "200")
    local.healthy()
    assert local.query("select count(*) from kept") == 1
