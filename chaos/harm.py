"""Harm to a data directory: a page is damaged, or all of it is gone. Found by reading, healed by a fresh copy."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from chaos import processes
from chaos.inspection import damage, patiently, pg_amcheck
from chaos.places import Node
from chaos.target import Target, TestbedError
from chaos.wire import WireError

Undo = Callable[[], None]
TABLE = "flypg_damaged"
ROWS = 400_000  # more than a bulk write leaves in memory: the first pages are read from disk
PAGE, HURT = 8192, 3  # bytes of a page; which page of the table is damaged
READ = f"SELECT sum(length(t.filler)) FROM {TABLE} t"
WRONG_CHECKSUM = "XX001"
HEALED_S = 90.0


def lose_data(target: Target, node: Node) -> Undo:
    """The node dies and its data directory is gone."""
    node.kill()
    shutil.rmtree(node.pgdata)

    def undo() -> None:
        if not node.running:
            node.start()

    return undo


def corrupt(target: Target, node: Node) -> Undo:
    """Overwrite a page of a table on the node's disk; reading it must fail, and pg_amcheck must name it. The undo heals
    it as an operator does: another primary if it was the primary's, then a fresh copy."""
    path = _table(target.primary, node)
    if node is not target.primary:
        processes.send(node.postgres(), signal.SIGKILL)  # what it has in memory is not read from disk
        time.sleep(0.5)
        target.wait_healthy(60)
    with path.open("r+b") as file:
        file.seek(PAGE * HURT + 100)
        file.write(os.urandom(64))
        os.fsync(file.fileno())
    if not (found := _damaged(node)).startswith(WRONG_CHECKSUM):
        raise TestbedError(f"{node.name} answered {found or 'as if nothing had happened'} to a read of a damaged page")
    program = pg_amcheck(target.primary)
    if program is not None:
        damage(target.primary, program, install=True)
        if not damage(node, program, install=False):
            raise TestbedError(f"pg_amcheck found no damage on {node.name}")
    return lambda: _heal(target, node)


def _table(primary: Node, node: Node) -> Path:
    """A table that is on the node's disk and will not be written again; its file there."""
    wire = patiently(primary)
    try:
        wire.execute(f"DROP TABLE IF EXISTS {TABLE}", timeout_s=20)
        fill = f"SELECT i AS id, repeat('x', 80) AS filler FROM generate_series(1, {ROWS}) i"
        wire.execute(f"CREATE TABLE {TABLE} AS {fill}", timeout_s=60)
        wire.execute(f"VACUUM FREEZE {TABLE}", timeout_s=60)  # later reads set no hint bits
        wire.execute("CHECKPOINT", timeout_s=60)
        ((name,),) = wire.execute(f"SELECT pg_relation_filepath('{TABLE}')", timeout_s=20)
        ((lsn,),) = wire.execute("SELECT pg_current_wal_flush_lsn()", timeout_s=20)
    finally:
        wire.close()
    if node is not primary:
        wire = patiently(node)
        try:
            until = time.monotonic() + 30
            behind = "SELECT pg_last_wal_replay_lsn() < $1::pg_lsn"
            while wire.execute(behind, [lsn], timeout_s=5) == [("t",)] and time.monotonic() < until:
                time.sleep(0.1)
            wire.execute("CHECKPOINT", timeout_s=60)  # a restart point: nothing before it is replayed again
        finally:
            wire.close()
    return node.pgdata / name


def _damaged(node: Node) -> str:
    """What the node says when the table is read; "" when all is well."""
    try:
        wire = patiently(node)
        try:
            wire.execute(READ, timeout_s=30)
        finally:
            wire.close()
    except WireError as error:
        return f"{error.sqlstate} {error}"
    return ""


def _heal(target: Target, node: Node) -> None:
    if node is target.primary:
        target.switchover()
        target.wait_healthy(60)
    target.flypg("node", "reclone", node.name, "--yes")
    until = time.monotonic() + HEALED_S
    while found := _damaged(node):
        if time.monotonic() > until:
            raise TestbedError(f"{node.name} was not healed by a fresh copy: {found}")
        time.sleep(0.2)
    wire = patiently(target.primary)
    try:
        wire.execute(f"DROP TABLE {TABLE}", timeout_s=20)
    finally:
        wire.close()
