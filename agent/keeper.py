"""The keeper of one node: a turn looks, tells, chooses one step and carries it out.

No asyncio here: a turn only awaits the interfaces of store, PostgreSQL and disk, so that a simulation can drive it and
cut it off anywhere. It is simply run again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from agent.adopt import rule_of
from agent.execute import Performer
from agent.local import Local
from agent.memory import Memory
from agent.plan import plan_next
from agent.report import make_report, worth_telling
from agent.steps import Barrier, Follow, GivePromise, HandOver, Plan, PromiseStopped, Promote
from cluster import authority
from cluster.clock import Clock
from cluster.errors import ClusterForgotten, FlypgError, OutcomeUnknown, StoreConflict, StoreUnavailable
from cluster.model import (
    Answer,
    Disk,
    Durability,
    HandoverStage,
    LeaseProof,
    Member,
    NodeReport,
    Phase,
    Rule,
    Snapshot,
    Upstream,
    unstamped,
)
from cluster.store import KeeperStore, LeaseKeeper
from postgres.instance import Instance, InstanceState, NodeDisk, Run

# Clients wait for these: done first, told afterwards.
URGENT = (Barrier, Follow, GivePromise, HandOver, Promote, PromiseStopped)
SLOW_READ_S = 0.3  # what was seen before a slow read is looked at again


class Watch(Protocol):
    """How this node finds the primary when it asks it."""

    def target(self, upstream: Upstream | None) -> None:
        """Watch this primary from now on; None: nobody."""
        ...

    def answer(self) -> Answer: ...


class FenceLine(Protocol):
    """The fence that stops this node's PostgreSQL when its authority has run out."""

    @property
    def inherited(self) -> bool:
        """Does the last order of an agent before us still stand?"""
        ...

    def arm(self, until: float) -> None: ...

    def disarm(self) -> None: ...


@dataclass(frozen=True, slots=True)
class KeeperConfig:
    ttl_s: float = 10.0
    margin_s: float = 2.0
    run: str = ""  # id of this run of the agent
    version: str = ""
    sentinel: bool = True


