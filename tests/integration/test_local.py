"""`flypg local` for real: etcd, agents, PostgreSQL and HAProxy, driven as an operator drives them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flypg.local_layout import Layout
from flypg.local_processes import running_from
from tests.support.ports import free_ports

NEEDED = ("etcd", "haproxy")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
pytestmark = [
    pytest.mark.skipif(
        any(shutil.which(program, path=PATH) is None for program in NEEDED), reason=f"needs {' and '.join(NEEDED)}"
    ),
    pytest.mark.timeout(400),
]
PATIENCE_S = 90.0  # the machine may be busy with other tests
LAST_WORDS = 6000  # characters of each log that a failure shows


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Local:
    """One local cluster, and `flypg` with it as the cluster it addresses."""

    root: Path

    def __call__(self, *words: str) -> Ran:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("FLYPG_", "PG"))}
        argv = [sys.executable, "-m", "flypg", *words]
        ended = subprocess.run(
            argv,
            env=env | {"FLYPG_LOCAL_DIR": str(self.root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Ran(ended.returncode, ended.stdout, ended.stderr)

    def ok(self, *words: str) -> Ran:
        ran = self(*words)
        assert ran.code == 0, f"flypg {' '.join(words)} ended with {ran.code}\n{ran.out}\n{ran.err}"
        return ran

    def status(self) -> dict[str, Any]:
        ran = self("status", "--json")
        assert ran.code in (0, 1), ran.err
        return ran.json()

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a status; fails with the last one, and with what the nodes logged."""
        end = time.monotonic() + PATIENCE_S
        while not wanted(status := self.status()):
            assert time.monotonic() < end, f"{self.last_words()}\n{json.dumps(status)}"
            time.sleep(0.3)
        return status

    def last_words(self) -> str:
        """The end of each log, of agents, etcd and PostgreSQL, and how much room there is."""
        logs = [*self.root.glob("log/*.log"), *sorted(self.root.glob("n*/log/postgresql-*.log"))[-4:]]
        told = [f"{path}:\n" + path.read_text(errors="replace")[-LAST_WORDS:] for path in logs]
        usage = shutil.disk_usage(self.root)
        return "\n".join([*told, f"{usage.free >> 20} MB free, load {os.getloadavg()}"])

    def healthy(self) -> dict[str, Any]:
        return self.until(lambda s: bool(s["failover_without_loss"] and all(n["healthy"] for n in s["nodes"])))

    def environment(self, *words: str) -> dict[str, str]:
        lines = self.ok("local", "env", *words).out.splitlines()
        pairs = [shlex.split(line)[1].partition("=") for line in lines]
        return {name: value for name, _, value in pairs}

    def query(self, statement: str) -> Any:
        found = self.environment()
        with psycopg.connect(
            host=found["PGHOST"],
            port=int(found["PGPORT"]),
            user=found["PGUSER"],
            password=found["PGPASSWORD"],
            dbname=found["PGDATABASE"],
            connect_timeout=20,
        ) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None


def port_base(nodes: int) -> int:
    """A base whose ports are free: a run of them without a gap. No other test is given these."""
    wanted = 100 * nodes + 50
    for _ in range(20):
        found = free_ports(wanted)
        if found[-1] - found[0] == wanted - 1:
            return found[0] + 30
    raise AssertionError("no run of free ports was found")


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    root = Path(tempfile.mkdtemp(prefix="fp"))
    root.chmod(0o755)
    flypg = Local(root / "c")
    try:
        flypg.ok("local", "up", "--nodes", "2", "--port-base", str(port_base(2)), "--wait", "200")
        yield flypg
    finally:
        ended = flypg("local", "down", "--destroy", "--yes")
        left = [p for name in ("n1", "n2") for p in running_from(flypg.root / name)]
        shutil.rmtree(root, ignore_errors=True)
    assert ended.code == 0, ended.err
    assert left == []
    assert not flypg.root.exists()


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
