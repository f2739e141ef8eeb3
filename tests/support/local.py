"""A local cluster of a test's own, driven as an operator drives it: by `flypg local` and `flypg`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flypg.local_processes import running_from
from tests.support.ports import free_ports

NEEDED = ("etcd", "haproxy")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PATIENCE_S = 90.0  # the machine may be busy with other tests
PROGRAM_S = 600.0
LAST_WORDS = 6000  # characters of each log that a failure shows
ARCHIVING = ("FLYPG_WAL_ARCHIVE=on", "FLYPG_SNAPSHOT_FIRST_AFTER_S=86400", "FLYPG_SNAPSHOT_MIN_FREE_PERCENT=0")
ROWS = "SELECT coalesce(string_agg(stage, ',' ORDER BY id), '') FROM story"

needs_programs = pytest.mark.skipif(
    any(shutil.which(program, path=PATH) is None for program in NEEDED), reason=f"needs {' and '.join(NEEDED)}"
)


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
    more: tuple[tuple[str, str], ...] = ()  # for the environment of its commands

    def __call__(self, *words: str) -> Ran:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("FLYPG_", "PG"))}
        argv = [sys.executable, "-m", "flypg", *words]
        ended = subprocess.run(
            argv,
            env=env | dict(self.more) | {"FLYPG_LOCAL_DIR": str(self.root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROGRAM_S,
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


@contextmanager
def cluster(
    nodes: int,
    *settings: str,
    room_for: int = 0,
    begin: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
    where: str | None = None,
) -> Iterator[Local]:
    """A running cluster of `nodes` with these settings; afterwards it must be gone, with every process of it.

    `room_for`: how many nodes its ports must do for. `begin`: more options of `flypg local up`.
    `more`: for the environment of its commands. `where`: below which directory, if not that for temporary files.
    """
    root = Path(tempfile.mkdtemp(prefix="fp", dir=where))
    root.chmod(0o755)
    local, most = Local(root / "c", tuple((more or {}).items())), max(nodes, room_for)
    base = str(port_base(most))
    wished = [word for setting in settings for word in ("--set", setting)]
    try:
        local.ok("local", "up", "--nodes", str(nodes), "--port-base", base, "--wait", "200", *wished, *begin)
        yield local
    finally:
        ended = local("local", "down", "--destroy", "--yes")
        left = [pid for number in range(1, most + 1) for pid in running_from(local.root / f"n{number}")]
        remains = local.root.exists()
        shutil.rmtree(root, ignore_errors=True)
    assert ended.code == 0, ended.err
    assert left == []
    assert not remains, "--destroy removes the data"


def write(local: Local, stage: str) -> None:
    """A row of the table `story`, which `ROWS` tells in their order."""
    local.query(f"INSERT INTO story (stage) VALUES ('{stage}') RETURNING id")


def archived(local: Local) -> None:
    """Wait until all that was written is in the repository."""
    local.query("SELECT pg_switch_wal()")
    until = time.monotonic() + PATIENCE_S
    while (backups := local.status()["backups"])["archive_lag_bytes"] is None or backups["archive_ready_segments"]:
        assert time.monotonic() < until, f"{backups}\n{local.last_words()}"
        time.sleep(0.2)
