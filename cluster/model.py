"""What a cluster is: the agreed view, what nodes say of themselves, what an operator wishes.

Everything here is an immutable value. Nothing here does I/O or reads a clock. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

NodeId = NewType("NodeId", str)
NODE_NAME = re.compile(r"[a-z0-9_]{1,40}\Z")

NOBODY = "flypg_nobody"  # a standby name that nobody has: a commit that waits for it waits until the list changes


def format_lsn(lsn: int) -> str:
    """`22/3000060`, as PostgreSQL prints a byte position."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """The byte position behind `22/3000060`. Raises ValueError when `text` is no LSN."""
    high, slash, low = text.partition("/")
    if not slash or not re.fullmatch(r"[0-9A-Fa-f]{1,8}", high) or not re.fullmatch(r"[0-9A-Fa-f]{1,8}", low):
        raise ValueError(f"not an LSN: {text!r}")
    return (int(high, 16) << 32) | int(low, 16)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the WAL. A newer timeline counts before a longer log, like Raft's (term, index)."""

    timeline: int
    lsn: int  # bytes

    def __str__(self) -> str:
        return f"{format_lsn(self.lsn)} on timeline {self.timeline}"


class Durability(StrEnum):
    """When may a commit be acknowledged (docs/protocol.md)."""

    QUORUM = "quorum"  # k voters have flushed it; the voter set shrinks with the standbys, down to a lone primary
    STRICT = "strict"  # the same, but never fewer than k: commits wait instead
    ASYNC = "async"  # at once; a failover may lose up to `max_lag_bytes`


@dataclass(frozen=True, slots=True)
class Rule:
    """`primary` of `term` acknowledges a commit only after `k` of `voters` have flushed it.

    No voters and k = 0 is a *lone* primary: it acknowledges alone, and only its own return satisfies the rule.
    """

    term: int
    primary: NodeId
    voters: frozenset[NodeId]
    k: int
    serial: int = 0  # counts the rules of a term: one that comes back is another, and must be proven again

    def same(self, other: Rule) -> bool:
        """Does it ask for the same confirmations?"""
        return (self.term, self.primary, self.voters, self.k) == (other.term, other.primary, other.voters, other.k)

    @property
    def lone(self) -> bool:
        return self.k == 0

    def __str__(self) -> str:
        if self.lone:
            return f"{self.primary} alone (term {self.term})"
        return f"ANY {self.k} ({', '.join(sorted(self.voters))}) for {self.primary} (term {self.term})"


def lone_rule(term: int, primary: NodeId) -> Rule:
    return Rule(term, primary, frozenset(), 0)


class Phase(StrEnum):
    FOUNDING = "founding"  # `primary` creates the cluster's data, or brings the data it has
    REVOKING = "revoking"  # promises are being collected; there is no primary
    PROMOTING = "promoting"  # `primary` was chosen and is becoming primary; no client is sent to it
    OPEN = "open"  # `primary` has passed its barrier; clients are served


class HandoverStage(StrEnum):
    PREPARE = "prepare"  # the primary runs a CHECKPOINT while clients still work
    STOP = "stop"  # routers hold clients, the primary stops in fast mode


@dataclass(frozen=True, slots=True)
class Handover:
    """A planned switchover that is under way in an open term."""

    target: NodeId
    request: str  # id of the Request that asked for it
    stage: HandoverStage


@dataclass(frozen=True, slots=True)
class Fetch:
    """While revoking: `node` first follows `source`, which is further but may not be primary, up to `until`."""

    node: NodeId
    source: NodeId
    until: Position


@dataclass(frozen=True, slots=True)
class Ports:
    proxy: int = 5432  # HAProxy, always the primary
    postgres: int = 5433  # this node, direct
    read: int = 5434  # HAProxy, standbys
    pooler: int = 6432  # PgBouncer
    http: int = 5500  # checks and commands
    metrics: int = 9187
    stats: int = 8404  # HAProxy's own page


@dataclass(frozen=True, slots=True)
class Member:
    """A node that belongs to the cluster: how to reach it and what its operator allows it to be."""

    node: NodeId
    host: str  # address the other nodes use
    ports: Ports = Ports()
    region: str = ""
    nofailover: bool = False  # never primary
    nosync: bool = False  # never a voter
    priority: int = 100  # among equally far candidates the highest wins; 0 means never primary

    @property
    def may_lead(self) -> bool:
        return not self.nofailover and self.priority > 0


