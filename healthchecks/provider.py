"""What the HTTP server may ask its node: one interface between the agent and everything on ports 5500 and 9187.

The daemon implements `Provider`; the tests implement it with real pieces. Everything but the connections and the store
answers at once, from memory: a probe must have its answer although etcd, the primary or PostgreSQL hang.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cluster.clock import Clock
from cluster.model import Member, NodeId, Snapshot
from cluster.store import OperatorStore
from healthchecks.certificate import CertificateStats
from healthchecks.drills import Drills
from postgres.instance import InstanceState
from postgres.monitor import Connection


@dataclass(frozen=True, slots=True)
class FenceState:
    """The process that stops a writable PostgreSQL whose authority has run out."""

    alive: bool
    margin_s: float | None = None  # seconds until it would act; None: it has nothing to guard
    fired_total: int = 0


@dataclass(frozen=True, slots=True)
class OperationStats:
    """How one kind of call to etcd has gone since the start of the agent."""

    calls_total: int = 0
    errors_total: int = 0
    seconds_total: float = 0.0


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How etcd answers this node."""

    operations: Mapping[str, OperationStats] = field(default_factory=dict)  # by name: "read", "report", "keep_lease"…
    contact_age_s: float = float("inf")  # since etcd last answered anything; inf: never
    lease_age_s: float | None = None  # since the last confirmed renewal was sent; None: no lease
    lease_ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class BackupStats:
    """What this node knows of its cluster's snapshots and WAL archive."""

    snapshots: int = 0
    newest_age_s: float | None = None  # None: there is no snapshot
    newest_bytes: int | None = None
    oldest_age_s: float | None = None
    last_succeeded: bool | None = None  # None: none was tried since the start of the agent
    failures_total: int = 0
    archive_lag_bytes: int | None = None  # WAL written and not archived; None: unknown or no archive
    archive_ready_segments: int | None = None
    verified_age_s: float | None = None  # since a restore was last tried and worked
    repository: str = ""  # where they are, without secrets
    newest_id: str = ""
    verified_s: float | None = None  # how long that restore took
    newest_verified: bool = False  # was the newest snapshot restored in that test?
    next_in_s: float | None = None  # until the next run, negative when it is overdue; None: none is planned
    running: str = ""  # what this node does now: "snapshot", "verify", "sweep"; "" means nothing
    archiving: bool = False  # is WAL archived in this cluster?
    archive_lag_s: float | None = None  # age of the oldest change that is not in the archive
    archive_last: str = ""  # the last file that got there
    archive_dropped_total: int = 0  # files that were let go unarchived, since this archiver's start
    archive_conflicts_total: int = 0
    gap_age_s: float | None = None  # since WAL was let go that no snapshot makes up for; None: there is no gap
    problems: tuple[str, ...] = ()  # what is wrong with the repository or what is in it, in words
    warnings: tuple[str, ...] = ()  # what is wrong with how it is set up


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool of PgBouncer."""

    database: str
    user: str
    client_active: int
    client_waiting: int
    server_active: int
    server_idle: int
    server_used: int
    maxwait_s: float


@dataclass(frozen=True, slots=True)
class PoolerStats:
    """This node's PgBouncer."""

    answers: bool
    pools: tuple[PoolStats, ...] = ()


class Provider(Protocol):
    """A node, as its HTTP server sees it."""

    @property
    def clock(self) -> Clock: ...

    def node(self) -> NodeId: ...

    def cluster(self) -> str:
        """The cluster's name."""
        ...

    def member(self) -> Member:
        """How this node is reached, and what its operator allows it to be."""
        ...

    def snapshot(self) -> Snapshot | None:
        """The last read of etcd. None: none has succeeded yet."""
        ...

    def snapshot_age_s(self) -> float:
        """Seconds since etcd last confirmed that `snapshot()` is current; inf: never."""
        ...

    def instance(self) -> InstanceState | None:
        """The keeper's last look at the local PostgreSQL. None: none yet, or a node without one (a witness)."""
        ...

    def instance_age_s(self) -> float:
        """Seconds since that look was begun; inf: never."""
        ...

    def authority_until(self) -> float:
        """Until when this node may act as primary, in seconds of `clock.boottime()`; inf for a lone primary."""
        ...

    def problem(self) -> str:
        """What keeps the keeper from its next step, for people; "" when nothing does."""
        ...

    def fence(self) -> FenceState | None:
        """None: no fence runs here."""
        ...

    def store_stats(self) -> StoreStats: ...

    def backup_stats(self) -> BackupStats | None:
        """None: no backups are configured, or nothing is known yet."""
        ...

    def pool_stats(self) -> PoolerStats | None:
        """None: no pooler is meant to run here, or it has not been asked yet."""
        ...

    def certificate(self) -> CertificateStats | None:
        """None: nothing is known of one."""
        ...

    def store(self) -> OperatorStore:
        """Where commands leave what an operator wishes."""
        ...

    async def connect(self, database: str) -> Connection:
        """A new superuser connection to the local PostgreSQL over its socket. Raises PostgresUnavailable."""
        ...

    async def connect_primary(self, database: str) -> Connection:
        """A new superuser connection to the cluster's primary, wherever it is. Raises PostgresUnavailable."""
        ...

    def drills(self) -> Drills | None:
        """None: they are switched off on this node."""
        ...

    async def restart_routing(self) -> None:
        """Restart this node's HAProxy, which ends every session through it. Raises FlypgError."""
        ...
