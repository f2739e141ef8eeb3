"""docker-compose.yml as a user starts it, broken by the engine's own means; what is measured is printed.

Not part of `make test`: `make e2e` sets FLYPG_E2E. Prometheus, Grafana and the S3 server are third-party images that no
machine without a registry has; they are left out here, and snapshots go to a directory.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg
import pytest

from tests.support.engine import Engine, NoEngine

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not os.environ.get("FLYPG_E2E"), reason="containers are tried by `make e2e` only (FLYPG_E2E)"),
]
NODES = ("n1", "n2", "n3")
PORTS = {"n1": (5432, 5500), "n2": (5442, 5510), "n3": (5452, 5520)}
DSN = (
    "host=127.0.0.1,127.0.0.1,127.0.0.1 port=5432,5442,5452 user=postgres password=operator dbname=postgres"
    " connect_timeout=2 tcp_user_timeout=3000 application_name=e2e"
)


def say(text: str) -> None:
    print(f"e2e: {text}", flush=True)


def until(check: object, what: str, timeout_s: float = 180.0) -> float:
    """Seconds until `check` was true."""
    assert callable(check)
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < timeout_s, what
        time.sleep(0.1)
    return time.monotonic() - began


@dataclass
class Cluster:
    engine: Engine
    ids: dict[str, str] = field(default_factory=dict)

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
        leaders = [node for node, role in self.roles().items() if role == "leader"]
        assert len(leaders) == 1, leaders
        return leaders[0]

    def healthy(self) -> bool:
        form = "{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}"
        done = self.engine.run("docker", "inspect", "-f", form, *self.ids.values())
        if done.stdout.split() != ["running", "healthy"] * len(NODES):
            return False
        status = json.loads(self.flypg("status", "--json"))
        return bool(status["serving"]) and bool(status["failover_without_loss"]) and self.all_stream(status)

    def all_stream(self, status: dict[str, object]) -> bool:
        nodes = status["nodes"]
        assert isinstance(nodes, list)
        return sorted(str(n["state"]) for n in nodes) == ["primary", "streaming", "streaming"]


class Writer(threading.Thread):
    """Inserts numbers, one transaction each, through whichever node's 5432 answers; remembers what was acknowledged."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[tuple[float, int]] = []
        self._stop_it = threading.Event()
        self._next = int(time.time() * 1000)

    def run(self) -> None:
        connection: psycopg.Connection[object] | None = None
        while not self._stop_it.is_set():
            self._next += 1
            try:
                if connection is None:
                    connection = psycopg.connect(DSN, autocommit=True)
                    connection.execute("CREATE TABLE IF NOT EXISTS written (id bigint PRIMARY KEY)")
                connection.execute("INSERT INTO written VALUES (%s)", (self._next,))
                self.acknowledged.append((time.monotonic(), self._next))
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
        with psycopg.connect(DSN) as connection:
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        engine = Engine()
    except NoEngine as error:
        pytest.skip(f"E2E LEFT OUT: {error}")
    try:
        engine.env["FLYPG_SNAPSHOT_URL"] = "file:///data/snapshots"
        try:
            engine.build("etcd", "flypg-etcd")
            engine.build("node", "flypg")
        except NoEngine as error:
            pytest.skip(f"E2E LEFT OUT: {error}")
        say("left out, as no registry is asked: Prometheus, Grafana, the S3 server")
        engine.compose("down", "-v", "--remove-orphans", check=False)
        began = time.monotonic()
        engine.compose("up", "-d", "e1", "e2", "e3", *NODES)
        found = Cluster(engine, {node: engine.container(node) for node in NODES})
        try:
            until(found.healthy, "the cluster did not become healthy")
            say(f"from up to healthy: {time.monotonic() - began:.1f} s (load {os.getloadavg()[0]:.0f})")
            yield found
        except BaseException:
            for node in NODES:
                print(engine.compose("logs", "--tail", "40", node, check=False).stdout, flush=True)
            raise
        finally:
            engine.compose("down", "-v", "--remove-orphans", check=False)
    finally:
        engine.close()


def test_a_node_runs_without_root_and_writes_nowhere_else(cluster: Cluster) -> None:
    top = cluster.engine.run("docker", "top", cluster.ids["n1"], "-eo", "uid,pid,args").stdout.splitlines()[1:]
    assert top and not [line for line in top if line.split()[0] in ("0", "root")], top
    for place in ("/etc", "/opt/flypg", "/usr/local/bin", "/var"):
        done = cluster.engine.run("docker", "exec", cluster.ids["n1"], "touch", f"{place}/x", check=False)
        assert done.returncode != 0, place
    history = cluster.engine.run("docker", "history", "--no-trunc", "flypg").stdout
    assert "PASSWORD" not in history and "SECRET" not in history


def test_orphans_of_others_are_reaped(cluster: Cluster) -> None:
    cluster.engine.run("docker", "exec", cluster.ids["n1"], "sh", "-c", "(sleep 0.2 &) ; exit 0")
    time.sleep(1)

    def none_left() -> bool:
        top = cluster.engine.run("docker", "top", cluster.ids["n1"], "-eo", "stat,pid,comm").stdout
        return not [line for line in top.splitlines() if line.startswith("Z")]

    until(none_left, "a zombie stays", 60)


BREAKS = [("kill", 20.0), ("stop", 20.0), ("pause", 30.0), ("disconnect", 30.0)]


@pytest.mark.parametrize(("how", "at_most_s"), BREAKS, ids=[b[0] for b in BREAKS])
def test_the_primary_is_lost_and_nothing_with_it(cluster: Cluster, how: str, at_most_s: float) -> None:
    primary = cluster.primary()
    container, run = cluster.ids[primary], cluster.engine.run
    network = "flypge2e_flypg"
    with Writer() as writer:
        began = time.monotonic()
        if how == "kill":
            run("docker", "kill", container)
        elif how == "stop":
            run("docker", "stop", "-t", "60", container)
            took = time.monotonic() - began
            code = run("docker", "inspect", "-f", "{{.State.ExitCode}}", container).stdout.strip()
            say(f"stop: ended with {code} after {took:.1f} s")
            assert code == "0" and took < 55
        elif how == "pause":
            run("docker", "pause", container)
        else:
            run("docker", "network", "disconnect", network, container)
        writer.recovered(time.monotonic())
        if how == "pause":
            time.sleep(10)
            run("docker", "unpause", container)
        elif how == "disconnect":
            run("docker", "network", "connect", "--alias", primary, network, container)
        else:
            run("docker", "start", container)
        back = until(cluster.healthy, f"{primary} did not come back", 240)
    outage = writer.outage_s(began)
    say(
        f"{how} of the primary's container: outage {outage:.2f} s, all well after {back:.0f} s more,"
        f" {len(writer.acknowledged)} writes acknowledged (load {os.getloadavg()[0]:.0f})"
    )
    assert writer.lost() == set()
    assert outage < at_most_s
    assert cluster.primary() != primary


def test_a_snapshot_is_made_and_proves_itself(cluster: Cluster) -> None:
    primary = cluster.ids[cluster.primary()]
    run = cluster.engine.run
    run("docker", "exec", primary, "flypg", "snapshots", "create", timeout_s=300)
    assert run("docker", "exec", primary, "flypg", "snapshots", "list").stdout.strip()


def test_a_settings_error_is_one_line_and_no_zero(cluster: Cluster) -> None:
    done = cluster.engine.run(
        "docker", "run", "--rm", "-e", "FLYPG_LEASE_TTL_S=nonsense", "flypg", "agent", check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "FLYPG_LEASE_TTL_S" in done.stderr
