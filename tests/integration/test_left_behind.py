"""An old primary that comes back so late that the others have forgotten where they parted."""

from __future__ import annotations

import signal

from chaos import processes
from chaos.inspection import judge_servers, patiently
from chaos.places import Node
from chaos.testbed import Plan, Testbed
from tests.support.drills import testbed

FORGETFUL = tuple(
    f"parameters.{name}"
    for name in ("wal_keep_size=0", "max_slot_wal_keep_size=32MB", "max_wal_size=48MB", "min_wal_size=32MB")
)


def sql(node: Node, *statements: str) -> list[tuple[str, ...]]:
    wire = patiently(node)
    try:
        for statement in statements:
            rows = wire.execute(statement, timeout_s=60)
        return rows
    finally:
        wire.close()


def write_alone(bed: Testbed) -> None:
    """More on the primary than its standbys can have received: they sleep, and no socket holds so much."""
    asleep = [process for standby in bed.standbys for process in standby.postgres()]
    processes.send(asleep, signal.SIGSTOP)
    try:
        emit = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000)) FROM generate_series(1, 30)"
        sql(bed.primary, "SET synchronous_commit = local", emit, "SELECT pg_switch_wal()")
        bed.primary.kill()
    finally:
        processes.send(asleep, signal.SIGCONT)


def test_whoever_comes_back_when_the_wal_from_the_fork_on_is_gone_is_copied() -> None:
    """It can be rewound, and then waits for WAL that nobody has: before that it lets nobody in who could tell."""
    with testbed(Plan(nodes=3, etcd=1, spec=FORGETFUL)) as bed:
        old = bed.primary
        write_alone(bed)
        bed.wait_healthy(60, [node.name for node in bed.nodes.values() if node is not old])
        new = bed.primary
        assert new is not old
        for _ in range(12):
            sql(new, "SELECT pg_logical_emit_message(false, 'test', 'next')", "SELECT pg_switch_wal()", "CHECKPOINT")
        old.start()
        bed.wait_healthy(120)
        verdicts = judge_servers(bed, list(bed.nodes.values()))
        assert all(v.ok is not False for v in verdicts), verdicts
