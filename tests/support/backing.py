"""An agent's backups beside real servers, without the rest of the agent: the agreed state is made up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backups.facts import NodeFacts
from backups.notes import Notes
from backups.service import BackupService
from cluster.clock import SystemClock
from cluster.etcd import Etcd
from cluster.etcd_store import EtcdStore
from cluster.model import (
    Member,
    NodeId,
    NodeReport,
    Phase,
    ServerState,
    Snapshot,
    Spec,
    StandbySeen,
    View,
    lone_rule,
)
from tests.support.archive import OWNER
from tests.support.etcd import BIN as ETCD
from tests.support.etcd import TestEtcd
from tests.support.pgserver import BIN, PgServer

N1, N2 = NodeId("n1"), NodeId("n2")
PATIENCE_S = 90.0
CODE = str(Path(__file__).resolve().parents[2])
NEEDS = [
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
    pytest.mark.skipif(ETCD is None, reason="there is no etcd on this machine"),
]


@asynccontextmanager
async def notes(etcd: TestEtcd, cluster: str) -> AsyncIterator[Notes]:
    client = Etcd(etcd.options())
    try:
        yield Notes(client, cluster)
    finally:
        await client.close()


async def events(etcd: TestEtcd, cluster: str) -> list[str]:
    """What was told of backups."""
    client = Etcd(etcd.options())
    try:
        found = await EtcdStore(client, cluster, N1, clock=SystemClock()).read_events(50)
    finally:
        await client.close()
    return [e.text for e in found if e.kind == "backup"]


@asynccontextmanager
async def running(service: BackupService) -> AsyncIterator[BackupService]:
    """The service at work, as in an agent that is stopped in order after the block."""
    task = asyncio.create_task(service.run())
    try:
        yield service
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await service.stop()


def facts(server: PgServer, cluster: str, node: NodeId = N1) -> NodeFacts:
    user = "postgres" if OWNER else None
    return NodeFacts(node, cluster, server.root, server.data, server.sockets, server.port, user, str(BIN))


def settings(server: PgServer, **more: str) -> dict[str, str]:
    """`server`: beside whose data the repository lies."""
    return {
        "FLYPG_SNAPSHOT_URL": f"file://{server.root}/repository",
        "FLYPG_SNAPSHOT_FIRST_AFTER_S": "0",
        "FLYPG_SNAPSHOT_MIN_FREE_PERCENT": "0",
        "FLYPG_SNAPSHOT_SHARED": "true",
        **more,
    }


def alone(system_id: str, timeline: int = 1, primary: NodeId = N1) -> Snapshot:
    """A cluster of one open primary."""
    view = View(timeline, Phase.OPEN, primary, timeline, (lone_rule(timeline, primary),), system_id=system_id)
    report = NodeReport(Member(primary, "127.0.0.1"), "r", ServerState.PRIMARY)
    return Snapshot(1, view, 1, Spec(), 1, {primary: report})


def with_standby(system_id: str) -> Snapshot:
    """n1 is primary, and n2 a standby that has caught up."""
    state = alone(system_id)
    report = NodeReport(Member(N1, "127.0.0.1"), "r", ServerState.PRIMARY, standbys=(StandbySeen(N2, caught_up=True),))
    standby = NodeReport(Member(N2, "127.0.0.1"), "r", ServerState.STANDBY, following=N1, streaming=True)
    return Snapshot(1, state.view, 1, Spec(), 1, {N1: report, N2: standby})


async def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.1)
