"""The machines of a cluster under test: its nodes and its etcd members, as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chaos import processes
from chaos.processes import Process
from cluster.model import Ports

USUAL = Ports()


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of what we start: ours, without settings of another cluster."""
    foreign = ("FLYPG_", "PG", "FLY_", "SU_PASSWORD", "OPERATOR_PASSWORD", "REPL_PASSWORD", "PRIMARY_REGION")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    kept["ETCDCTL_API"] = "3"
    kept["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)  # the same checkout, from any directory
    return {**kept, **settings}


@dataclass(slots=True)
class Place:
    """A machine of the testbed: a node or an etcd member."""

    name: str
    address: str
    directory: Path
    log: Path
    endpoint: str = ""  # of an etcd member, for clients
    command: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0  # monotonic; 0: we never started it

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.started_at = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """kill -9, also of a frozen process."""
        if self.process is not None and self.running:
            self.process.kill()
            self.process.wait(timeout=10)

    def last_words(self, lines: int = 15) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


@dataclass(slots=True)
class Node(Place):
    """A node: an agent with its PostgreSQL and routers."""

    ports: Ports = USUAL
    pgdata: Path = Path()
    wal_volume: Path = Path()  # where pg_wal lies when it has a volume of its own
    password: str = ""
    database: str = "postgres"  # where clients write
    sslmode: str = "disable"

    def conninfo(self, port: int, *, database: str = "", name: str = "flypg_drill", host: str = "") -> str:
        """`database` "": where clients write; `host` "": this node's."""
        password = self.password.replace("\\", r"\\").replace("'", r"\'")
        return (
            f"host={host or self.address} port={port} dbname={database or self.database} user=postgres"
            f" password='{password}' application_name={name} sslmode={self.sslmode} gssencmode=disable"
        )

    @property
    def through_proxy(self) -> str:
        return self.conninfo(self.ports.proxy)

    @property
    def direct(self) -> str:
        return self.conninfo(self.ports.postgres)

    @property
    def agent(self) -> Process | None:
        """The agent's process; None when it does not run."""
        return processes.look(self.process.pid) if self.process is not None and self.running else None

    def postmaster(self) -> Process | None:
        pid = processes.postmaster_of(self.pgdata)
        return processes.look(pid) if pid is not None else None

    def postgres(self) -> list[Process]:
        """The postmaster and all its children."""
        pid = processes.postmaster_of(self.pgdata)
        return processes.descendants(pid, processes.everything()) if pid is not None else []

    def kill(self) -> None:
        """kill -9 of everything, as if the machine were lost."""
        for _ in range(5):  # what was started meanwhile is found by the next look
            mine = self.all()
            processes.send(mine, signal.SIGKILL)
            Place.kill(self)
            if not processes.wait_gone(mine, 5) and not processes.alive(self.all()):
                return

    def all(self) -> list[Process]:
        """Every process of this node."""
        table = processes.everything()
        found = {p.pid: p for p in processes.belonging(self.directory, table)}
        if self.process is not None and self.running:
            found |= {p.pid: p for p in processes.descendants(self.process.pid, table)}
        pid = processes.postmaster_of(self.pgdata)
        if pid is not None:
            found |= {p.pid: p for p in processes.descendants(pid, table)}
        return list(found.values())

    def helpers(self, program: str) -> list[Process]:
        """Processes of this node that run `program` (haproxy, pgbouncer) or a script of that name."""
        return [p for p in self.all() if any(Path(w).name == program or w == program for w in p.argv[:4])]
