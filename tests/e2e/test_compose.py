"""docker-compose.yml as a user starts it, broken by the engine's own means; what is measured is printed.

Not part of `make test`: `make e2e` sets FLYPG_E2E. Needs nothing but a machine with Docker's packages and, without a
registry, debootstrap; when there can be no engine it says so and is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import NoReturn

import psycopg
import pytest

from flypg.commands.drill import SMOKE
from tests.support.compose import NODES, PROJECT, Cluster, Writer, say, through, until
from tests.support.engine import Engine, NoEngine

MODE = os.environ.get("FLYPG_E2E", "")
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not MODE, reason="containers are tried by `make e2e` only (FLYPG_E2E)"),
]


# What is the machine's fault and not ours. In continuous integration that is also an image that cannot be built: the
# package source may not answer.
ITS_FAULT = (NoEngine, AssertionError, OSError, subprocess.SubprocessError) if MODE == "ci" else (NoEngine,)


def left_out(error: Exception) -> NoReturn:
    why = " ".join(str(error).split())
    say(f"LEFT OUT: {why}")
    pytest.skip(f"E2E LEFT OUT: {why}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    began = time.monotonic()
    try:
        engine = Engine()
    except ITS_FAULT as error:
        left_out(error)
    found = Cluster(engine)
    try:
        try:
            found.prepare()
        except ITS_FAULT as error:
            left_out(error)
        say(f"engine and images are there after {time.monotonic() - began:.0f} s")
        say(f"from up to healthy: {found.up():.1f} s (load {os.getloadavg()[0]:.0f})")
        yield found
    except AssertionError:
        for node in NODES:
            print(found.compose("logs", "--tail", "40", node, check=False).stdout, flush=True)
        raise
    finally:
        found.down()
        engine.close()


def test_a_node_runs_without_root_and_writes_nowhere_else(cluster: Cluster) -> None:
    top = cluster.docker("top", "n1", "-eo", "uid,pid,args").splitlines()[1:]
    assert top and not [line for line in top if line.split()[0] in ("0", "root")], top
    for place in ("/etc", "/opt/flypg", "/usr/local/bin", "/var"):
        done = cluster.engine.run("docker", "exec", cluster.ids["n1"], "touch", f"{place}/x", check=False)
        assert done.returncode != 0, place
    history = cluster.engine.run("docker", "history", "--no-trunc", "flypg").stdout
    assert "PASSWORD" not in history and "SECRET" not in history


def test_the_image_carries_its_bill_of_materials(cluster: Cluster) -> None:
    listed = json.loads(cluster.docker("exec", "n1", "cat", "/usr/share/flypg/sbom.json"))
    parts = {part["name"]: part["purl"] for part in listed["components"]}
    assert listed["bomFormat"] == "CycloneDX"
    assert parts["pgbouncer"].startswith("pkg:deb/debian/pgbouncer@")
    assert parts["psycopg"].startswith("pkg:pypi/psycopg@")


def test_orphans_of_others_are_reaped(cluster: Cluster) -> None:
    cluster.docker("exec", "n1", "sh", "-c", "(sleep 0.2 &) ; exit 0")
    time.sleep(1)

    def none_left() -> bool:
        top = cluster.docker("top", "n1", "-eo", "stat,pid,comm")
        return not [line for line in top.splitlines() if line.startswith("Z")]

    until(none_left, "a zombie stays", 60)


# What depends on how busy the machine is. What a drill must never find depends on nothing.
TIMED = ("outage", "failovers", "pooled clients")
BREAKS = [("kill", 20.0), ("stop", 20.0), ("pause", 30.0), ("disconnect", 30.0)]


@pytest.mark.parametrize(("how", "at_most_s"), BREAKS, ids=[b[0] for b in BREAKS])
def test_the_primary_is_lost_and_nothing_with_it(cluster: Cluster, how: str, at_most_s: float) -> None:
    found = cluster.break_primary(how)
    say(f"{how}: {json.dumps(found)}")
    assert found["lost"] == 0
    assert found["new_primary"] != found["primary"]
    assert float(str(found["outage_any_node_s"])) < at_most_s and float(str(found["outage_s"])) < at_most_s
    if how == "stop":
        assert found["exit_code"] == 0 and float(str(found["stopped_after_s"])) < 55


def test_drills_are_run_against_the_cluster(cluster: Cluster) -> None:
    """docker compose --profile drill run: smoke is what the profile runs when it is not told what."""
    found = cluster.drill("smoke")
    for result in found["results"]:
        said = {v["checker"]: v["text"] for v in result["verdicts"] if v["ok"] is False}
        say(f"drill {result['drill']}: {result['outage_s']} {said or ''}")
    assert not found["problem"], found["problem"]
    ran = {result["drill"] for result in found["results"]}
    assert ran | set(found["skipped"]) == set(SMOKE), found["skipped"]
    # nobody inside a container can kill its first process, and etcd has no agent
    assert {"kill-postmaster", "kill-postgres", "switchover"} <= ran, found["skipped"]
    for result in found["results"]:
        broken = [v for v in result["verdicts"] if v["ok"] is False and v["checker"] not in TIMED]
        assert not broken, f"{result['drill']}: {broken}"
        assert result["lost"] == 0 and result["doubly_acknowledged"] == 0, result["drill"]
    with psycopg.connect(through(*NODES)) as connection:
        databases = [name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()]
    assert "flypg_drill" not in databases, "what it made is removed"


def test_a_router_that_died_is_started_again_and_status_says_so(cluster: Cluster) -> None:
    node = cluster.primary()
    for name in ("haproxy", "pgbouncer"):
        pids = cluster.docker("exec", node, "sh", "-c", f"grep -l {name} /proc/[0-9]*/comm | cut -d/ -f3").split()
        cluster.docker("exec", node, "sh", "-c", f"kill -9 {' '.join(pids)}")
        until(lambda name=name: f"{name} ended by itself; it was started again" in cluster.flypg("status"), name, 60)


def test_drills_that_are_forbidden_break_nothing(cluster: Cluster) -> None:
    form = ("--network", f"{PROJECT}_flypg", "-e", "FLYPG_CLUSTER=compose")
    command = ("flypg-drill", "drill", "run", "kill-postgres", "--cluster=compose", "--yes", "--etcd=e1:2379")
    done = cluster.engine.run("docker", "run", "--rm", *form, "-e", "OPERATOR_PASSWORD=wrong", *command, check=False)
    assert done.returncode != 0 and "nothing was broken" in done.stdout + done.stderr, done.stdout + done.stderr


def test_a_node_whose_first_process_is_root_joins(cluster: Cluster) -> None:
    """As on Fly: the agent is root, whose home is closed to the servers it starts as postgres."""
    settings = cluster.engine.run("docker", "inspect", "-f", "{{json .Config.Env}}", cluster.ids["n1"]).stdout
    env = dict(pair.split("=", 1) for pair in json.loads(settings) if not pair.startswith(("PATH=", "FLYPG_SNAPSHOT")))
    env |= {"FLYPG_NODE": "n5", "FLYPG_HOST": "n5", "FLYPG_SNAPSHOT_URL": "off", "FLYPG_NOFAILOVER": "on"}
    options = [word for key, value in env.items() for word in ("-e", f"{key}={value}")]
    name = f"{PROJECT}_n5"
    where = ("--name", name, "--hostname", "n5", "--network", f"{PROJECT}_flypg", "--network-alias", "n5")
    cluster.engine.run("docker", "run", "-d", "--user", "root", "--shm-size", "64m", *where, *options, "flypg")
    try:
        closed = cluster.engine.run("docker", "exec", name, "stat", "-c", "%a %U", "/root").stdout.split()
        assert closed == ["700", "root"]

        def streams() -> bool:
            nodes = {node["node"]: node["state"] for node in json.loads(cluster.flypg("status", "--json"))["nodes"]}
            return bool(nodes.get("n5") == "streaming")

        say(f"a node joins after {until(streams, 'n5 does not join', 120):.1f} s")
        top = cluster.engine.run("docker", "top", name, "-eo", "uid,pid,args").stdout.splitlines()[1:]
        as_root = [line.split(None, 2)[2] for line in top if line.split()[0] in ("0", "root")]
        assert as_root and all("flypg" in line for line in as_root), as_root  # the agent and its fence
        assert cluster.engine.run("docker", "exec", name, "pg-role").stdout.count("replica")
        stopped = time.monotonic()
        cluster.engine.run("docker", "stop", "-t", "60", name)
        assert time.monotonic() - stopped < 55
        code = cluster.engine.run("docker", "inspect", "-f", "{{.State.ExitCode}}", name).stdout
        assert code.strip() == "0"
    finally:
        cluster.engine.run("docker", "rm", "-f", "-v", name, check=False)
        remove = ("docker", "exec", cluster.ids["n1"], "flypg", "node", "remove", "n5", "--yes")
        # refused until its lease has ended, where it was killed
        until(lambda: cluster.engine.run(*remove, check=False).returncode == 0, "n5 cannot be removed", 60, 1.0)
    until(cluster.healthy, "the cluster is not healthy without n5", 60)


def test_a_snapshot_in_the_bucket_is_restored(cluster: Cluster) -> None:
    primary = cluster.primary()
    cluster.docker("exec", primary, "flypg", "snapshots", "create", timeout_s=300)
    assert cluster.docker("exec", primary, "flypg", "snapshots", "list").strip()
    restored = cluster.docker("exec", primary, "flypg", "restore", "--into", "/data/restored", "--yes", timeout_s=300)
    assert cluster.docker("exec", primary, "cat", "/data/restored/PG_VERSION").strip() == "15", restored
    cluster.docker("exec", primary, "rm", "-r", "/data/restored")


def test_an_etcd_that_has_lost_everything_costs_no_write(cluster: Cluster) -> None:
    """What runs goes on; an operator's word takes the cluster up again."""
    primary = cluster.primary()
    other = next(node for node in NODES if node != primary)
    with Writer(through(other)) as writer:
        cluster.empty_etcd()
        until(lambda: "etcd has lost this cluster" in cluster.flypg("status"), "nobody has noticed", 60)
        writer.recovered(time.monotonic())
        began = time.monotonic()
        asked = ("flypg", "failover", "--accept-data-loss", "--yes", "--wait", "60")
        say(cluster.docker("exec", other, *asked).strip())
        until(cluster.healthy, f"not taken up\n{cluster.told()}", 120)
        writer.recovered(time.monotonic())
    say(f"taken up: writes stopped for {writer.outage_s(began):.1f} s")
    assert writer.acknowledged and not writer.lost()


def test_prometheus_scrapes_every_node_and_knows_the_rules(cluster: Cluster) -> None:
    if "prometheus" not in cluster.services:
        pytest.skip("Prometheus is not installed here to stand in for its image (apt-get install prometheus)")

    def ask(path: str) -> dict[str, object]:
        with urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/{path}", timeout=10) as answer:
            found = json.load(answer)["data"]
            assert isinstance(found, dict)
            return found

    def up() -> bool:
        result = ask("query?query=up%7Bjob%3D%22flypg%22%7D")["result"]
        assert isinstance(result, list)
        return len(result) == len(NODES) and all(each["value"][1] == "1" for each in result)

    until(up, "not every node is scraped", 60)
    groups = ask("rules")["groups"]
    assert isinstance(groups, list)
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules and not [rule for rule in rules if rule["health"] == "err"], rules


def test_a_settings_error_is_one_line_and_no_zero(cluster: Cluster) -> None:
    nonsense = ("-e", "FLYPG_LEASE_TTL_S=nonsense")
    done = cluster.engine.run("docker", "run", "--rm", "--network", "none", *nonsense, "flypg", "agent", check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "FLYPG_LEASE_TTL_S" in done.stderr
