"""What a keeper remembers from turn to turn. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.local import RestartUnderWay
from cluster.model import Position, Rule, Snapshot
from postgres.instance import InstanceState, Run


@dataclass(slots=True)
class Memory:
    """What a keeper remembers between turns and may lose: everything here is seen or proven anew after a restart."""

    applied: Rule | None = None
    barrier_term: int = 0
    ready_for: str = ""
    stop_seen: tuple[str, float] = ("", 0.0)  # the switchover that asks the primary to stop, and since when
    drained: str = ""  # the switchover for which this node's pooler holds and has drained
    roles_ready: bool = False
    promoting: int = 0
    asked: Rule | None = None
    known_end: Position | None = None
    rewound_from: Position | None = None
    wal_lost: bool = False
    unattached_since: float | None = None
    wal_checked: float | None = None
    down_since: float | None = None
    last_start: float | None = None
    waits_since: float | None = None
    last_job_failed: float | None = None
    restart: RestartUnderWay | None = None
    was_standby: bool = False
    generation: int = 0
    _failed_job: bool = False

    def update(self, inst: InstanceState, now: float) -> None:
        """Bring what is remembered in line with a new look."""
        if inst.run in (Run.DOWN, Run.HUNG):
            if self.down_since is None:
                self.down_since = now
        else:
            self.down_since = None
        waits = inst.run is Run.STARTING and inst.control is not None and not inst.control.crashed_primary
        self.waits_since = (now if self.waits_since is None else self.waits_since) if waits else None
        if inst.run is Run.DOWN:
            self.forget_server()
            if self.restart is not None and not self.restart.stopped:
                self.restart = replace(self.restart, stopped=True)
        if inst.in_recovery is not None:
            self.was_standby = inst.in_recovery
        if inst.data_generation != self.generation:
            self.generation = inst.data_generation
            self.known_end = None
            self.wal_lost = False
        elif inst.position is not None:
            self.known_end = inst.position
        if inst.run is Run.UP and inst.in_recovery and inst.upstream is not None and not inst.streaming:
            if self.unattached_since is None:
                self.unattached_since = now
        else:
            self.unattached_since = None
        failed = inst.job is not None and bool(inst.job.error)
        if failed and not self._failed_job:
            self.last_job_failed = now
        self._failed_job = failed

    def forget_answered(self, snap: Snapshot) -> None:
        """A restart whose request was answered by somebody else, or is gone, is not announced any more."""
        if self.restart is not None and not any(r.id == self.restart.request and not r.outcome for r in snap.requests):
            self.restart = None

    def forget_server(self) -> None:
        """Nothing that was proven of the last server is true of the next."""
        self.applied = None
        self.barrier_term = 0
        self.promoting = 0
        self.asked = None
        self.ready_for = ""
