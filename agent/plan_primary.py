"""What the node does that the view names primary. Pure."""

from __future__ import annotations

from agent.local import Local
from agent.steps import (
    ApplyRule,
    Barrier,
    Checkpoint,
    CloseRequest,
    CreateRoles,
    HandOver,
    InitDb,
    KeepSlots,
    OpenGate,
    Plan,
    PromiseStopped,
    Promote,
    Restart,
    StartPrimary,
    StartStandby,
    Stop,
)
from cluster.model import (
    Handover,
    HandoverStage,
    NodeId,
    Phase,
    RequestKind,
    ServerState,
    Snapshot,
    View,
    slot_name,
)
from cluster.quorum import missing
from postgres.instance import Data, Run

RESTART_AFTER_S = 3.0  # a primary whose standbys could take over leaves them this time before it restarts in place
DRAIN_S = 0.5  # in a switchover, for pooled transactions to end before the primary stops
START_PAUSE_S = 5.0  # between two starts in place


def as_primary(snap: Snapshot, view: View, local: Local, now: float) -> Plan:
    rule = view.rule
    assert rule is not None and view.primary == local.me
    inst = local.instance
    if local.disk.promised > view.term:
        return Plan(None, f"this node has promised term {local.disk.promised}: it cannot serve term {view.term}")
    if inst.data is not Data.PRESENT or local.disk.copying:
        if view.phase is Phase.FOUNDING and inst.data is not Data.PRESENT and not local.disk.copying:
            if inst.job is not None and inst.job.error and _recently(local.last_job_failed, now):
                return Plan(None, f"initdb failed: {inst.job.error}", problem=True)
            return Plan(InitDb(), "this node founds the cluster")
        return Plan(None, "this node is to be primary but has no data", problem=True)
    if inst.run is Run.STARTING:
        return Plan(None, "PostgreSQL is starting", soon=True)
    if inst.run is Run.HUNG:
        return Plan(None, "PostgreSQL does not answer", problem=True)
    if inst.run is Run.DOWN:
        return _down(snap, view, local, now)
    if view.phase is Phase.PROMOTING:
        return _promoting(view, local)
    if inst.in_recovery:
        if view.phase is Phase.FOUNDING:
            return Plan(Stop(fast=True), "data that was a standby's is to found the cluster: start it as primary")
        return Plan(Stop(fast=True), f"this node is primary of term {view.term} but runs as a standby: start it anew")
    return _serving(snap, view, local, now)


def _recently(at: float | None, now: float) -> bool:
    return at is not None and now - at < 10.0


def _down(snap: Snapshot, view: View, local: Local, now: float) -> Plan:
    inst, rule = local.instance, view.rule
    assert rule is not None
    if view.phase is Phase.PROMOTING:
        if local.known_end is not None and local.known_end.timeline == view.timeline:
            return Plan(
                StartPrimary(rule), f"it went down after it had become primary of term {view.term}: start it anew"
            )
        return Plan(StartStandby(None), f"chosen for term {view.term}: start, to see whether it was promoted already")
    if view.phase is Phase.OPEN and _stopping_for(view.handover, local.me):
        if inst.control is not None and inst.control.clean_primary:
            end = inst.control.stopped_at
            return Plan(PromiseStopped(view.term + 1, end), f"stopped for the switchover at {end}")
        return Plan(None, "it did not stop in order: the switchover will be called off")
    if view.phase is Phase.OPEN and local.restart is None:
        if local.last_start is not None and now - local.last_start < START_PAUSE_S and inst.died:
            return Plan(None, "it died soon after its last start: wait before the next", problem=True)
        there = {
            n
            for n, r in snap.reports.items()
            if n != local.me and r.state is ServerState.STANDBY and r.term == view.term
        }
        waited = now - local.down_since if local.down_since is not None else 0.0
        if there and missing(view.rules, there) is None and waited < RESTART_AFTER_S:
            return Plan(None, "PostgreSQL is down; the standbys can take over")
    return Plan(StartPrimary(rule), f"this node is primary of term {view.term}")


def _stopping_for(handover: Handover | None, me: NodeId) -> bool:
    return handover is not None and handover.stage is HandoverStage.STOP and handover.target != me