class Keeper:
    def __init__(
        self,
        *,
        store: KeeperStore,
        lease: LeaseKeeper,
        instance: Instance,
        disk: NodeDisk,
        clock: Clock,
        member: Member,
        watch: Watch,
        fence: FenceLine,
        log: logging.Logger,
        config: KeeperConfig,
    ) -> None:
        self.member = member
        self.snap: Snapshot | None = None
        self.fresh = False
        self.forgotten = False
        self.seen: InstanceState | None = None
        self.plan: Plan | None = None
        self.lease: LeaseProof | None = None
        self.authority_until = 0.0
        self._grace_until = clock.boottime() + config.ttl_s / 2  # until a first proof can have been had
        self.looked_at = float("-inf")  # boottime of the last look
        self.memory = Memory()
        self.problem = ""
        self.ending = False  # the agent was asked to end: what is stopped stays so, unless others need its word
        self.drained: Callable[[str], bool] = lambda request: True  # do this node's routers hold, for that switchover?
        self._store = store
        self._lease_keeper = lease
        self._instance = instance
        self._disk = disk
        self._clock = clock
        self._watch = watch
        self._fence = fence
        self._log = log
        self._config = config
        self._told: NodeReport | None = None
        self._words: Disk | None = None
        self._performer = Performer(instance, disk, store, member.node, log)

    @property
    def words(self) -> Disk | None:
        """What this node has given its durable word on; None before the first turn."""
        return self._words

    @property
    def looked_ago_s(self) -> float:
        """Seconds since the last look at PostgreSQL, which told the fence as well; inf: none yet."""
        return self._clock.boottime() - self.looked_at

    async def renew(self) -> None:
        """Renew the lease under which this node's report stands. Called every third of its ttl."""
        self.lease = await self._lease_keeper.keep_lease()
        self.rearm()  # an agent that is killed again and again may not live until its next look

    async def turn(self) -> Plan:
        """Look, tell, choose one step, carry it out. The plan says whether to look again at once."""
        if self._words is None:
            self._words = await self._disk.read()
        inst = await self._look()
        await self._read()
        if self._clock.boottime() - self.looked_at > SLOW_READ_S:
            inst = await self._look()
        self._aim()
        now = self._clock.boottime()
        self._drain(now)
        plan = plan_next(self.snap, self._local(inst), self.member, now)
        urgent = isinstance(plan.step, URGENT)
        if not urgent:
            await self._tell(inst)
        self._journal(plan)
        if plan.step is None:
            self.problem = plan.why if plan.problem else ""
            return plan
        try:
            words = await self._performer.perform(plan.step, self._words, self.memory, self.snap, now, self._announce)
        except FlypgError as error:
            self.problem = f"{plan.why}: {error}"
            self._words = await self._disk.read()
            if urgent:
                await self._tell(inst)
            raise
        self._words = words
        self.problem = ""
        took_s = self._clock.boottime() - now
        self._log.debug("step done", extra={"step": type(plan.step).__name__, "ms": round(took_s * 1000, 1)})
        if isinstance(plan.step, Barrier):
            await self._tell(inst)  # the whole cluster waits for this word
        return plan

    async def _look(self) -> InstanceState:
        began = self._clock.boottime()
        inst = await self._instance.observe()
        self.looked_at = self._clock.boottime()
        self._log.debug("look", extra={"ms": round((self.looked_at - began) * 1000, 1)})
        self.memory.update(inst, self.looked_at)
        self.seen = inst
        self._arm(inst)
        return inst

    async def _read(self) -> None:
        try:
            self.snap = await self._store.read()
            self.fresh, self.forgotten = True, False
            self.memory.forget_answered(self.snap)
        except ClusterForgotten as error:
            if not self.forgotten:
                self._log.error(str(error), extra={"term": self._words.served if self._words is not None else 0})
            self.fresh, self.forgotten = False, True
        except StoreUnavailable as error:
            if self.fresh:
                self._log.warning("etcd does not answer", extra={"error": str(error)})
            self.fresh = self.forgotten = False

    def _aim(self) -> None:
        """Point the watch at the primary there is, or is to be."""
        view = self.snap.view if self.snap is not None else None
        if view is None or view.primary in (None, self.member.node) or view.phase is Phase.FOUNDING:
            self._watch.target(None)
            return
        primary = view.member(view.primary)
        if primary is not None:
            self._watch.target(Upstream(primary.node, primary.host, primary.ports.postgres, view.term))

    def _drain(self, now: float) -> None:
        """Note since when the primary is to stop for a switchover, and whether our clients are held for it."""
        view = self.snap.view if self.snap is not None else None
        if view is None or view.handover is None or view.handover.stage is not HandoverStage.STOP:
            return
        request = view.handover.request
        if self.memory.stop_seen[0] != request:
            self.memory.stop_seen = (request, now)
        if self.drained(request):
            self.memory.drained = request

    def _local(self, inst: InstanceState) -> Local:
        assert self._words is not None, "read before"
        m = self.memory
        return Local(
            me=self.member.node,
            instance=inst,
            disk=self._words,
            fresh=self.fresh,
            forgotten=self.forgotten,
            applied=m.applied,
            barrier_term=m.barrier_term,
            ready_for=m.ready_for,
            stop_seen=m.stop_seen,
            drained=m.drained,
            roles_ready=m.roles_ready,
            promoting=m.promoting,
            asked=m.asked,
            known_end=m.known_end,
            rewound_from=m.rewound_from,
            wal_lost=m.wal_lost,
            unattached_since=m.unattached_since,
            wal_checked=m.wal_checked,
            down_since=m.down_since,
            ending=self.ending,
            last_start=m.last_start,
            waits_since=m.waits_since,
            last_job_failed=m.last_job_failed,
            restart=m.restart,
        )

    async def _tell(self, inst: InstanceState) -> None:
        """Write the report when something changed that somebody acts on, or when etcd shows another one: a write of
        ours that was given up may have been applied late, over a newer one."""
        shown = self.snap.reports.get(self.member.node) if self.fresh and self.snap is not None else self._told
        if self._told is not None and worth_telling(shown, self._told):
            self._told = None
        report = make_report(
            self.member, inst, self.snap, self.memory, self._watch.answer(), self._told, self.problem, self._config
        )
        if self.forgotten and self._words is not None:
            report = replace(report, served=self._words.served)
        if not worth_telling(self._told, report):
            return
        try:
            await self._store.report(report)
        except (StoreUnavailable, StoreConflict, OutcomeUnknown) as error:
            self._told = None
            if self.fresh:
                self._log.warning("report not written", extra={"error": str(error)})
            return
        self._told = report

    def forget_told(self) -> None:
        """The report may be gone from etcd (its lease was lost): tell again."""
        self._told = None

    async def _announce(self) -> None:
        """Say that a restart is on purpose, before it begins."""
        assert self.seen is not None
        report = make_report(
            self.member, self.seen, self.snap, self.memory, self._watch.answer(), self._told, "", self._config
        )
        await self._store.report(report)
        self._told = report

    def _arm(self, inst: InstanceState) -> None:
        """Tell the fence until when this node may be primary."""
        snap = self.snap
        if inst.run is Run.DOWN or inst.in_recovery or (snap is not None and (snap.view is None or snap.spec.paused)):
            self.authority_until = 0.0
            self._fence.disarm()
            return
        if inst.in_recovery is None and self.memory.was_standby:
            return
        rules: tuple[Rule, ...] = ()
        term = 0
        if snap is None or snap.view is None:  # found running, and etcd has not answered yet: its own rule may speak
            own = rule_of(inst.names, self.member.node)
            if own is not None and not own.lone:  # alone it could be of an asynchronous cluster: only etcd knows
                term, rules = own.term, (own,)
        elif snap.view.primary != self.member.node:
            return  # deposed: the plan stops it at once, and the last word to the fence still counts down
        else:
            term, rules = snap.view.term, snap.view.rules
        replied = {}
        for sender in inst.walsenders:
            name = unstamped(sender.name)
            if name is not None and name[1] == term and sender.state == "streaming" and sender.reply_seen_at:
                replied[name[0]] = sender.reply_seen_at
        proven = authority.valid_until(
            rules,
            self.lease,
            replied,
            margin_s=self._config.margin_s,
            window_s=self._config.ttl_s - self._config.margin_s,
            asynchronous=snap is not None and snap.spec.durability is Durability.ASYNC,
        )
        self.authority_until = max(proven, self._grace_until)
        if not proven and self._fence.inherited and (snap is None or self._clock.boottime() < self._grace_until):
            return  # the agent before us had proof until then; a restart proves nothing, and so prolongs nothing
        self._fence.arm(self.authority_until)

    def rearm(self) -> None:
        """Tell the fence anew, from the last look and the last lease: a long step must not look like a dead keeper."""
        if self.seen is not None:
            self._arm(self.seen)

    def _journal(self, plan: Plan) -> None:
        if self.plan is None or (plan.step, plan.why) != (self.plan.step, self.plan.why):
            name = type(plan.step).__name__ if plan.step is not None else "wait"
            self._log.info("plan", extra={"step": name, "why": plan.why})
        self.plan = plan