@dataclass(frozen=True, slots=True)
class Branch:
    """A timeline that was allocated: who got it, and where it left its parent."""

    term: int
    timeline: int
    primary: NodeId
    parent: int  # timeline it left; 0 for the first
    fork: int  # LSN at which it left the parent; 0 for the first
    opened: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """What the cluster has agreed on. Written by the leading sentinel only, compared and swapped."""

    term: int
    phase: Phase
    primary: NodeId | None  # None only while revoking
    timeline: int  # allocated to `primary` in this term; while revoking, that of the last term
    rules: tuple[Rule, ...]  # every rule that any walsender may still use: a failover must satisfy each; newest last
    members: tuple[Member, ...] = ()
    deposed: NodeId | None = None  # primary of the term before
    handover: Handover | None = None
    fetch: Fetch | None = None
    branches: tuple[Branch, ...] = ()  # oldest first, bounded
    near: frozenset[NodeId] = frozenset()  # durability async: standbys within `max_lag_bytes`, as the primary last said
    last_timeline: int = 1  # the highest timeline ever allocated
    system_id: str = ""  # PostgreSQL's system identifier; "" until the founder has reported it
    cause: str = ""  # why this term was opened, e.g. "postmaster of n1 died"
    why: str = ""  # why the view was last changed

    def member(self, node: NodeId | None) -> Member | None:
        for m in self.members:
            if m.node == node:
                return m
        return None

    @property
    def rule(self) -> Rule | None:
        """The rule that the primary is to apply: the newest."""
        return self.rules[-1] if self.rules else None


class ServerState(StrEnum):
    """What the PostgreSQL of a node is doing, as its keeper sees it."""

    ABSENT = "absent"  # no data directory, or one that was never completed
    COPYING = "copying"  # a base backup is running
    REWINDING = "rewinding"
    STOPPED = "stopped"  # stopped on purpose
    CRASHED = "crashed"  # the postmaster ended without being asked to
    STARTING = "starting"  # running, does not take connections yet
    STANDBY = "standby"
    PRIMARY = "primary"
    HUNG = "hung"  # running, but new connections or trivial statements do not answer


class Answer(StrEnum):
    """What a node gets when it asks the primary."""

    UNKNOWN = "unknown"  # not asked yet
    OK = "ok"
    REFUSED = "refused"  # a live host with nothing listening
    SILENT = "silent"  # no answer from the stream, an open connection and a new connection


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a node finds the primary of `term`. Written to etcd only when it changes."""

    term: int
    primary: NodeId
    answer: Answer


@dataclass(frozen=True, slots=True)
class StandbySeen:
    """A standby in the primary's pg_stat_replication, attached under the primary's own term."""

    node: NodeId
    caught_up: bool  # has flushed all that the primary had flushed when it was looked at


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What one node last said about itself. Written by its keeper, under a lease, when something changed."""

    member: Member
    run: str  # id of this run of the agent
    state: ServerState
    term: int = 0  # the term of the view it acts on
    position: Position | None = None  # WAL on its own disk when this was written; None means unknown
    system_id: str = ""  # of its data directory; "" without one
    following: NodeId | None = None
    streaming: bool = False
    verdict: Verdict | None = None
    fault: str | None = None  # first-hand evidence that this primary cannot go on; None means none
    restarting: bool = False  # stopped for a moment on purpose: do not fail over
    applied: Rule | None = None  # the rule that PostgreSQL demonstrably runs; None means none is known to be
    barrier_term: int = 0  # the last term whose barrier this node has passed
    checkpoint_timeline: int = 0  # timeline in its control file: it may be a source for pg_rewind once it is current
    standbys: tuple[StandbySeen, ...] = ()  # as primary
    handover_ready: str = ""  # id of the switchover this primary is prepared for
    drained: str = ""  # id of the switchover for which its pooler holds clients and has no transaction left that runs
    pending_restart: tuple[str, ...] = ()
    problem: str = ""  # what keeps it from its next step, for people
    sentinel: bool = True  # a sentinel runs beside it
    served: int = 0  # said only while etcd knows no cluster: the last term of it that this node's data has served
    server_version: int = 0  # e.g. 150018; 0 means unknown
    flypg_version: str = ""

    @property
    def node(self) -> NodeId:
        return self.member.node


@dataclass(frozen=True, slots=True)
class Promise:
    """A node's durable word that it will not serve, in any way, a primary of a term below `term`."""

    node: NodeId
    term: int
    position: Position  # read after its WAL receiver had exited, or after its clean stop as primary


