"""A node for tests of the HTTP server: real connections to a real PostgreSQL, and a state that a test can set."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from cluster.clock import Clock, SystemClock
from cluster.errors import PostgresUnavailable, StoreConflict
from cluster.model import (
    Event,
    Leadership,
    Member,
    NodeId,
    NodeReport,
    Phase,
    Ports,
    Position,
    Request,
    Rule,
    ServerState,
    Snapshot,
    Spec,
    Upstream,
    View,
)
from cluster.store import OperatorStore
from healthchecks.certificate import CertificateStats
from healthchecks.provider import BackupStats, FenceState, OperationStats, PoolerStats, StoreStats
from postgres.instance import Data, InstanceState, Run, Walsender
from postgres.monitor import Connection

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")


def member(node: NodeId, **more: Any) -> Member:
    return Member(node, host="127.0.0.1", ports=Ports(postgres=5433), region="ams", **more)


def report(node: NodeId, state: ServerState, lsn: int = 0x3000060, timeline: int = 3, **more: Any) -> NodeReport:
    return NodeReport(member(node), run="run", state=state, term=3, position=Position(timeline, lsn), **more)


def open_snapshot(primary: NodeId = N1, standbys: tuple[NodeId, ...] = (N2, N3), **more: Any) -> Snapshot:
    """A healthy cluster in term 3: `primary` with `standbys` that stream and vote."""
    rule = Rule(3, primary, frozenset(standbys), 1 if standbys else 0)
    view = View(
        term=3,
        phase=Phase.OPEN,
        primary=primary,
        timeline=3,
        rules=(rule,),
        members=tuple(member(node) for node in sorted((primary, *standbys))),
        cause="postmaster of n2 died",
        why="n1 has passed its barrier",
    )
    reports = {node: report(node, ServerState.STANDBY, streaming=True) for node in standbys}
    reports[primary] = report(primary, ServerState.PRIMARY, applied=rule, barrier_term=3)
    leader = Leadership("n2", 5)
    return replace(Snapshot(9, view, 8, Spec(), 2, reports=reports, leader=leader), **more)


def primary_instance(**more: Any) -> InstanceState:
    state = InstanceState(
        Data.PRESENT, Run.UP, in_recovery=False, position=Position(3, 0x3000060), gate_open=True, server_version=150018
    )
    return replace(state, **more)


def standby_instance(upstream: NodeId = N1, **more: Any) -> InstanceState:
    return replace(
        primary_instance(),
        in_recovery=True,
        replayed=0x3000060,
        upstream=Upstream(upstream, "127.0.0.1", 5433, 3),
        receiver=True,
        streaming=True,
        **more,
    )


@dataclass
class MemoryStore:
    """What commands need of a store, in memory. `answer` decides how a request is answered; "" leaves it open."""

    node: TestNode
    spec: Spec = field(default_factory=Spec)
    spec_revision: int = 2
    events: list[Event] = field(default_factory=list)
    requests: dict[str, Request] = field(default_factory=dict)
    answer: str = "done: n2 is primary"
    conflicts: int = 0  # so many writes lose against somebody else

    async def read(self) -> Snapshot:
        snapshot = self.node.current or open_snapshot()
        return replace(snapshot, spec=self.spec, spec_revision=self.spec_revision)

    async def put_spec(self, spec: Spec, *, read_at: int, events: tuple[Event, ...] = ()) -> None:
        if self.conflicts:
            self.conflicts -= 1
            self.spec_revision += 1
        if read_at != self.spec_revision:
            raise StoreConflict("the spec changed")
        self.spec, self.spec_revision = spec, self.spec_revision + 1
        self.events += events

    async def add_request(self, request: Request) -> None:
        self.requests[request.id] = replace(request, outcome=self.answer)

    async def read_request(self, request: str) -> Request | None:
        return self.requests.get(request)

    async def read_events(self, last: int) -> list[Event]:
        return self.events[-last:]


class TestNode:
    """A Provider whose PostgreSQL is real (`conninfo`) and whose knowledge a test sets."""

    __test__ = False

    def __init__(self, conninfo: str, primary_conninfo: str | None = None) -> None:
        self.conninfo = conninfo
        self.primary_conninfo = primary_conninfo or conninfo
        self.me = N1
        self.current: Snapshot | None = open_snapshot()
        self.local: InstanceState | None = primary_instance()
        self.snapshot_age = 0.5
        self.local_age = 0.2
        self.authority = float("inf")
        self.trouble = ""
        self.memory = MemoryStore(self)
        self.backups: BackupStats | None = None
        self.pools: PoolerStats | None = None
        self.certificates: CertificateStats | None = None
        self.restarts = 0
        self.opened = 0
        self.system_clock = SystemClock()

    @property
    def clock(self) -> Clock:
        return self.system_clock

    def node(self) -> NodeId:
        return self.me

    def cluster(self) -> str:
        return "test"

    def member(self) -> Member:
        return member(self.me)

    def snapshot(self) -> Snapshot | None:
        return self.current

    def snapshot_age_s(self) -> float:
        return self.snapshot_age

    def instance(self) -> InstanceState | None:
        return self.local

    def instance_age_s(self) -> float:
        return self.local_age

    def authority_until(self) -> float:
        return self.authority

    def problem(self) -> str:
        return self.trouble

    def fence(self) -> FenceState | None:
        return FenceState(alive=True, margin_s=4.5)

    def store_stats(self) -> StoreStats:
        return StoreStats({"read": OperationStats(10, 1, 0.02)}, contact_age_s=0.4, lease_age_s=1.0, lease_ttl_s=10.0)

    def backup_stats(self) -> BackupStats | None:
        return self.backups

    def pool_stats(self) -> PoolerStats | None:
        return self.pools

    def certificate(self) -> CertificateStats | None:
        return self.certificates

    def store(self) -> OperatorStore:
        return self.memory

    async def connect(self, database: str) -> Connection:
        self.opened += 1
        return await self._connect(self.conninfo, database)

    async def connect_primary(self, database: str) -> Connection:
        return await self._connect(self.primary_conninfo, database)

    def drills(self) -> None:
        return None

    async def restart_routing(self) -> None:
        self.restarts += 1

    async def _connect(self, conninfo: str, database: str) -> Connection:
        try:
            return await psycopg.AsyncConnection.connect(conninfo, dbname=database, autocommit=True)
        except psycopg.Error as error:
            raise PostgresUnavailable(str(error)) from error


def walsender(name: str = "n2_t3", lag_s: float | None = 0.001) -> Walsender:
    return Walsender(name, "streaming", "quorum", flushed=0x3000000, lag_s=lag_s)


async def eventually(check: Any, timeout_s: float = 30.0) -> Any:
    """The first true answer of `check`, asked again and again. Fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = check()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"{check} did not come true within {timeout_s:g} s"
        await asyncio.sleep(0.05)
