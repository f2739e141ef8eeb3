"""What a node does that is not primary: promise, follow, rewind, copy. Pure."""

from __future__ import annotations

from agent.local import Local
from agent.plan_primary import slots_differ
from agent.steps import (
    CheckWal,
    CloseRequest,
    Copy,
    CopyDone,
    Follow,
    GivePromise,
    KeepSlots,
    OpenGate,
    Plan,
    Publish,
    Restart,
    Rewind,
    StartStandby,
    Stop,
)
from cluster.lineage import on_line
from cluster.model import HandoverStage, NodeId, Phase, Position, RequestKind, ServerState, Snapshot, Upstream, View
from postgres.instance import Data, InstanceState, JobKind, Run

JOB_PAUSE_S = 10.0  # before a copy that failed is tried again
DEPOSED_WAIT_S = 1.5  # for the others to open the next term before the old primary comes back
HUNG_MAX_S = 30.0
ALONE_MAX_S = 10.0  # of recovery without a primary to receive from; after that it is taken to lack WAL
UNATTACHED_S = 5.0  # a standby that has not streamed for so long asks whether its WAL is still there, …
ASK_AGAIN_S = 30.0  # … and again after this


def upstream_at(view: View, node: NodeId | None) -> Upstream | None:
    member = view.member(node)
    return Upstream(member.node, member.host, member.ports.postgres, view.term) if member is not None else None


def _while_others_take_over(view: View, local: Local, now: float) -> Plan | None:
    """Crash recovery of the old primary can wait: as a rule the others need neither its word nor the disk and the
    processors it may share with them."""
    since = local.down_since
    if view.phase is Phase.OPEN or view.deposed != local.me or since is None or now - since >= DEPOSED_WAIT_S:
        return None
    if view.phase is Phase.PROMOTING and view.rule is not None and local.me in view.rule.voters:
        return None
    return Plan(None, f"it starts when term {view.term} is open, or in {DEPOSED_WAIT_S:g} s")


def _can_promise(view: View, local: Local, now: float) -> Plan | None:
    """What must happen before this node can say where it stands; None when it can."""
    inst = local.instance
    if inst.data is not Data.PRESENT or local.disk.copying:
        return Plan(None, "no complete data: this node has nothing to promise")
    if inst.run is Run.DOWN:
        return _while_others_take_over(view, local, now) or Plan(
            StartStandby(None), "start detached, to see where this node's WAL ends"
        )
    if inst.run is Run.STARTING:
        return Plan(None, "PostgreSQL is starting", soon=True)
    if inst.run is Run.HUNG:
        return Plan(None, "PostgreSQL does not answer: it cannot promise", problem=True)
    if inst.in_recovery is False:
        return Plan(Stop(fast=False), "its term is over: stop at once")
    if inst.position is None:
        return Plan(None, "its position is not known yet", soon=True)
    if local.disk.floor is not None and inst.position < local.disk.floor:
        return Plan(
            None, f"at {inst.position}, below its floor {local.disk.floor}: it may lack what it once acknowledged"
        )
    return None


def promise_for(snap: Snapshot, view: View, local: Local, now: float) -> Plan:
    """While a term is being opened: detach, and say where this node stands."""
    given = local.disk.promise
    if local.disk.promised > view.term:
        return _publish(snap, local) or Plan(None, f"this node has promised term {local.disk.promised} already")
    if (first := _can_promise(view, local, now)) is not None:
        return first
    fetch = view.fetch
    if fetch is not None and fetch.node == local.me and given is not None and given.position < fetch.until:
        source = upstream_at(view, fetch.source)
        position = local.instance.position
        assert position is not None, "it can promise"
        if position >= fetch.until:
            return Plan(GivePromise(view.term), f"has what {fetch.source} had: promise again with it")
        if source is not None and local.instance.upstream != source:
            return Plan(Follow(source), f"fetch what {fetch.source} has up to {fetch.until}")
        return Plan(None, f"fetching from {fetch.source} up to {fetch.until}", soon=True)
    serving = fetch is not None and fetch.source == local.me
    if given is None or given.term < view.term:
        return Plan(GivePromise(view.term), f"term {view.term}: {view.cause}")
    if local.instance.upstream is not None and local.instance.upstream.term == view.term:
        return Plan(GivePromise(view.term), "it fetches no more: promise again with what it has got")
    if (told := _publish(snap, local)) is not None:
        return told
    return Plan(
        None, f"promised term {view.term} at {given.position}" + ("; others fetch from here" if serving else "")
    )


def _publish(snap: Snapshot, local: Local) -> Plan | None:
    if local.disk.promise is not None and snap.promises.get(local.me) != local.disk.promise:
        return Plan(Publish(), "etcd does not show the promise that is on disk")
    return None