@dataclass(frozen=True, slots=True)
class Disk:
    """What a keeper has on its own disk beside PGDATA, fsynced before anybody is told."""

    promised: int = 0  # the highest term promised
    promise: Promise | None = None  # the last one, with its position
    floor: Position | None = None  # may not be counted below this
    copying: bool = False  # a base backup was begun and has not been completed
    was_primary: int = 0  # the highest term in which this data directory was started or promoted as primary

    @property
    def served(self) -> int:
        """The highest term that this node knows of. 0: it has never been part of a cluster."""
        return max(self.promised, self.was_primary)


class RequestKind(StrEnum):
    SWITCHOVER = "switchover"  # node: target, None for the best
    FAILOVER = "failover"  # options: accept_data_loss
    RESTART = "restart"  # node: whose PostgreSQL
    RECLONE = "reclone"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Request:
    """Something an operator asked for. Answered once, with `outcome`."""

    id: str
    kind: RequestKind
    node: NodeId | None
    asked_by: str
    accept_data_loss: bool = False
    outcome: str = ""  # "" while open; then "done: …" or "refused: …"
    created_revision: int = 0  # by the store


@dataclass(frozen=True, slots=True)
class Spec:
    """What the operator wishes. Validated before it is stored."""

    durability: Durability = Durability.QUORUM
    k: int = 1
    paused: bool = False
    primary_region: str = ""  # "" means every region
    max_lag_bytes: int = 1 << 20  # async only: what a failover may lose
    suspect_after_s: float = 1.0
    shrink_after_s: float = 2.0  # a voter that has not streamed for so long leaves the rule
    cooldown_s: float = 10.0  # after a failover without first-hand evidence
    hold_max_s: float = 5.0  # a switchover that is not done by then is called off
    restart_within_s: float = 30.0  # an announced restart that takes longer is a failure
    remove_dead_after_s: float = 0.0  # 0 means never by itself
    read_max_lag_bytes: int = 16 << 20  # standbys further behind get no reads from the read port
    parameters: tuple[tuple[str, str], ...] = ()  # PostgreSQL settings, sorted by name
    hba: tuple[str, ...] = ()  # pg_hba lines, instead of the default for clients
    pool_mode: str = "session"  # a word of cluster.pool.PoolMode
    pool_modes: str = ""  # databases that differ: "shop=transaction,etl=session"
    pool_plan: str = "starter"  # one of cluster.pool.PLANS
    pool_clients: int = 0  # client connections of each pooler; 0: as the plan says
    pool_connections: int = 0  # connections of all poolers to the primary, per database; 0: as the plan says
    pool_reserve: int = -1  # of these, kept in reserve; -1: as the plan says


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the cluster's history, for people and for `flypg why`."""

    at: float  # wall clock of the writer, seconds since 1970
    term: int
    kind: str  # "failover", "switchover", "rule", "member", "request", "phase"
    text: str
    node: str = ""  # whom it is about
    by: str = ""  # who wrote it or asked for it


@dataclass(frozen=True, slots=True)
class Leadership:
    """Proof that this sentinel leads: its key was created at this revision, under its own lease."""

    sentinel: str
    created_revision: int


@dataclass(frozen=True, slots=True)
class LeaseProof:
    """A renewal that etcd confirmed. Times are this machine's boottime, in seconds."""

    asked_at: float  # when the request was SENT: the countdown may have started then
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything in etcd about this cluster but its history, read at one revision."""

    revision: int
    view: View | None  # None: no cluster was ever founded under this name
    view_revision: int  # mod revision of the view; 0 means none
    spec: Spec
    spec_revision: int
    reports: dict[NodeId, NodeReport] = field(default_factory=dict)
    promises: dict[NodeId, Promise] = field(default_factory=dict)
    requests: tuple[Request, ...] = ()  # oldest first
    leader: Leadership | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """Whom a standby receives WAL from, and the term it says it serves."""

    node: NodeId
    host: str
    port: int
    term: int

    def application_name(self, me: NodeId) -> str:
        return stamped(me, self.term)


def stamped(node: NodeId, term: int) -> str:
    """The name under which `node` replicates in `term`: the fencing token inside replication."""
    return f"{node}_t{term}"


def unstamped(name: str) -> tuple[NodeId, int] | None:
    """The node and term behind a replication name; None when it is not one of ours."""
    head, sep, tail = name.rpartition("_t")
    if not sep or not tail.isascii() or not tail.isdigit() or not NODE_NAME.match(head):
        return None
    return NodeId(head), int(tail)


def slot_name(node: NodeId) -> str:
    return f"flypg_{node}"