def _promoting(view: View, local: Local) -> Plan:
    inst, rule = local.instance, view.rule
    assert rule is not None
    if inst.in_recovery:
        if inst.position is not None and inst.position.timeline == view.timeline:
            return Plan(Stop(fast=True), f"it was promoted to timeline {view.timeline} before: start it as primary")
        if local.promoting == view.term:
            return Plan(None, f"promotion to timeline {view.timeline} was asked for", soon=True)
        return Plan(Promote(view.term, view.timeline, rule), f"chosen for term {view.term}, timeline {view.timeline}")
    if inst.position is None:
        return Plan(None, "promoted; its position is not known yet", soon=True)
    if inst.position.timeline != view.timeline:
        return Plan(
            Stop(fast=False),
            f"it is on timeline {inst.position.timeline} instead of {view.timeline}: stop it",
            problem=True,
        )
    if local.applied != rule or local.barrier_term != view.term:
        if local.asked == rule:
            return Plan(Barrier(rule), f"promoted: a write must be acknowledged under {rule}")
        return Plan(ApplyRule(rule), f"the rule changed before the term was open: {rule}")
    if not inst.gate_open:
        return Plan(OpenGate(), "the barrier was passed: clients may come in")
    return Plan(None, "the barrier was passed; waiting for the term to be opened", soon=True)


def _undrained(snap: Snapshot, view: View, local: Local, now: float) -> list[NodeId]:
    """Nodes whose pooler still runs transactions that the stop for this switchover would break; none after a while."""
    request, since = local.stop_seen
    if view.handover is None or view.handover.request != request or now - since >= DRAIN_S:
        return []
    told = {n: r.drained for n, r in snap.reports.items() if view.member(n) is not None}
    return sorted(n for n, drained in (told | {local.me: local.drained}).items() if drained != request)


def _serving(snap: Snapshot, view: View, local: Local, now: float) -> Plan:
    inst, rule, me = local.instance, view.rule, local.me
    assert rule is not None
    if inst.position is not None and inst.position.timeline != view.timeline:
        return Plan(Stop(fast=False), f"it serves timeline {inst.position.timeline}, not {view.timeline}", problem=True)
    if _stopping_for(view.handover, me):
        target = view.handover.target if view.handover else "?"
        if nodes := _undrained(snap, view, local, now):
            return Plan(None, f"switchover to {target}: transactions pooled by {', '.join(nodes)} end first", soon=True)
        return Plan(HandOver(view.term + 1), f"switchover to {target}")
    if not local.roles_ready and view.phase is Phase.FOUNDING:
        return Plan(CreateRoles(), "the users flypg works with must exist before anybody needs them")
    if local.applied != rule:
        return Plan(ApplyRule(rule), f"{rule} is to be in force")
    if local.barrier_term != view.term:
        return Plan(Barrier(rule), f"a write must be acknowledged under {rule} before clients are let in")
    if not inst.gate_open:
        return Plan(OpenGate(), "the barrier was passed: clients may come in")
    if view.phase is not Phase.OPEN:
        return Plan(None, "waiting for the term to be opened", soon=True)
    if view.handover is not None and local.ready_for != view.handover.request:
        return Plan(Checkpoint(view.handover.request), f"CHECKPOINT before the switchover to {view.handover.target}")
    if local.restart is not None and local.restart.stopped:
        return Plan(CloseRequest(local.restart.request, f"done: {me} was restarted"), "the restart is done")
    if inst.control is not None and inst.control.timeline != view.timeline:
        return Plan(Checkpoint(""), "the control file is to show the new timeline, or nobody can rewind from here")
    others = frozenset(m.node for m in view.members if m.node != me)
    if slots_differ(inst.slots, others):
        return Plan(KeepSlots(others), "a slot for each member")
    if not local.roles_ready:
        return Plan(CreateRoles(), "the users flypg works with must have the passwords this node was given")
    for request in snap.requests:
        if request.kind is RequestKind.RESTART and request.node == me and not request.outcome and view.handover is None:
            return Plan(Restart(request.id), f"restart, asked for by {request.asked_by}")
    return Plan(None, f"primary of term {view.term}, {rule}")


def slots_differ(have: frozenset[str], wanted: frozenset[NodeId]) -> bool:
    return {slot_name(n) for n in wanted} != {s for s in have if s.startswith("flypg_")}