def as_standby(snap: Snapshot, view: View, local: Local, now: float) -> Plan:
    """Follow the primary of this term."""
    inst = local.instance
    upstream = upstream_at(view, view.primary)
    if upstream is None:
        return Plan(None, f"the primary {view.primary} is not among the members", problem=True)
    if local.disk.promised > view.term and not _handing_over(view, local):
        return Plan(None, f"this node has promised term {local.disk.promised}: it does not follow term {view.term}")
    if (asked := _requests(snap, view, local)) is not None:
        return asked
    job = inst.job
    if (
        job is not None
        and job.error
        and local.last_job_failed is not None
        and now - local.last_job_failed < JOB_PAUSE_S
    ) and job.kind is not JobKind.REWIND:
        return Plan(None, f"{job.kind.value} failed: {job.error}", problem=True)
    if inst.data is not Data.PRESENT or local.disk.copying:
        return _copy(snap, view, local, upstream)
    if inst.run is Run.DOWN:
        return _while_others_take_over(view, local, now) or _start(snap, view, local, upstream)
    if inst.run is Run.STARTING:
        return _starting(snap, view, local, upstream, now)
    if inst.run is Run.HUNG:
        if local.down_since is not None and now - local.down_since > HUNG_MAX_S:
            return Plan(Stop(fast=False), f"it has not answered for {HUNG_MAX_S:g} s: start it anew")
        return Plan(None, "PostgreSQL does not answer", problem=True)
    if inst.in_recovery is False:
        return Plan(
            Stop(fast=False), f"it runs as primary, but {view.primary} is primary of term {view.term}: stop at once"
        )
    if inst.position is None:
        return Plan(None, "its position is not known yet", soon=True)
    if not on_line(view.branches, inst.position, view.timeline):
        return Plan(Stop(fast=False), f"at {inst.position} its history has left the line of timeline {view.timeline}")
    return _attached(snap, view, local, upstream, now)


def _starting(snap: Snapshot, view: View, local: Local, upstream: Upstream, now: float) -> Plan:
    """Recovery takes as long as it takes, unless it waits for what does not come. Until it is consistent it answers
    nobody, so that nothing can be asked of it."""
    inst = local.instance
    waits = local.waits_since is not None and now - local.waits_since > ALONE_MAX_S
    if inst.upstream != upstream:
        if local.disk.floor is not None and waits:
            return Plan(Stop(fast=False), f"it waits for WAL up to {local.disk.floor}, which {upstream.node} has")
    elif (reached := _off_the_line(view, local)) is not None:
        return Plan(
            Stop(fast=False), f"its recovery was at {reached} before, which is not on the line: it cannot go on"
        )
    elif local.wal_lost and _may_be_remade(snap, view, local.me):
        return Plan(Stop(fast=False), f"{upstream.node} has not got the WAL any more that it needs: copy it afresh")
    elif waits and _may_ask(local, now) and _may_be_remade(snap, view, local.me):
        return Plan(CheckWal(upstream), f"it does not come up: has {upstream.node} still got the WAL it needs?")
    return Plan(None, "PostgreSQL is starting", soon=True)


def _off_the_line(view: View, local: Local) -> Position | None:
    """How far recovery of this data had come when it was broken off, if that is beyond the fork of this timeline."""
    control = local.instance.control
    reached = control.min_recovery if control is not None else None
    return reached if reached is not None and not on_line(view.branches, reached, view.timeline) else None


def _handing_over(view: View, local: Local) -> bool:
    return view.handover is not None and view.handover.target == local.me


def _may_be_remade(snap: Snapshot, view: View, me: NodeId) -> bool:
    """May this node's data be given up for that of the primary? Not before the term is open, lest a failover needs it;
    unless the new primary may wait for this node, as a voter: then its term might never be opened. Where several voters
    are off the line at once, all of them may be remade, though one would do."""
    if view.phase is Phase.OPEN:
        return True
    source = snap.reports.get(view.primary) if view.primary else None
    there = source is not None and source.state is ServerState.PRIMARY and source.term == view.term
    return view.phase is Phase.PROMOTING and there and view.rule is not None and me in view.rule.voters


def _copy(snap: Snapshot, view: View, local: Local, upstream: Upstream) -> Plan:
    inst = local.instance
    job = inst.job
    if local.disk.copying and inst.data is Data.PRESENT and job is not None and not job.error:
        return Plan(CopyDone(), f"the {job.kind.value} is complete")
    if inst.run is not Run.DOWN:
        return Plan(Stop(fast=False), "it is to be copied afresh")
    if not _may_be_remade(snap, view, local.me):
        return Plan(None, f"a copy begins when term {view.term} is open")
    return Plan(Copy(upstream), f"copy the data of {upstream.node}")


