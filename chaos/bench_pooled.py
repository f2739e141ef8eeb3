"""What clients of the pooler see of a change of primary, and what the pooler gives: beside plain PgBouncer and none."""

from __future__ import annotations

import os
import pwd
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from chaos.bench import pgbench, tps
from chaos.faults import FAULTS
from chaos.inspection import patiently
from chaos.keys import kept_keys
from chaos.places import Node
from chaos.pooled import SCHEMA, PooledLoad, Told, judge
from chaos.ports import free_ports
from chaos.target import Target, TestbedError
from chaos.wire import listening

CLIENTS = 50
CALM_S = 1.0  # before an event
PATIENCE_S = 60.0
PLAIN = """\
[databases]
* = host={address} port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory}/users.txt
pool_mode = transaction
default_pool_size = 40
max_client_conn = 500
server_tls_sslmode = {tls}
log_connections = 0
log_disconnections = 0
"""

Say = Callable[[str], None]


def pooled(target: Target, *, rounds: int, for_s: int, say: Say) -> dict[str, object]:
    """All rows: changes of primary first, then rates."""
    return {
        "switchover_transaction": changes(target, "switchover", "transaction", rounds=rounds, pause_s=0.02, say=say),
        "switchover_session_idle": changes(target, "switchover", "session", rounds=rounds, pause_s=0.02, say=say),
        "kill_postmaster_transaction": changes(
            target, "kill-postmaster", "transaction", rounds=max(2, rounds // 2), pause_s=0.02, say=say
        ),
        **rates(target, rounds=3, for_s=for_s, say=say),
    }


# --- changes of primary -------------------------------------------------------------------------------------------


def changes(target: Target, event: str, mode: str, *, rounds: int, pause_s: float, say: Say) -> dict[str, object]:
    """Let the primary change again and again under pooled clients. Those of session mode keep no connection between
    statements: PgBouncer ties a session to one connection of the server, which ends with it."""
    _mode(target, mode)
    wire = patiently(target.primary)
    try:
        for statement in SCHEMA:
            wire.execute(statement, timeout_s=20)
    finally:
        wire.close()
    poolers = [node.conninfo(node.ports.pooler) for node in target.nodes.values()]
    with tempfile.TemporaryDirectory(prefix="fppooled") as directory:
        load = PooledLoad(poolers, Path(directory), clients=CLIENTS, pause_s=pause_s, leave=mode == "session")
        events: list[tuple[float, float, float | None]] = []
        refused = 0
        try:
            _settled(load)
            for number in range(rounds):
                time.sleep(CALM_S)
                began = time.monotonic()
                if event == "switchover":
                    refused += target.flypg("switchover", check=False).returncode != 0
                else:
                    FAULTS[event].begin(target, target.primary)
                _settled(load)
                target.wait_healthy(PATIENCE_S)
                events.append((began, time.monotonic(), began if event != "switchover" else None))
                say(f"pooled, {mode} mode: {event} {number + 1} of {rounds}")
        finally:
            ops = load.stop()
    told = [judge(ops, since=began - 0.2, until=ended, at=at) for began, ended, at in events]
    return summed(told) | {"refused": refused}


def summed(told: list[Told]) -> dict[str, object]:
    """One row from what clients saw of each event. Pure."""
    texts: dict[str, int] = {}
    for each in told:
        for text, count in each.texts.items():
            texts[text] = texts.get(text, 0) + count
    return {
        "rounds": len(told),
        "statements": sum(t.ops for t in told),
        "errors": sum(t.errors for t in told),
        "in_flight": sum(t.in_flight for t in told),
        "stall_median_s": round(statistics.median(t.stall_s for t in told), 3) if told else None,
        "stall_worst_s": max((t.stall_s for t in told), default=None),
        "errors_by_text": dict(sorted(texts.items(), key=lambda item: -item[1])),
        "each": [asdict(t) for t in told],
    }


def _settled(load: PooledLoad) -> None:
    if not load.wait_all(time.monotonic(), PATIENCE_S):
        raise TestbedError(f"pooled clients got no answers for {PATIENCE_S:g} s")


def _mode(target: Target, mode: str) -> None:
    target.flypg("pool", "set", "--mode", mode)
    time.sleep(2.0)  # for the poolers to load it


# --- rates --------------------------------------------------------------------------------------------------------


def rates(target: Target, *, rounds: int, for_s: int, say: Say) -> dict[str, object]:
    """pgbench -S and reconnecting clients: through flypg's pooler, plain PgBouncer (with and without TLS to the
    server), and straight, by turns; medians."""
    _mode(target, "transaction")
    node = target.primary
    pgbench(node, node.ports.postgres, "-i", "-q", "-s", "5")
    with _plain(node, "prefer") as plain, _plain(node, "disable") as bare:
        ways = {
            "flypg": (node.address, node.ports.pooler),
            "pgbouncer": ("127.0.0.1", plain),
            "pgbouncer_without_tls": ("127.0.0.1", bare),
            "direct": (node.address, node.ports.postgres),
        }
        steady = _medians(
            ways,
            rounds,
            lambda host, port: tps(
                pgbench(node, port, "-S", "-c", str(CLIENTS), "-j", "2", "-T", str(for_s), host=host)
            ),
        )
        say("pooled: pgbench -S measured")
        ends = {way: ways[way] for way in ("flypg", "direct")}
        anew = _medians(ends, rounds, lambda host, port: _reconnecting(node, host, port, for_s, {}))
        say("pooled: pgbench -S -C measured")
        with kept_keys(target) as keys:
            kept = _medians(ends, rounds, lambda host, port: _reconnecting(node, host, port, for_s, keys))
        say("pooled: pgbench -S -C with kept SCRAM keys measured")
    return {
        "steady": {f"{way}_tps": round(value) for way, value in steady.items()}
        | {
            "flypg_to_pgbouncer": _ratio(steady["flypg"], steady["pgbouncer"]),
            "flypg_to_pgbouncer_without_tls": _ratio(steady["flypg"], steady["pgbouncer_without_tls"]),
        },
        "reconnecting": {f"{way}_tps": round(value) for way, value in anew.items()}
        | {"flypg_to_direct": _ratio(anew["flypg"], anew["direct"])},
        "reconnecting_with_scram_keys": {f"{way}_tps": round(value) for way, value in kept.items()}
        | {"flypg_to_direct": _ratio(kept["flypg"], kept["direct"])},
    }


def _reconnecting(node: Node, host: str, port: int, for_s: int, more: Mapping[str, str]) -> float:
    return tps(pgbench(node, port, "-S", "-C", "-c", "8", "-j", "2", "-T", str(for_s), host=host, more=more))


def _medians(ways: dict[str, tuple[str, int]], rounds: int, measure: Callable[[str, int], float]) -> dict[str, float]:
    seen: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (host, port) in ways.items():
            seen[way].append(measure(host, port))
    return {way: statistics.median(values) for way, values in seen.items()}


def _ratio(one: float, other: float) -> float | None:
    return round(one / other, 3) if other else None


@contextmanager
def _plain(node: Node, tls: str) -> Iterator[int]:
    """The simplest PgBouncer in front of a node's server; its port."""
    (port,) = free_ports(1)
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="fpplain", dir="/tmp") as name:
        directory = Path(name)
        config = directory / "pgbouncer.ini"
        config.write_text(
            PLAIN.format(port=port, address=node.address, server=node.ports.postgres, directory=directory, tls=tls)
        )
        users = directory / "users.txt"
        users.touch(mode=0o600)
        users.write_text(f'"postgres" "{node.password}"\n')
        if user is not None:
            for path in (directory, config, users):
                os.chown(path, user.pw_uid, user.pw_gid)
        with subprocess.Popen(
            ["pgbouncer", "-q", str(config)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",  # ours may be closed to that user
            user=user.pw_uid if user is not None else None,
            group=user.pw_gid if user is not None else None,
            extra_groups=[] if user is not None else None,
        ) as process:
            try:
                until = time.monotonic() + 10
                while not listening("127.0.0.1", port):
                    if time.monotonic() > until or process.poll() is not None:
                        raise TestbedError("a plain PgBouncer does not start")
                    time.sleep(0.05)
                yield port
            finally:
                process.terminate()
