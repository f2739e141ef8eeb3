"""docker-compose.yml as a user starts it: the cluster of three nodes, and clients that remember what was acknowledged.

No registry is asked. Stand-ins take the place of what others publish (tests/e2e/stand-ins.yml): moto that of the S3
server, this machine's own Prometheus that of the image. There is none for Grafana.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import moto
import psycopg

from tests.support.engine import Engine, NoEngine

PROJECT = "flypge2e"
NODES = ("n1", "n2", "n3")
MEMBERS = ("e1", "e2", "e3")
PORTS = {"n1": 5432, "n2": 5442, "n3": 5452}  # of each node's HAProxy, to the primary
PUBLISHED = (*(port + at for port in (5432, 5434, 5500, 6432) for at in (0, 10, 20)), 9001, 9090)
LOGIN = "user=postgres password=operator dbname=postgres connect_timeout=2 tcp_user_timeout=3000 application_name=e2e"
STAND_INS = ("-f", "docker-compose.yml", "-f", "tests/e2e/stand-ins.yml")
SMALL = ("-f", "tests/e2e/small.yml")


def say(text: str) -> None:
    print(f"e2e: {text}", flush=True)


def through(*nodes: str) -> str:
    """Connection string: 5432 of the first of these nodes that answers."""
    return f"host={','.join('127.0.0.1' for _ in nodes)} port={','.join(str(PORTS[n]) for n in nodes)} {LOGIN}"


def until(check: object, what: str, timeout_s: float = 180.0, every_s: float = 0.1) -> float:
    """Seconds until `check` was true."""
    assert callable(check)
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < timeout_s, what
        time.sleep(every_s)
    return time.monotonic() - began


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass
class Cluster:
    """The running compose project."""

    engine: Engine
    ids: dict[str, str] = field(default_factory=dict)
    services: tuple[str, ...] = ()
    small: bool = False  # nodes of 256 MB and one CPU
    program: tuple[str, ...] = ()  # docker compose, or the older docker-compose

    # --- up and down ----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Build the images, and choose the stand-ins this machine has. Raises NoEngine."""
        plugin = self.engine.run("docker", "compose", "version", check=False).returncode == 0
        if not plugin and shutil.which("docker-compose") is None:
            raise NoEngine("not installed: docker-compose (apt-get install docker-compose)")
        if taken := [port for port in PUBLISHED if not _free(port)]:
            raise NoEngine(f"taken on this machine, but wanted by docker-compose.yml: port {taken[0]}")
        self.program = ("docker", "compose") if plugin else ("docker-compose",)
        self.engine.env["FLYPG_STAND_IN_SITE"] = str(Path(moto.__file__).resolve().parents[1])
        prometheus = shutil.which("prometheus")
        self.engine.env["FLYPG_STAND_IN_PROMETHEUS"] = prometheus or "/bin/false"
        self.engine.build("etcd", "flypg-etcd")
        self.engine.build("node", "flypg")
        self.engine.build("drill", "flypg-drill")
        self.services = (*MEMBERS, *NODES, "s3", *(["prometheus"] if prometheus else []))
        left_out = "Grafana" if prometheus else "Grafana, Prometheus (apt-get install prometheus)"
        say(f"left out, as no registry is asked: {left_out}; moto stands in for the S3 server")

    def up(self) -> float:
        """Seconds from `up` to healthy."""
        self.down()
        began = time.monotonic()
        self.compose("up", "-d", *self.services)
        self.ids = {node: self.compose("ps", "-q", node).stdout.strip() for node in NODES}
        until(self.healthy, "the cluster did not become healthy")
        return time.monotonic() - began

    def down(self) -> None:
        if self.program:
            self.compose("down", "-v", "--remove-orphans", check=False)

    def compose(self, *argv: str, timeout_s: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
        files = (*STAND_INS, *SMALL) if self.small else STAND_INS
        return self.engine.run(*self.program, *files, "-p", PROJECT, *argv, timeout_s=timeout_s, check=check)

    def docker(self, command: str, node: str, *argv: str, timeout_s: float = 120, check: bool = True) -> str:
        """`docker COMMAND CONTAINER ARGUMENTS`; its output."""
        return self.engine.run("docker", command, self.ids[node], *argv, timeout_s=timeout_s, check=check).stdout

    def drill(self, *names: str) -> dict[str, Any]:
        """Run drills against the running cluster, as docker-compose.yml says; what they found."""
        done = self.compose(
            "--profile", "drill", "run", "--rm", "-T", "drill", *names, "--json", timeout_s=900, check=False
        )
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise AssertionError(f"no answer from the drill: {done.stdout[-1000:]}{done.stderr[-1000:]}") from None
        return found

    def empty_etcd(self) -> None:
        """All of etcd's members lose their volumes, and start again."""
        self.compose("rm", "-s", "-f", "-v", *MEMBERS)
        self.engine.run("docker", "volume", "rm", *(f"{PROJECT}_{member}" for member in MEMBERS))
        self.compose("up", "-d", "--no-deps", *MEMBERS)

    # --- how it is ------------------------------------------------------------------------------------------------

    def flypg(self, *argv: str) -> str:
        for node in NODES:
            done = self.engine.run("docker", "exec", self.ids[node], "flypg", *argv, check=False)
            if done.returncode in (0, 1):
                return done.stdout
        raise AssertionError(done.stderr)

    def roles(self) -> dict[str, str]:
        """What each node says of itself to Fly's role check."""
        found = {}
        for node in NODES:
            done = self.engine.run("docker", "exec", self.ids[node], "pg-role", check=False)
            with contextlib.suppress(ValueError):
                found[node] = json.loads(done.stdout)["data"]
        return found

    def primary(self) -> str:
        """The node that says it leads. A busy node may not answer its role check in time: asked again."""
        leaders: list[str] = []

        def one() -> bool:
            leaders[:] = [node for node, role in self.roles().items() if role == "leader"]
            return len(leaders) == 1

        until(one, f"no single primary\n{self.told()}", 60)
        return leaders[0]

    def told(self) -> str:
        """What the cluster says of itself."""
        for node in NODES:
            asked = ("docker", "exec", self.ids[node], "flypg")
            done = self.engine.run(*asked, "status", "--events", "20", check=False)
            if done.returncode in (0, 1):
                return done.stdout
        return done.stderr

    def healthy(self) -> bool:
        form = "{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}"
        done = self.engine.run("docker", "inspect", "-f", form, *self.ids.values())
        if done.stdout.split() != ["running", "healthy"] * len(NODES):
            return False
        status = json.loads(self.flypg("status", "--json"))
        states = sorted(str(node["state"]) for node in status["nodes"])
        return bool(status["serving"] and status["failover_without_loss"]) and states == [
            "primary",
            "streaming",
            "streaming",
        ]

    # --- breaking it ----------------------------------------------------------------------------------------------

    def break_primary(self, how: str, *, pause_s: float = 10.0) -> dict[str, object]:
        """Lose the primary's container and get it back; what clients saw. `how`: kill, stop, pause or disconnect."""
        primary = self.primary()
        others = [node for node in NODES if node != primary]
        network = f"{PROJECT}_flypg"
        found: dict[str, object] = {"primary": primary}
        # one client that comes through a node that stays, as an application beside its own router; and one that names
        # all three, and so may try the lost one first
        with Writer(through(others[0])) as beside, Writer(through(*NODES)) as any_node:
            began = time.monotonic()
            if how == "kill":
                self.docker("kill", primary)
            elif how == "stop":
                self.engine.run("docker", "stop", "-t", "60", self.ids[primary])
                found["stopped_after_s"] = round(time.monotonic() - began, 2)
                state = "{{.State.ExitCode}}"
                found["exit_code"] = int(self.engine.run("docker", "inspect", "-f", state, self.ids[primary]).stdout)
            elif how == "pause":
                self.docker("pause", primary)
            else:
                self.engine.run("docker", "network", "disconnect", network, self.ids[primary])
            try:
                for writer in (beside, any_node):
                    writer.recovered(time.monotonic())
                if how == "pause":
                    time.sleep(pause_s)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.told()}") from None
            finally:
                if how == "pause":
                    self.docker("unpause", primary)
                elif how == "disconnect":
                    self.engine.run("docker", "network", "connect", "--alias", primary, network, self.ids[primary])
                else:
                    self.docker("start", primary)
            back = until(self.healthy, f"{primary} did not come back", 240)
        found |= {
            "outage_s": round(beside.outage_s(began), 2),
            "outage_any_node_s": round(any_node.outage_s(began), 2),
            "all_well_after_s": round(back, 1),
            "acknowledged": len(beside.acknowledged) + len(any_node.acknowledged),
            "lost": len(beside.lost() | any_node.lost()),
            "new_primary": self.primary(),
            "load": round(os.getloadavg()[0], 1),
        }
        return found


