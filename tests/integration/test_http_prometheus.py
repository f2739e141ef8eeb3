"""A real Prometheus scrapes a primary and a standby: every panel has data, every rule can be evaluated, none fires."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.model import Event, Phase
from healthchecks.provider import BackupStats, PoolerStats, PoolStats
from tests.support.http_node import (
    N1,
    N2,
    TestNode,
    eventually,
    open_snapshot,
    primary_instance,
    standby_instance,
    walsender,
)
from tests.support.pairs import Pair, running_pair
from tests.support.pgserver import BIN
from tests.support.ports import free_ports
from tests.support.serving import Serving, serving

ROOT = Path(__file__).parents[2]
PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(PROMETHEUS is None, reason="Debian's prometheus is not installed"),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed"),
]
VARIABLES = {"$cluster": "test", "$node": ".+", "$__rate_interval": "20s"}


@contextmanager
def prometheus(directory: Path, targets: list[int]) -> Iterator[str]:
    """A Prometheus with our rules that scrapes each second; its address."""
    port = free_ports(1)[0]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "images" / "prometheus" / "rules" / "*.yml")],
        "scrape_configs": [
            {"job_name": "flypg", "static_configs": [{"targets": [f"127.0.0.1:{target}" for target in targets]}]}
        ],
    }
    file = directory / "prometheus.json"
    file.write_text(json.dumps(config))
    assert PROMETHEUS is not None
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def query(url: str, expr: str) -> list[Any]:
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}", timeout=20) as answer:
        found = json.load(answer)
    assert found["status"] == "success", found
    return list(found["data"]["result"])


def panels() -> list[tuple[str, str]]:
    """What each panel shows, and its expression with the variables filled in."""
    found = []
    for path in sorted((ROOT / "images" / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expr = target["expr"]
                for name, value in VARIABLES.items():
                    expr = expr.replace(name, value)
                found.append((f"{path.stem}: {panel['title']}", expr))
    return found


def busy(pair: Pair) -> tuple[TestNode, TestNode]:
    """A primary and a standby that have everything a node can have."""
    primary, standby = TestNode(pair.primary.conninfo), TestNode(pair.standby.conninfo, pair.primary.conninfo)
    pool = PoolStats("app", "app", 3, 0, 2, 1, 0, 0.0)
    for node in (primary, standby):
        node.backups = BackupStats(3, 3600.0, 1 << 20, 7200.0, True, 0, 0, 0, 3600.0, archive_lag_s=0.0)
        node.pools = PoolerStats(True, (pool,))
        node.current = open_snapshot(N1, (N2,))
        node.memory.events = [
            Event(time.time(), 3, "failover", "postmaster of n2 died"),
            Event(time.time(), 3, "open", ""),
        ]
    primary.local = primary_instance(walsenders=(walsender(),))
    primary.authority = primary.clock.boottime() + 3000.0
    standby.me, standby.local = N2, standby_instance()
    return primary, standby


async def change_primary(servers: list[Serving]) -> None:
    """A failover as the nodes see it: revoking, promoting, open."""
    for phase in (Phase.REVOKING, Phase.PROMOTING, Phase.OPEN):
        for server in servers:
            snapshot = server.node.current
            assert snapshot is not None and snapshot.view is not None
            server.node.current = replace(snapshot, view=replace(snapshot.view, phase=phase))
            server.server.wake()
        await asyncio.sleep(0.05)


def test_every_panel_has_data_and_no_alert_fires_on_a_healthy_cluster(tmp_path: Path) -> None:
    async def run(pair: Pair) -> None:
        one, two = busy(pair)
        async with serving(one, tmp_path) as primary, serving(two, tmp_path) as standby:
            servers = [primary, standby]
            for server in servers:
                for check in ("vm", "pg"):
                    await server.get(f"/flycheck/{check}")
            with prometheus(tmp_path, [server.metrics_port for server in servers]) as url:
                await eventually(lambda: scraped(url))
                pair.primary.sql("SELECT pg_create_physical_replication_slot('flypg_n2', true)")
                pair.primary.sql("CREATE TABLE IF NOT EXISTS t AS SELECT generate_series(1, 1000)")
                await change_primary(servers)
                await eventually(lambda: all_have_data(url), 60.0)
                await eventually(lambda: rules_are_well(url))
                firing = await asyncio.to_thread(query, url, 'ALERTS{alertstate="firing"}')
                assert [found["metric"] for found in firing] == []

    with running_pair() as pair:
        asyncio.run(run(pair))


async def scraped(url: str) -> bool:
    try:
        return len(await asyncio.to_thread(query, url, "flypg_term")) == 2
    except OSError:
        return False


async def all_have_data(url: str) -> bool:
    empty = [title for title, expr in panels() if not await asyncio.to_thread(query, url, expr)]
    if empty:
        print("no data yet:", empty)  # shown when the test fails
        await asyncio.sleep(0.5)
    return not empty


async def rules_are_well(url: str) -> bool:
    def read() -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=20) as answer:
            groups = json.load(answer)["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    rules = await asyncio.to_thread(read)
    assert not [rule["name"] for rule in rules if rule["health"] == "err"]
    return len(rules) >= 40 and all(rule["health"] == "ok" for rule in rules)
