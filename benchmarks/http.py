"""Measures what the agent's HTTP server is held to: probes, a stopped PostgreSQL, scrapes beside postgres_exporter.

`python -m benchmarks.http` prints JSON. It needs PostgreSQL 15 and, for the comparison, Debian's
prometheus-postgres-exporter. Everything runs on loopback; the server and the load are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from healthchecks.config import HttpConfig
from healthchecks.pg_families import TABLES
from healthchecks.server import HttpServer
from postgres.metrics_queries import TABLES as TABLES_SQL
from tests.support.http_node import N2, TestNode, standby_instance
from tests.support.pairs import Pair, running_pair, until
from tests.support.ports import free_ports

EXPORTER = shutil.which("prometheus-postgres-exporter")
OURS = "application_name LIKE 'flypg%'"


async def serve(conninfo: str, port: int, metrics_port: int, standby: bool, tables: bool) -> None:
    node = TestNode(conninfo)
    if standby:
        node.me, node.local = N2, standby_instance()
    config = HttpConfig(("127.0.0.1",), port, metrics_port, data_dir="/tmp", table_metrics=tables, max_tables=10_000)
    await HttpServer(config, node).start()
    await asyncio.Event().wait()


@contextmanager
def server(
    conninfo: str, *, standby: bool = False, tables: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """An HttpServer in a process of its own, with its ports."""
    port, metrics_port = free_ports(2)
    arguments = ["serve", conninfo, str(port), str(metrics_port), str(int(standby)), str(int(tables))]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.http", *arguments])
    try:
        until(lambda: fetch(f"http://127.0.0.1:{port}/flycheck/role")[0], "the server does not answer")
        yield process, port, metrics_port
    finally:
        process.kill()
        process.wait(10)


def fetch(url: str) -> tuple[int, bytes]:
    """Status 0: nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """One kept connection that asks the same over and over: the load must not cost more than the server."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def load(port: int, path: str, *, rate: float, seconds: float, clients: int) -> dict[str, Any]:
    """`rate` requests a second from `clients` connections, each begun on time whether or not others are late."""
    every, begun = 1.0 / rate, time.perf_counter()
    total, errors, times = int(rate * seconds), 0, []
    free: asyncio.Queue[Client] = asyncio.Queue()
    for _ in range(clients):
        free.put_nowait(Client(port, path))

    async def one(due: float) -> None:
        nonlocal errors
        client = await free.get()
        try:
            if await client.ask() != 200:
                errors += 1
        except (OSError, asyncio.IncompleteReadError):
            errors += 1
        finally:
            free.put_nowait(client)
        times.append(time.perf_counter() - due)  # waiting for a free connection counts

    async with asyncio.TaskGroup() as group:
        for number in range(total):
            due = begun + number * every
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            group.create_task(one(due))
    took = time.perf_counter() - begun
    while not free.empty():
        free.get_nowait().close()
    return {"requests": total, "errors": errors, "per_s": round(total / took), **quantiles(times)}


def quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "p50_ms": round(1000 * statistics.median(ordered), 2),
        "p99_ms": round(1000 * ordered[int(len(ordered) * 0.99) - 1], 2),
        "max_ms": round(1000 * ordered[-1], 2),
    }


async def probes(pair: Pair, seconds: float) -> dict[str, Any]:
    """1,000 probes a second of the role, and 50 connections that ask for the pg check meanwhile."""
    with server(pair.primary.conninfo) as (process, port, _):
        before = cpu_s(process.pid)

        async def most_connections() -> int:
            most, until_at = 0, time.monotonic() + seconds
            while time.monotonic() < until_at:
                rows = await asyncio.to_thread(pair.primary.sql, f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}")
                most = max(most, int(rows[0][0]))
                await asyncio.sleep(0.5)
            return most

        role, pg, most = await asyncio.gather(
            load(port, "/flycheck/role", rate=1000, seconds=seconds, clients=50),
            load(port, "/flycheck/pg", rate=50, seconds=seconds, clients=50),
            most_connections(),
        )
        return {"role": role, "pg": pg, "connections_at_most": most, "cpu_s": round(cpu_s(process.pid) - before, 2)}


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def stopped(pair: Pair) -> dict[str, Any]:
    """How long each check takes, and what it says, while PostgreSQL is stopped by SIGSTOP."""
    with server(pair.standby.conninfo, standby=True) as (_, port, metrics_port):
        fetch(f"http://127.0.0.1:{port}/flycheck/pg")
        frozen = [pair.standby.process.pid, *children(pair.standby.process.pid)]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(1.1)
            found: dict[str, Any] = {}
            for name, url in (
                ("vm", f"http://127.0.0.1:{port}/flycheck/vm"),
                ("pg", f"http://127.0.0.1:{port}/flycheck/pg"),
                ("role", f"http://127.0.0.1:{port}/flycheck/role"),
                ("metrics", f"http://127.0.0.1:{metrics_port}/metrics"),
            ):
                begun = time.perf_counter()
                status, _ = fetch(url)
                found[name] = {"status": status, "s": round(time.perf_counter() - begun, 3)}
            return found
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)


def fill(pair: Pair, databases: int, tables: int) -> None:
    each = tables // databases
    for number in range(databases):
        name = f"db{number}"
        pair.primary.sql(f"CREATE DATABASE {name} STRATEGY file_copy")
        with pair.primary.connect(name) as session:
            session.execute(";".join(f"CREATE TABLE t{n} (id int)" for n in range(each)).encode())


def timed_scrapes(url: str, count: int) -> dict[str, Any]:
    times, size = [], 0
    for _ in range(count):
        begun = time.perf_counter()
        status, body = fetch(url)
        assert status == 200, body[:500]
        times.append(time.perf_counter() - begun)
        size = len(body)
    return {
        "bytes": size,
        "series": sum(1 for line in body.splitlines() if not line.startswith(b"#")),
        **quantiles(times),
    }


def table_queries() -> str:
    """A query file with which the exporter has the same series per table as we have. JSON is YAML too."""
    usages = [{name: {"usage": "LABEL", "description": name}} for name in TABLES.labels]
    usages += [{c.name: {"usage": c.type.upper(), "description": c.help}} for c in TABLES.columns]
    query = TABLES_SQL.replace("{limit}", "100000").strip()
    return json.dumps({TABLES.prefix: {"query": query, "metrics": usages}})


@contextmanager
def exporter(pair: Pair, tables: bool) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    assert EXPORTER is not None
    port = free_ports(1)[0]
    env = {
        "DATA_SOURCE_NAME": f"postgresql://postgres@127.0.0.1:{pair.primary.port}/postgres?sslmode=disable",
        "PG_EXPORTER_AUTO_DISCOVER_DATABASES": "true",
        "PATH": os.defpath,
    }
    arguments = [f"--web.listen-address=127.0.0.1:{port}"]
    if tables:
        queries = pair.primary.root / "queries.yaml"
        queries.write_text(table_queries())
        arguments.append(f"--extend.query-path={queries}")
    process = subprocess.Popen([EXPORTER, *arguments], env=env, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/metrics"
    try:
        until(lambda: b"pg_up 1" in fetch(url)[1], "the exporter does not answer")
        yield process, url
    finally:
        process.terminate()
        process.wait(10)


def scrapes(pair: Pair, count: int, tables: bool) -> dict[str, Any]:
    """The same database server, scraped by us and by the exporter in turn."""
    found: dict[str, Any] = {}
    with server(pair.primary.conninfo, tables=tables) as (process, port, metrics_port):
        fetch(f"http://127.0.0.1:{port}/flycheck/pg")
        url = f"http://127.0.0.1:{metrics_port}/metrics"
        idle_mb, cpu = rss_mb(process.pid), cpu_s(process.pid)
        fetch(url)
        if tables:
            until(lambda: b"pg_stat_user_tables_n_live_tup" in fetch(url)[1], "no tables yet")
        found["flypg"] = timed_scrapes(url, count)
        rows = pair.primary.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}")
        found["flypg"] |= {
            "added_mb": round(rss_mb(process.pid) - idle_mb, 1),
            "connections": rows[0][0],
            "cpu_ms_per_scrape": round(1000 * (cpu_s(process.pid) - cpu) / count, 1),
        }
    if EXPORTER is None:
        return found | {"exporter": "Debian's prometheus-postgres-exporter is not installed"}
    with exporter(pair, tables) as (process, url):
        cpu = cpu_s(process.pid)
        found["exporter"] = timed_scrapes(url, count)
        rows = pair.primary.sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        found["exporter"] |= {
            "rss_mb": round(rss_mb(process.pid), 1),
            "connections": int(rows[0][0]) - 1,
            "cpu_ms_per_scrape": round(1000 * (cpu_s(process.pid) - cpu) / count, 1),
        }
    found["times_the_exporter"] = round(found["flypg"]["p50_ms"] / found["exporter"]["p50_ms"], 2)
    return found


async def measure(only: str, seconds: float, databases: int, tables: int, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"load_before": os.getloadavg()[0], "cpus": os.cpu_count()}
    with running_pair() as pair:
        if only in ("", "probes"):
            found["probes"] = await probes(pair, seconds)
        if only in ("", "stopped"):
            found["stopped"] = stopped(pair)
        if only not in ("", "scrapes"):
            return found
        fill(pair, databases, tables)
        found["scrapes"] = {
            "databases": databases,
            "tables": tables,
            "as_by_default": scrapes(pair, count, tables=False),
            "with_tables": scrapes(pair, count, tables=True),
        }
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("serve", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("probes", "stopped", "scrapes"), default="", help="only this part")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to probe (10)")
    parser.add_argument("--databases", type=int, default=50)
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--scrapes", type=int, default=20)
    given = parser.parse_args()
    if given.serve:
        _, conninfo, port, metrics_port, standby, tables = given.serve
        asyncio.run(serve(conninfo, int(port), int(metrics_port), standby == "1", tables == "1"))
    found = measure(given.only, given.seconds, given.databases, given.tables, given.scrapes)
    print(json.dumps(asyncio.run(found), indent=1))


if __name__ == "__main__":
    main()
