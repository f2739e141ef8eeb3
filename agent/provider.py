"""What the node's HTTP server may know, from the agent's memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from agent.backup_stats import backup_stats
from agent.fence import Fence
from agent.keeper import Keeper
from agent.reader import SharedStore
from backups.facts import BackupStatus
from cluster.clock import Clock
from cluster.errors import PostgresUnavailable
from cluster.model import Member, NodeId, Snapshot
from cluster.store import OperatorStore
from healthchecks.certificate import CertificateStats
from healthchecks.drills import Drills
from healthchecks.provider import BackupStats, FenceState, OperationStats, PoolerStats, StoreStats
from postgres.config import InstanceConfig
from postgres.connection import Connection, connect_local, connect_remote
from postgres.instance import InstanceState

NEVER = float("inf")
CONNECT_S = 3.0


class NodeProvider:
    """Implements healthchecks.provider.Provider."""

    def __init__(
        self,
        *,
        cluster: str,
        keeper: Keeper,
        store: SharedStore,
        fence: Fence,
        clock: Clock,
        instance: InstanceConfig,
        restart_routing: Callable[[], Awaitable[None]],
        ttl_s: float,
    ) -> None:
        self._cluster = cluster
        self._keeper = keeper
        self._store = store
        self._fence = fence
        self._clock = clock
        self._instance = instance
        self._restart_routing = restart_routing
        self._ttl_s = ttl_s
        self.certificate_stats: Callable[[], CertificateStats | None] = lambda: None
        self.backups: Callable[[], BackupStatus] | None = None  # None until they are wired
        self.switched_on: Drills | None = None
        self.programs: Callable[[], Iterable[str]] = tuple  # what is wrong with HAProxy and PgBouncer
        self.pools: Callable[[], PoolerStats | None] = lambda: None

    @property
    def clock(self) -> Clock:
        return self._clock

    def node(self) -> NodeId:
        return self._keeper.member.node

    def cluster(self) -> str:
        return self._cluster

    def member(self) -> Member:
        return self._keeper.member

    def snapshot(self) -> Snapshot | None:
        return self._store.snapshot

    def snapshot_age_s(self) -> float:
        return self._clock.boottime() - self._store.read_at

    def instance(self) -> InstanceState | None:
        return self._keeper.seen

    def instance_age_s(self) -> float:
        return self._clock.boottime() - self._keeper.looked_at if self._keeper.seen is not None else NEVER

    def authority_until(self) -> float:
        return self._keeper.authority_until

    def problem(self) -> str:
        return "; ".join(said for said in (self._keeper.problem, *self.programs()) if said)

    def fence(self) -> FenceState | None:
        until = self._keeper.authority_until
        margin_s = until - self._clock.boottime() if until > 0 else None
        return FenceState(self._fence.pid is not None, margin_s, self._fence.fired)

    def store_stats(self) -> StoreStats:
        now = self._clock.boottime()
        lease = self._keeper.lease
        return StoreStats(
            {n: OperationStats(s.calls, s.errors, s.seconds) for n, s in self._store.stats.items()},
            now - self._store.contact_at,
            now - lease.asked_at if lease is not None else None,
            self._ttl_s if lease is not None else None,
        )

    def backup_stats(self) -> BackupStats | None:
        status = self.backups() if self.backups is not None else None
        if status is None or not status.url or not status.read:
            return None
        return backup_stats(status, self.written(), self._clock.wall())

    def written(self) -> int | None:
        """Where the WAL of this node ends, on its disk; None: not known."""
        seen = self._keeper.seen
        return seen.position.lsn if seen is not None and seen.position is not None else None

    def pool_stats(self) -> PoolerStats | None:
        return self.pools()

    def drills(self) -> Drills | None:
        return self.switched_on

    def store(self) -> OperatorStore:
        return self._store

    def certificate(self) -> CertificateStats | None:
        return self.certificate_stats()

    async def connect(self, database: str) -> Connection:
        return await connect_local(self._instance, name="flypg_http", database=database, timeout_s=CONNECT_S)

    async def connect_primary(self, database: str) -> Connection:
        snap = self._store.snapshot
        view = snap.view if snap is not None else None
        primary = view.member(view.primary) if view is not None else None
        if primary is None:
            raise PostgresUnavailable("there is no primary now")
        if primary.node == self.node():
            return await self.connect(database)
        return await connect_remote(
            self._instance, primary.host, primary.ports.postgres, timeout_s=CONNECT_S, database=database
        )

    async def restart_routing(self) -> None:
        await self._restart_routing()
