"""What a keeper knows about its own node when it plans. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model import Disk, NodeId, Position, Rule
from postgres.instance import InstanceState


@dataclass(frozen=True, slots=True)
class RestartUnderWay:
    """An operator's restart of this node's PostgreSQL."""

    request: str
    stopped: bool = False  # it has been seen down: what runs now is the new server


@dataclass(frozen=True, slots=True)
class Local:
    """One node as its keeper sees it. Times are boottime seconds."""

    me: NodeId
    instance: InstanceState
    disk: Disk
    fresh: bool = True  # etcd answered this turn; without it only what needs nobody's word is done
    forgotten: bool = False  # it answered, and has lost the cluster: not fresh either
    applied: Rule | None = None  # the rule this server demonstrably runs, barrier passed
    barrier_term: int = 0
    ready_for: str = ""  # the switchover it has run a CHECKPOINT for
    stop_seen: tuple[str, float] = ("", 0.0)  # the switchover that asks the primary to stop, and since when
    drained: str = ""  # the switchover for which this node's pooler holds and has drained
    roles_ready: bool = False  # this run of the agent has made sure of flypg's users
    promoting: int = 0  # the term whose promotion was asked for
    asked: Rule | None = None  # the rule under which that promotion was asked for
    known_end: Position | None = None  # where the data of a server that is down ended when it was last looked at
    rewound_from: Position | None = None  # where its data ended before it was last rewound
    wal_lost: bool = False  # the primary has not got the WAL any more that this node needs next
    unattached_since: float | None = None  # it runs as a standby, has an upstream, and does not stream
    wal_checked: float | None = None  # when its upstream was last asked for the WAL it needs
    down_since: float | None = None
    ending: bool = False  # this agent was asked to end
    last_start: float | None = None
    waits_since: float | None = None  # recovers from WAL it may lack: not a primary's own, which crash recovery has
    last_job_failed: float | None = None
    restart: RestartUnderWay | None = None
