"""Clients who do harm without breaking anything: too many connections, and transactions that standbys must wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

from chaos.inspection import patiently
from chaos.places import Node
from chaos.target import Target, TestbedError
from chaos.wire import Wire, WireError, connect

Undo = Callable[[], None]
MANY = 2000  # more than any node allows
TABLE = "flypg_conflict"


def crowd(target: Target, node: Node) -> Undo:
    """Take every connection that the node's PostgreSQL has to give, those kept for superusers too."""
    taken: list[Wire] = []
    try:
        while len(taken) < MANY:
            taken.append(connect(node.direct, timeout_s=10))
    except WireError:
        pass  # that was it
    if len(taken) == MANY:
        _close(taken)
        raise TestbedError(f"{node.name} still takes connections after {MANY}")
    return lambda: _close(taken)


def _close(wires: list[Wire]) -> None:
    for wire in wires:
        wire.close()


def conflict(target: Target, node: Node) -> Undo:
    """Readers on every standby hold a table that the primary drops, so that replay waits for them; then the primary is
    killed. Its successor must not wait for the readers any longer."""
    _sql(node, f"DROP TABLE IF EXISTS {TABLE}", f"CREATE TABLE {TABLE} AS SELECT generate_series(1, 1000) AS id")
    readers = [_reader(standby) for standby in target.standbys]
    _sql(node, f"DROP TABLE {TABLE}")
    time.sleep(0.3)  # the standbys have it, and wait
    node.kill()

    def undo() -> None:
        _close(readers)
        if not node.running:
            node.start()

    return undo


def _sql(node: Node, *statements: str) -> None:
    wire = patiently(node)
    try:
        for statement in statements:
            wire.execute(statement, timeout_s=20)
    finally:
        wire.close()


def _reader(node: Node) -> Wire:
    """A transaction that has read the table and stays open."""
    until = time.monotonic() + 20
    while True:
        wire = patiently(node)
        try:
            wire.execute("BEGIN ISOLATION LEVEL REPEATABLE READ", timeout_s=5)
            wire.execute(f"SELECT count(*) FROM {TABLE}", timeout_s=5)
        except WireError as error:  # it is not there yet
            wire.close()
            if time.monotonic() > until:
                raise TestbedError(f"{TABLE} never came to {node.name}: {error}") from error
            time.sleep(0.1)
        else:
            return wire
