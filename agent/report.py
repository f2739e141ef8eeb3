"""What a keeper says of its node, made from what it sees, and when that is worth a write to etcd. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.model import (
    Answer,
    Durability,
    HandoverStage,
    Member,
    NodeReport,
    Phase,
    ServerState,
    Snapshot,
    Spec,
    StandbySeen,
    Verdict,
    View,
    unstamped,
)
from postgres.instance import Data, InstanceState, JobKind, Run

if TYPE_CHECKING:
    from agent.keeper import KeeperConfig
    from agent.memory import Memory

CAUGHT_UP_BYTES = 1 << 20  # a standby counts as caught up within this …
FALLEN_BACK_BYTES = 64 << 20  # … and until it is further behind than that: reports are not to flap under load


def server_state(inst: InstanceState) -> ServerState:
    if inst.job is not None and inst.job.running:
        return {JobKind.COPY: ServerState.COPYING, JobKind.REWIND: ServerState.REWINDING}.get(
            inst.job.kind, ServerState.ABSENT
        )
    if inst.data is not Data.PRESENT:
        return ServerState.ABSENT
    match inst.run:
        case Run.DOWN:
            return ServerState.CRASHED if inst.died else ServerState.STOPPED
        case Run.STARTING:
            return ServerState.STARTING
        case Run.HUNG:
            return ServerState.HUNG
        case Run.UP:
            if inst.in_recovery is None:
                return ServerState.STARTING
            return ServerState.STANDBY if inst.in_recovery else ServerState.PRIMARY


def fault_of(inst: InstanceState, view: View, memory: Memory) -> str | None:
    """First-hand evidence that this primary cannot go on; None when it can, or is stopped on purpose."""
    if view.handover is not None and view.handover.stage is HandoverStage.STOP:
        return None
    if memory.restart is not None:
        return None
    if inst.fault:
        return inst.fault
    if inst.run is Run.DOWN:
        return "the postmaster died" if inst.died else "PostgreSQL is not running"
    if inst.run is Run.HUNG:
        return "PostgreSQL does not answer"
    return None


def _standbys(inst: InstanceState, view: View, spec: Spec, before: NodeReport | None) -> tuple[StandbySeen, ...]:
    flushed = inst.position.lsn if inst.position is not None else 0
    were = (
        {s.node for s in before.standbys if s.caught_up} if before is not None and before.term == view.term else set()
    )
    found = {}
    for sender in inst.walsenders:
        name = unstamped(sender.name)
        if name is None or name[1] != view.term or sender.state != "streaming":
            continue
        behind = max(0, flushed - sender.flushed) if sender.flushed is not None else FALLEN_BACK_BYTES
        limit = FALLEN_BACK_BYTES if name[0] in were else CAUGHT_UP_BYTES
        if spec.durability is Durability.ASYNC:  # a promise to the operator: it bounds what a failover may lose
            limit = spec.max_lag_bytes
        found[name[0]] = StandbySeen(name[0], behind <= limit)
    return tuple(found[n] for n in sorted(found))


def make_report(
    member: Member,
    inst: InstanceState,
    snap: Snapshot | None,
    memory: Memory,
    answer: Answer,
    before: NodeReport | None,
    problem: str,
    config: KeeperConfig,
) -> NodeReport:
    """This node as it is now. `before`: what was told last, for what is not to flap."""
    view = snap.view if snap is not None else None
    report = NodeReport(
        member=member,
        run=config.run,
        state=server_state(inst),
        term=view.term if view is not None else 0,
        position=inst.position,
        system_id=inst.control.system_id if inst.control is not None else "",
        following=inst.upstream.node if inst.upstream is not None and inst.in_recovery else None,
        streaming=inst.streaming,
        restarting=memory.restart is not None,
        applied=memory.applied,
        barrier_term=memory.barrier_term,
        checkpoint_timeline=inst.control.timeline if inst.control is not None else 0,
        handover_ready=memory.ready_for,
        drained=memory.drained,
        pending_restart=inst.pending_restart,
        problem=problem,
        sentinel=config.sentinel,
        server_version=inst.server_version,
        flypg_version=config.version,
    )
    if snap is None or view is None:
        return report
    if view.primary == member.node and view.phase in (Phase.PROMOTING, Phase.OPEN):
        fault = fault_of(inst, view, memory) if view.phase is Phase.OPEN or memory.promoting == view.term else None
        return replace(report, fault=fault, standbys=_standbys(inst, view, snap.spec, before))
    if view.primary is not None and view.primary != member.node and answer is not Answer.UNKNOWN:
        return replace(report, verdict=Verdict(view.term, view.primary, answer))
    return report


def worth_telling(before: NodeReport | None, report: NodeReport) -> bool:
    """Did anything change that somebody acts on? A position alone moves all the time."""
    if before is None:
        return True
    return before != report and replace(before, position=report.position) != report
