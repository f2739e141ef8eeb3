"""Checks, commands, metrics and page of a whole cluster, as flyctl, a load balancer, Prometheus and a person see it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.places import Node
from chaos.testbed import Plan, Testbed
from tests.support.drills import testbed

pytestmark = pytest.mark.timeout(300)
SLOW = 10.0  # a busy machine may take so many times the bar


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with testbed(Plan(nodes=3, etcd=1)) as found:
        yield found


def ask(node: Node, path: str, *, method: str = "GET", body: object = None, port: int = 0) -> tuple[int, str]:
    """Status 0: it did not answer."""
    data = json.dumps(body).encode() if body is not None else None
    url = f"http://{node.address}:{port or node.ports.http}{path}"
    request = urllib.request.Request(url, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def command(node: Node, path: str, method: str = "GET", body: object = None) -> Any:
    status, text = ask(node, f"/commands/{path}", method=method, body=body)
    assert status == 200, (status, text)
    return json.loads(text)


def until(check: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def standbys(bed: Testbed) -> list[Node]:
    return [node for node in bed.nodes.values() if node is not bed.primary]


def test_every_check_of_every_node_passes(bed: Testbed) -> None:
    for node in bed.nodes.values():
        status, text = ask(node, "/flycheck/role")
        assert (status, text) == (200, "leader" if node is bed.primary else "replica")
        for name in ("pg", "vm"):
            status, text = ask(node, f"/flycheck/{name}")
            assert status == 200 and "✗" not in text, text
    assert ask(bed.primary, "/primary")[0] == 200 and ask(bed.primary, "/replica")[0] == 503
    assert all(ask(node, "/replica?lag=64MB")[0] == 200 for node in standbys(bed))
    members = json.loads(ask(standbys(bed)[0], "/cluster")[1])["members"]
    assert sorted(member["role"] for member in members) == ["leader", "quorum_standby", "quorum_standby"]


def test_metrics_of_every_node(bed: Testbed) -> None:
    for node in bed.nodes.values():
        status, text = ask(node, "/metrics", port=node.ports.metrics)
        lines = text.splitlines()
        label = f'{{cluster="{bed.cluster}",node="{node.name}"}}'
        assert status == 200 and "pg_up 1" in lines
        assert f"flypg_is_primary{label} {int(node is bed.primary)}" in lines
        assert f"flypg_can_fail_over{label} 1" in lines
        assert f"flypg_fence_up{label} 1" in lines
        assert any(line.startswith("pg_stat_database_xact_commit{") for line in lines)
        resident = next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes "))
        assert resident < 100 << 20, f"{node.name}: {resident / (1 << 20):.0f} MB"


def test_the_cluster_is_managed_through_a_standby(bed: Testbed) -> None:
    node = standbys(bed)[0]
    assert command(node, "databases/create", "POST", {"name": "app"}) == {"result": True}
    user = {"username": "app-user", "password": "secret", "databases": "app"}
    assert command(node, "users/create", "POST", user) == {"result": True}
    assert "app-user" in {u["username"] for u in command(bed.primary, "users/list")["result"]}
    wish = {"work_mem": "7MB"}
    assert command(node, "admin/settings/update/postgres", "POST", wish)["restart_required"] is False

    def applied() -> bool:
        status, text = ask(node, "/commands/admin/settings/view", body=["work_mem"])
        return status == 200 and json.loads(text)["result"]["settings"][0]["setting"] == str(7 * 1024)

    until(applied, "work_mem was not applied")
    assert command(node, "users/delete/app-user", "DELETE") == {"result": True}
    told = [event["text"] for event in json.loads(ask(node, "/history")[1])]
    assert "deleted the user app-user" in told and "set work_mem to 7MB" in told


def test_a_failover_is_asked_for_and_every_role_turns(bed: Testbed) -> None:
    old = bed.primary
    seen: list[tuple[float, str, str]] = []
    stop = threading.Event()

    def watch(node: Node) -> None:
        while not stop.is_set():
            seen.append((time.monotonic(), node.name, ask(node, "/flycheck/role")[1]))
            time.sleep(0.02)

    watchers = [threading.Thread(target=watch, args=(node,)) for node in bed.nodes.values()]
    for watcher in watchers:
        watcher.start()
    try:
        found = command(standbys(bed)[0], "admin/failover/trigger")
        done = time.monotonic()
        assert found == {"message": "failover completed successfully"}
        until(lambda: ask(old, "/flycheck/role")[1] == "replica", "the old primary does not come back")
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()
    new = bed.primary
    assert new is not old and ask(new, "/flycheck/role")[1] == "leader"
    turned = next(at for at, name, role in seen if name == new.name and role == "leader")
    assert turned - done < 1.0 * SLOW
    for at, name, role in seen:
        others = [r for t, n, r in seen if n != name and abs(t - at) < 0.001]
        assert role != "leader" or "leader" not in others, "two nodes said leader at the same moment"
    status, text = ask(new, "/")
    assert status == 200 and f"{new.name} is primary (term 2)" in text
    lines = ask(new, "/metrics")[1].splitlines()
    assert any(line.startswith("flypg_failovers_total{") and 'kind="switchover"' in line for line in lines)


def test_a_node_without_postgresql_says_so(bed: Testbed) -> None:
    node = standbys(bed)[0]
    pid = int((Path(node.pgdata) / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        status, text = ask(node, "/flycheck/pg")
        assert time.monotonic() - begun < 5
        until(lambda: ask(node, "/flycheck/role")[0] == 500, "the role of a stopped server still stands")
        text = ask(node, "/flycheck/role")[1]
        assert "PostgreSQL is" in text and "replica" not in text and "leader" not in text
        assert status in (200, 500)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: ask(node, "/flycheck/role") == (200, "replica"), "it does not come back")