def _start(snap: Snapshot, view: View, local: Local, upstream: Upstream) -> Plan:
    inst = local.instance
    control = inst.control
    if local.ending and view.phase is Phase.OPEN:  # else the others may need to know where its WAL ends
        return Plan(None, "this agent ends: PostgreSQL stays as it is")
    if inst.job is not None and inst.job.kind is JobKind.REWIND and inst.job.error:
        if _may_be_remade(snap, view, local.me):
            return Plan(Copy(upstream), f"rewinding failed ({inst.job.error}): copy afresh")
        return Plan(None, f"a copy begins when term {view.term} is open")
    if local.wal_lost and _may_be_remade(snap, view, local.me):
        again = inst.job is not None and bool(inst.job.seeded)  # the repository led to nothing, and would again
        why = f"{upstream.node} has not got the WAL any more that this node needs: copy afresh"
        return Plan(Copy(upstream, seed=not again), why)
    if control is not None and control.clean_primary:
        end: Position | None = control.stopped_at
    else:
        end = _off_the_line(view, local) or local.known_end  # from there PostgreSQL would not go on, ever
    if end is not None and not on_line(view.branches, end, view.timeline):
        source = snap.reports.get(upstream.node)
        ready = source is not None and source.checkpoint_timeline == view.timeline
        if not ready or not _may_be_remade(snap, view, local.me):
            return Plan(
                None, f"{upstream.node} is not ready to be rewound from (its control file shows an older timeline)"
            )
        if end == local.rewound_from:
            return Plan(Copy(upstream), f"rewinding found nothing to do at {end}, yet it is off the line: copy afresh")
        return Plan(Rewind(upstream), f"its WAL ended at {end}, beyond the fork of timeline {view.timeline}")
    if control is not None and control.clean_primary:
        return Plan(StartStandby(upstream), f"stopped in order at {end}: it follows {upstream.node}")
    if local.disk.floor is not None and not _was_primary(inst):  # made anew: alone it might never let anybody in
        return Plan(StartStandby(upstream), f"it needs WAL up to {local.disk.floor} from {upstream.node}")
    return Plan(StartStandby(None), "start detached, to see where this node's WAL ends")


def _was_primary(inst: InstanceState) -> bool:
    """Is it a primary's own data, as it was left by a crash? Then it has all the WAL it needs. A fresh copy is not,
    though its control file says so: that is its source's."""
    return inst.control is not None and inst.control.crashed_primary and not inst.fresh_copy


def _attached(snap: Snapshot, view: View, local: Local, upstream: Upstream, now: float) -> Plan:
    inst, handover = local.instance, view.handover
    if handover is not None and handover.target == local.me and handover.stage is HandoverStage.STOP:
        given = snap.promises.get(view.primary) if view.primary else None
        if local.disk.promised <= view.term and given is not None and given.term > view.term:
            if inst.streaming and inst.position is not None and inst.position < given.position:
                return Plan(None, f"{view.primary} has stopped at {given.position}: its last WAL is coming", soon=True)
            return Plan(GivePromise(given.term), f"{view.primary} has stopped: take over from it")
        return _publish(snap, local) or Plan(None, f"waiting for {view.primary} to stop", soon=True)
    if local.disk.promised > view.term:
        return Plan(None, f"this node has promised term {local.disk.promised}: it does not follow term {view.term}")
    if local.wal_lost and _may_be_remade(snap, view, local.me):
        return Plan(Stop(fast=True), f"{upstream.node} has not got the WAL any more that it needs: copy it afresh")
    if inst.upstream != upstream:
        return Plan(Follow(upstream), f"{upstream.node} is primary of term {view.term}")
    if not inst.gate_open and view.phase is Phase.OPEN:
        return Plan(OpenGate(), "its history is the line: readers may come in")
    if local.restart is not None and local.restart.stopped:
        return Plan(CloseRequest(local.restart.request, f"done: {local.me} was restarted"), "the restart is done")
    others = frozenset(m.node for m in view.members if m.node != local.me)
    if slots_differ(inst.slots, others):
        return Plan(KeepSlots(others), "a slot for each member")
    if not inst.streaming and _is_overdue(local, now) and _may_be_remade(snap, view, local.me):
        return Plan(CheckWal(upstream), f"it does not stream: has {upstream.node} still got the WAL it needs?")
    if not inst.streaming:
        return Plan(None, f"attached to {upstream.node}, not streaming yet")
    return Plan(None, f"standby of {upstream.node} in term {view.term}")


def _is_overdue(local: Local, now: float) -> bool:
    """Has it not streamed for so long that its upstream is to be asked, and was not asked lately?"""
    since = local.unattached_since
    return since is not None and now - since > UNATTACHED_S and _may_ask(local, now)


def _may_ask(local: Local, now: float) -> bool:
    return local.wal_checked is None or now - local.wal_checked > ASK_AGAIN_S


def _requests(snap: Snapshot, view: View, local: Local) -> Plan | None:
    inst = local.instance
    for request in snap.requests:
        if request.node != local.me or request.outcome or view.phase is not Phase.OPEN:
            continue
        begun = local.restart is not None and local.restart.stopped
        if request.kind is RequestKind.RESTART and not begun and inst.run is Run.UP:
            return Plan(Restart(request.id), f"restart, asked for by {request.asked_by}")
        if request.kind is RequestKind.RECLONE and not local.disk.copying:
            source = snap.reports.get(view.primary) if view.primary else None
            if source is None or source.state is not ServerState.PRIMARY:
                continue
            if inst.run is not Run.DOWN:
                return Plan(Stop(fast=True), f"to be copied afresh, asked for by {request.asked_by}")
            target = upstream_at(view, view.primary)
            assert target is not None
            return Plan(Copy(target), f"copy afresh, asked for by {request.asked_by}")
    return None