class Writer(threading.Thread):
    """Inserts numbers, one transaction each; remembers what was acknowledged, and when."""

    numbers = itertools.count(int(time.time() * 1000) * 1000)

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn = dsn
        self.acknowledged: list[tuple[float, int]] = []
        self._stop_it = threading.Event()

    def run(self) -> None:
        connection: psycopg.Connection[object] | None = None
        while not self._stop_it.is_set():
            number = next(Writer.numbers)
            try:
                if connection is None:
                    connection = psycopg.connect(self.dsn, autocommit=True)
                    connection.execute("SET client_min_messages = error")
                    connection.execute("CREATE TABLE IF NOT EXISTS written (id bigint PRIMARY KEY)")
                connection.execute("INSERT INTO written VALUES (%s)", (number,))
                self.acknowledged.append((time.monotonic(), number))
            except psycopg.Error:
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.02)
            time.sleep(0.005)
        if connection is not None:
            connection.close()

    def outage_s(self, since: float) -> float:
        """The longest time without an acknowledged write from `since` on."""
        times = [since, *(t for t, _ in self.acknowledged if t >= since)]
        return max(b - a for a, b in itertools.pairwise(times))

    def lost(self) -> set[int]:
        with psycopg.connect(through(*NODES)) as connection:
            there = {i for (i,) in connection.execute("SELECT id FROM written").fetchall()}
        return {i for _, i in self.acknowledged} - there

    def __enter__(self) -> Writer:
        self.start()
        until(lambda: len(self.acknowledged) > 50, "the writer does not get on")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_it.set()
        self.join(60)

    def recovered(self, since: float) -> None:
        until(lambda: self.acknowledged and self.acknowledged[-1][0] > since + 0.5, "no write is acknowledged again")
