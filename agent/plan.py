"""What this node does next: the one function that chooses for a keeper. Pure.

Order of thought: is there a word of the cluster at all; am I its primary, or is somebody, or is somebody being chosen.
Three rules hold in every branch: a server starts as primary only when a fresh view of the current term names this node;
no WAL is received from a term below what was promised; clients get in only when this history is known to be the line.
"""

from __future__ import annotations

from agent.local import Local
from agent.plan_primary import as_primary
from agent.plan_standby import as_standby, promise_for
from agent.steps import ApplySettings, Plan, StartStandby
from cluster.forgotten import COMMAND
from cluster.model import Member, Phase, Snapshot, View
from postgres.config import settings_fingerprint
from postgres.instance import Data, JobKind, Run


def plan_next(snap: Snapshot | None, local: Local, member: Member, now: float) -> Plan:
    """The next step of this keeper. `now`: seconds of this node's boottime. `member`: what this node says it is."""
    me = member.node
    inst = local.instance
    if inst.job is not None and inst.job.running:
        more = "; ".join(text for text in (inst.job.progress, inst.job.note) if text)
        return Plan(None, f"{inst.job.kind.value} is running{': ' + more if more else ''}")
    if snap is None or snap.view is None:
        if local.forgotten:
            return _forgotten(local)
        return Plan(None, "there is no cluster yet" if snap is not None else "etcd has not answered since the start")
    view = snap.view
    if snap.spec.paused and view.phase is Phase.OPEN:
        return Plan(None, "the cluster is paused by an operator")
    if not local.fresh:
        return _alone(view, local)
    if view.member(me) is None:
        return Plan(None, f"{me} is not a member yet")
    if view.system_id and inst.control is not None and inst.control.system_id not in ("", view.system_id):
        return Plan(
            None,
            f"the data directory belongs to another system ({inst.control.system_id}, this cluster's is"
            f" {view.system_id}): move it away, then this node copies the cluster's data",
            problem=True,
        )
    spec = snap.spec
    if (
        view.phase in (Phase.OPEN, Phase.FOUNDING)
        and view.handover is None
        and inst.run in (Run.UP, Run.DOWN)
        and inst.settings_generation
        and inst.settings_generation != settings_fingerprint(spec.parameters, spec.hba)
    ):
        return Plan(ApplySettings(spec.parameters, spec.hba), "the operator's settings changed")
    if view.phase is Phase.REVOKING:
        return promise_for(snap, view, local, now)
    if view.primary == me:
        return as_primary(snap, view, local, now)
    return as_standby(snap, view, local, now)


def _forgotten(local: Local) -> Plan:
    served = local.disk.served
    told = f"etcd has lost this cluster, which the data here has served up to term {served}; once every node is there"
    return Plan(None, f"{told}: {COMMAND}", problem=True)


def _alone(view: View, local: Local) -> Plan:
    """etcd does not answer: nothing is decided. A standby that died may come back to whom it followed."""
    inst = local.instance
    standby = view.primary != local.me and view.phase is Phase.OPEN and local.disk.promised <= view.term
    ready = inst.data is Data.PRESENT and not local.disk.copying and inst.run is Run.DOWN
    if standby and ready and (inst.job is None or inst.job.kind is not JobKind.REWIND):
        return Plan(StartStandby(None), "etcd does not answer; this standby died and comes back detached")
    return _forgotten(local) if local.forgotten else Plan(None, "etcd does not answer: everything stays as it is")
