"""What the servers of a cluster say once everything is mended: contents, histories, damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from chaos.checkers.convergence import converged, differing
from chaos.checkers.primaries import Switch, one_line, parse_history
from chaos.history import Verdict
from chaos.places import Node
from chaos.target import Target
from chaos.wire import Wire, WireError, connect
from chaos.writer import TABLE

TIMELINE = (
    "SELECT coalesce((SELECT received_tli FROM pg_stat_wal_receiver),"
    " CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())"
    " ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END)"
)
HISTORY = (
    "SELECT coalesce(pg_read_file(format('pg_wal/%s.history', lpad(upper(to_hex($1::int)), 8, '0')), 0, 99999, true),"
    " '')"
)
TABLES = (
    "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables"
    " WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"
)
ROWS = f"SELECT id FROM {TABLE}"
LOOKS = 3  # at contents that differ: what a client that has gone had begun may only end now
AGAIN_S = 2.0
SHOWN = 5  # rows that differ


def patiently(node: Node, timeout_s: float = 20.0) -> Wire:
    """A connection straight to a node's server. Raises WireError when it gives none within `timeout_s`."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return connect(node.direct, timeout_s=3)
        except WireError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _caught_up(wire: Wire, lsn: str, timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        ((there,),) = wire.execute("SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", [lsn], timeout_s=5)
        if there == "t":
            return
        time.sleep(0.05)
    raise WireError(f"it has not replayed up to {lsn} within {timeout_s:g} s", sent=False)


def rows(node: Node) -> list[int]:
    """The ids in the probe's table on one node."""
    wire = patiently(node)
    try:
        return [int(number) for (number,) in wire.execute(ROWS, timeout_s=60)]
    finally:
        wire.close()


def contents(node: Node, *, at_least: str | None) -> dict[str, str]:
    """A checksum per table, on a standby once it has replayed up to the LSN `at_least`."""
    wire = patiently(node)
    try:
        if at_least is not None:
            _caught_up(wire, at_least)
        sums = {}
        for (table,) in wire.execute(TABLES, timeout_s=10):
            query = f"SELECT count(*), coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '') FROM {table} t"
            ((count, digest),) = wire.execute(query, timeout_s=60)
            sums[table] = f"{count} {digest}"
        return sums
    finally:
        wire.close()


def rows_that_differ(nodes: Sequence[Node], table: str) -> str:
    """Which rows of a table only some of the nodes have."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        wire = patiently(node)
        try:
            for (row,) in wire.execute(f"SELECT t::text FROM {table} t", timeout_s=60):
                found.setdefault(row, []).append(node.name)
        finally:
            wire.close()
    odd = sorted((row, where) for row, where in found.items() if len(where) < len(nodes))
    return f"{len(odd)} rows: " + "; ".join(f"{row[:80]} only on {', '.join(where)}" for row, where in odd[:SHOWN])


def history(node: Node) -> tuple[int, tuple[Switch, ...]]:
    """The node's timeline and how it came to it."""
    wire = patiently(node)
    try:
        ((timeline,),) = wire.execute(TIMELINE, timeout_s=10)
        ((text,),) = wire.execute(HISTORY, [timeline], timeout_s=10)
        return int(timeline), parse_history(text)
    finally:
        wire.close()


def current_lsn(primary: Node) -> str:
    wire = patiently(primary)
    try:
        ((lsn,),) = wire.execute("SELECT pg_current_wal_flush_lsn()", timeout_s=10)
        return lsn
    finally:
        wire.close()


def pg_amcheck(primary: Node) -> str | None:
    """The program, if it is here and the server has its extension."""
    wire = patiently(primary)
    try:
        if not wire.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'", timeout_s=10):
            return None
    finally:
        wire.close()
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_amcheck"), reverse=True)
    return str(found[0]) if found else shutil.which("pg_amcheck")


def damage(node: Node, program: str, *, install: bool) -> str:
    """What pg_amcheck finds on one node; "" when nothing. The password goes through the environment."""
    env = {**os.environ, "PGPASSWORD": node.password, "PGSSLMODE": node.sslmode}
    command = [program, "-h", node.address, "-p", str(node.ports.postgres), "-U", "postgres", "-d", node.database]
    if install:
        command.append("--install-missing")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    if done.returncode == 0:
        return ""
    return (done.stdout + done.stderr).strip()[-300:]


def judge_servers(target: Target, nodes: Iterable[Node]) -> list[Verdict]:
    """Do all nodes hold the same, undamaged, on one line of timelines? The cluster must be at rest."""
    told = list(nodes)
    primary = target.primary
    try:
        program = pg_amcheck(primary)
        broken: dict[str, str] = {}
        if program is not None:
            broken[primary.name] = damage(primary, program, install=True)
        for _ in range(LOOKS):
            lsn = current_lsn(primary)
            sums = {node.name: contents(node, at_least=None if node is primary else lsn) for node in told}
            if not (tables := differing(sums)):
                break
            time.sleep(AGAIN_S)
        if program is not None:
            broken |= {node.name: damage(node, program, install=False) for node in told if node is not primary}
        verdict = converged(sums, broken)
        if tables:
            verdict = replace(verdict, text=f"{verdict.text}, at {LOOKS} looks: {rows_that_differ(told, tables[0])}")
        if program is None:
            verdict = Verdict(
                verdict.checker, verdict.ok, f"{verdict.text} (without pg_amcheck, which this server has not)"
            )
        return [verdict, one_line({node.name: history(node) for node in told})]
    except WireError as error:
        return [Verdict("convergence", False, f"a node cannot be read: {error}")]
