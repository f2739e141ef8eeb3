"""What a keeper can see and do with its PostgreSQL: one interface, a real server behind it or a model of one.

Theory of operation. The keeper observes, chooses one step and calls one method here. Methods that take seconds or
minutes (`begin_*`) are started and then observed as a `Job`. Everything is safe to repeat: a method that finds its work
done returns at once. No method decides anything about the cluster.

Three things keep a PostgreSQL from ever acting on its own:
- it always starts with `standby.signal`, unless `start_primary` is called (only for the primary of the current term);
- its gate (pg_hba) is closed on every start: only we and replication get in, until `set_gate(open=True)`;
- `synchronous_standby_names` is never empty unless the rule is that of a lone primary; a node without a rule
  names a standby that nobody is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from cluster.model import Disk, NodeId, Position, Rule, Upstream


class Data(StrEnum):
    ABSENT = "absent"  # nothing there
    INCOMPLETE = "incomplete"  # an initdb or base backup that did not finish
    PRESENT = "present"


class Run(StrEnum):
    DOWN = "down"  # no postmaster
    STARTING = "starting"  # a postmaster that does not take connections yet
    UP = "up"  # answers
    HUNG = "hung"  # a postmaster that has not answered a new connection or a trivial statement several times in a row


class JobKind(StrEnum):
    INITDB = "initdb"
    COPY = "copy"
    REWIND = "rewind"
    ADOPT = "adoption"  # of a data directory that something else has run


@dataclass(frozen=True, slots=True)
class Job:
    """Something of minutes that runs, or ran and ended."""

    kind: JobKind
    running: bool
    error: str = ""  # why it failed; "" while it runs and when it succeeded
    progress: str = ""  # for people, e.g. "41 % of 2.1 GB"
    source: NodeId | None = None
    seeded: str = ""  # what a copy was made from instead of from `source`; "" means from there
    note: str = ""  # why it was not done as it was wished; "" means it was


@dataclass(frozen=True, slots=True)
class Control:
    """From the control file (pg_controldata): exact only while the server is down."""

    system_id: str
    state: str  # "shut down", "in production", "shut down in recovery", "in archive recovery", …
    timeline: int  # of the last checkpoint
    checkpoint: int  # LSN where the last checkpoint record starts
    min_recovery: Position | None = None
    end: int = 0  # where that record ends, after a clean stop as primary; 0 means unknown

    @property
    def clean(self) -> bool:
        """Was it stopped in order, as primary or as standby?"""
        return self.state in ("shut down", "shut down in recovery")

    @property
    def clean_primary(self) -> bool:
        return self.state == "shut down"

    @property
    def crashed_primary(self) -> bool:
        """Is it as a primary leaves it that did not stop in order? It stays so until its crash recovery is over."""
        return self.state in ("in production", "shutting down", "in crash recovery")

    @property
    def stopped_at(self) -> Position:
        """The end of the WAL of a primary that was stopped in order; at least a byte into its last record."""
        return Position(self.timeline, self.end or self.checkpoint + 1)


@dataclass(frozen=True, slots=True)
class Walsender:
    """A row of pg_stat_replication."""

    name: str  # application_name
    state: str  # "streaming", "catchup", …
    sync_state: str  # "quorum", "sync", "potential", "async"
    flushed: int | None  # LSN
    lag_s: float | None
    reply_seen_at: float | None = None  # boottime before the query in which its last reply was first seen


@dataclass(frozen=True, slots=True)
class InstanceState:
    """One look at the local PostgreSQL. What only a running server can tell is None or empty when it gave no answer."""

    data: Data
    run: Run
    died: bool = False  # it went down without having been asked to, since its last start
    control: Control | None = None  # None without data
    fresh_copy: bool = False  # a base backup that no server was started on yet: its control file is the source's
    job: Job | None = None
    in_recovery: bool | None = None
    position: Position | None = None  # standby: greatest of received and replayed; primary: flushed
    replayed: int | None = None
    upstream: Upstream | None = None  # as configured in primary_conninfo; None means detached
    receiver: bool = False  # a WAL receiver process exists
    streaming: bool = False  # and it streams
    gate_open: bool = False
    names: str = ""  # synchronous_standby_names as last configured by us
    walsenders: tuple[Walsender, ...] = ()
    pending_restart: tuple[str, ...] = ()
    server_version: int = 0
    fault: str = ""  # first-hand evidence beyond death and hanging: WAL volume full, fsync failing, flush stalled
    data_generation: int = 0  # counts replacements of the data directory
    settings_generation: str = ""  # postgres.config.settings_fingerprint of what its files hold; "" means unknown
    suspect: bool = False  # writes have waited for the disk for a while; look again sooner than usual
    slots: frozenset[str] = field(default_factory=frozenset)  # physical slots that exist
    databases: str = ""  # of a primary: differs once a database was made


class Instance(Protocol):
    """The local PostgreSQL. Methods raise InstanceError, PostgresUnavailable or CommandFailed; they never hang."""

    async def observe(self) -> InstanceState:
        """Look. Never raises for a server that is down or does not answer."""
        ...

    async def begin_initdb(self) -> None: ...

    async def begin_copy(self, source: Upstream, *, seed: bool = True) -> None:
        """Copy `source` afresh: from what this node is set to take its data from if `seed`, else and failing that with
        pg_basebackup. What is in the data directory is moved aside, never deleted first."""
        ...

    async def begin_rewind(self, source: Upstream) -> None:
        """Make this history a prefix of that of `source`, an open primary (pg_rewind). The server is down."""
        ...

    async def start_standby(self, upstream: Upstream | None) -> None:
        """Start with standby.signal, gate closed, attached to `upstream` or detached. Returns once it was launched."""
        ...

    async def start_primary(self, rule: Rule) -> None:
        """Start without standby.signal, gate closed, under `rule`. Only for the primary of the current term."""
        ...

    async def stop(self, *, fast: bool) -> None:
        """Stop: in order (fast: sessions end, checkpoint, standbys get everything) or at once (immediate).
        Returns when it is down or after a short while; look again."""
        ...

    async def hand_over(self) -> Position | None:
        """Begin to stop a primary in order, and return as soon as nothing can be added to its WAL any more, with the
        end of that; the standbys may still be receiving it, and the server may still be ending. None: it did not come
        to that in time."""
        ...

    async def follow(self, upstream: Upstream) -> None:
        """Point a running standby at `upstream` under the name of its term."""
        ...

    async def detach(self) -> Position:
        """Stop receiving WAL for good: primary_conninfo empty, reloaded, receiver terminated, seen gone twice.
        Returns the position after that. Raises InstanceError when it cannot be certain."""
        ...

    async def ask_position(self, source: Upstream) -> Position:
        """Where `source` stands now: what a primary has flushed. The floor of a node that is to be made from it."""
        ...

    async def lacks_wal(self) -> bool:
        """Was this server told, since its start, that the WAL it asked for has been removed?"""
        ...

    async def oldest_wal(self, source: Upstream) -> int:
        """Where the oldest WAL begins that `source` still has (LSN): who stands before it must be copied afresh."""
        ...

    async def promote(self, timeline: int, rule: Rule) -> None:
        """Run `rule`, make sure PostgreSQL will pick `timeline` (stub history files), then promote. Returns when asked;
        whether it is primary yet is seen by `observe`."""
        ...

    async def apply_rule(self, rule: Rule) -> None:
        """Run `rule`; returns only when PostgreSQL demonstrably does (every walsender, and backends wait)."""
        ...

    async def barrier(self, rule: Rule) -> None:
        """A real write, acknowledged under `rule`, the voters' flushed positions checked. Raises when not passed."""
        ...

    async def checkpoint(self) -> None: ...

    async def prepare_stop(self) -> None:
        """Do now, while clients work, what a stop in order would take its time for."""
        ...

    async def set_gate(self, *, open: bool) -> None:
        """Let clients in, or only us and replication."""
        ...

    async def set_parameters(self, parameters: Iterable[tuple[str, str]], hba: Iterable[str]) -> None:
        """Write the operator's settings and reload. Raises InstanceError when PostgreSQL refuses them."""
        ...

    async def ensure_roles(self) -> None:
        """As primary: the users flypg works with exist and have their passwords. Safe to repeat."""
        ...

    async def keep_slots(self, nodes: frozenset[NodeId]) -> None:
        """A physical slot for each of these other nodes, none for nodes that are not members any more."""
        ...


class NodeDisk(Protocol):
    """The keeper's own durable words, beside PGDATA."""

    async def read(self) -> Disk: ...

    async def write(self, disk: Disk) -> None:
        """Returns when it is on disk (file and directory fsynced)."""
        ...
