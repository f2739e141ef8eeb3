"""What flypg costs: idle, and on the way of a query through port 5432."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from chaos.places import Node
from chaos.ports import free_ports
from chaos.processes import Process
from chaos.target import Target, TestbedError
from chaos.wire import listening

PLAIN = """\
global
    maxconn 2000
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
listen plain
    bind 127.0.0.1:{port}
    server primary {address}:{server}
"""
TPS = re.compile(r"tps = ([0-9.]+)")


def parts(node: Node) -> dict[str, list[Process]]:
    """A node's processes by what they are; PostgreSQL is counted apart."""
    server = {p.pid for p in node.postgres()}
    found: dict[str, list[Process]] = {"agent": [], "fence": [], "haproxy": [], "pgbouncer": [], "postgres": []}
    for process in node.all():
        words = [Path(word).name for word in process.argv[:5]]
        kind = next((k for k in ("haproxy", "pgbouncer") if k in words[:1]), "")
        if process.pid in server:
            kind = "postgres"
        elif "fence_process.py" in words:
            kind = "fence"
        elif not kind and "python" in words[0]:
            kind = "agent"
        if kind:
            found[kind].append(process)
    return found


def idle(target: Target, *, for_s: float) -> dict[str, object]:
    """Watch a healthy cluster doing nothing: per node and program, and etcd's writes."""
    before = {name: parts(node) for name, node in target.nodes.items()}
    raft, began = _raft(target), time.monotonic()
    time.sleep(for_s)
    minutes = (time.monotonic() - began) / 60
    after = {name: parts(node) for name, node in target.nodes.items()}
    nodes: dict[str, object] = {}
    for name, kinds in after.items():
        role = "primary" if name == target.primary.name else "standby"
        nodes[name] = {"role": role} | {
            kind: {
                "cpu_s_per_minute": round(_used(before[name][kind], found) / minutes, 3),
                "rss_mb": round(sum(p.rss_bytes for p in found) / 2**20, 1),
            }
            for kind, found in kinds.items()
        }
    index, revision = (b - a for a, b in zip(raft, _raft(target), strict=True))
    return {
        "seconds": round(minutes * 60, 1),
        "nodes": nodes,
        "etcd_raft_entries_per_minute": round(index / minutes, 1),
        "etcd_writes_per_minute": round(revision / minutes, 1),
    }


def _used(before: list[Process], after: list[Process]) -> float:
    then = {(p.pid, p.started): p.cpu_s for p in before}
    return sum(p.cpu_s - then.get((p.pid, p.started), 0.0) for p in after)


def _raft(target: Target) -> tuple[int, int]:
    """etcd's raft index (every entry, renewals of leases too) and its revision (writes of keys only)."""
    text = target.etcdctl("endpoint", "status", "-w", "json", endpoint=target.endpoints[0])
    if not text:
        raise TestbedError("etcd does not tell its status")
    status = json.loads(text)[0]["Status"]
    return int(status["raftIndex"]), int(status["header"]["revision"])


def program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return str(found[0]) if found else name


def pgbench(node: Node, port: int, *arguments: str, host: str = "", more: Mapping[str, str] | None = None) -> str:
    """What pgbench prints. `more`: for its environment. Raises TestbedError when it fails."""
    env = {**os.environ, "PGPASSWORD": node.password, "PGSSLMODE": "disable", **(more or {})}
    command = [program("pgbench"), "-h", host or node.address, "-p", str(port), "-U", "postgres", *arguments]
    done = subprocess.run(
        [*command, "postgres"], env=env, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise TestbedError(f"pgbench: {done.stderr.strip()[-300:]}")
    return done.stdout


def tps(printed: str) -> float:
    """Transactions a second, from what pgbench prints; it prints none when not a single one was done."""
    match = TPS.search(printed)
    return float(match[1]) if match is not None else 0.0


@contextmanager
def _plain_haproxy(node: Node) -> Iterator[int]:
    """The simplest HAProxy in front of a node's server; its port."""
    (port,) = free_ports(1)
    with TemporaryDirectory(prefix="fpplain") as directory:
        config = Path(directory) / "haproxy.cfg"
        config.write_text(PLAIN.format(port=port, address=node.address, server=node.ports.postgres))
        with subprocess.Popen(["haproxy", "-db", "-f", str(config)], stdin=subprocess.DEVNULL) as process:
            try:
                until = time.monotonic() + 10
                while not listening("127.0.0.1", port):
                    if time.monotonic() > until or process.poll() is not None:
                        raise TestbedError("a plain HAProxy does not start")
                    time.sleep(0.05)
                yield port
            finally:
                process.terminate()


def throughput(target: Target, *, rounds: int, for_s: int, say: Callable[[str], None]) -> dict[str, object]:
    """pgbench -S through our 5432, a plain HAProxy, and straight, by turns; medians of transactions a second."""
    node = target.primary
    pgbench(node, node.ports.postgres, "-i", "-q", "-s", "5")
    answer: dict[str, object] = {}
    with _plain_haproxy(node) as plain:
        ways = {
            "flypg": (node.address, node.ports.proxy),
            "haproxy": ("127.0.0.1", plain),
            "direct": (node.address, node.ports.postgres),
        }
        for clients in (8, 50):
            seen: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(rounds):
                for way, (host, port) in ways.items():
                    out = pgbench(node, port, "-S", "-c", str(clients), "-j", "2", "-T", str(for_s), host=host)
                    seen[way].append(tps(out))
                say(f"pgbench, {clients} clients, round {number + 1} of {rounds}")
            medians = {way: statistics.median(rates) for way, rates in seen.items()}
            answer[f"{clients}_clients"] = {
                **{f"{way}_tps": round(rate) for way, rate in medians.items()},
                "flypg_to_haproxy": round(medians["flypg"] / medians["haproxy"], 3),
                "flypg_to_direct": round(medians["flypg"] / medians["direct"], 3),
            }
    return answer
