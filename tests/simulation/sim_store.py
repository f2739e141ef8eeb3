"""A model of etcd: one linear history with revisions, compare-and-swap and leases, behind a network that loses answers.

The store is one object; each process talks to it through a `StoreClient`. A request travels, is applied (or is lost),
and its answer travels back (or is lost). A write whose answer is lost is OutcomeUnknown, and may be applied late.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from cluster.errors import OutcomeUnknown, StoreConflict, StoreUnavailable
from cluster.model import (
    Event,
    Leadership,
    LeaseProof,
    NodeId,
    NodeReport,
    Promise,
    Request,
    Snapshot,
    Spec,
    View,
)
from tests.simulation.world import STORE, SimClock, World, sleep

TTL_S = 10.0
LEADER_TTL_S = 5.0
REFRESH_S = 3.0  # what was read may be handed out again for so long, while the watch is silent
TIMEOUT_S = 1.0
KEPT_EVENTS = 200


class SimStore:
    """What a majority of etcd has agreed on."""

    def __init__(self, world: World, spec: Spec) -> None:
        self.world = world
        self.down = False  # no majority
        self.flaky = 0.0  # share of writes whose answer is lost although the network is fine
        self.revision = 1
        self.view: View | None = None
        self.view_revision = 0
        self.spec = spec
        self.spec_revision = 1
        self.reports: dict[NodeId, NodeReport] = {}
        self.promises: dict[NodeId, Promise] = {}
        self.requests: dict[str, Request] = {}
        self.leader: Leadership | None = None
        self.leader_lease = ""
        self.leases: dict[str, float] = {}  # owner -> when it ends
        self.report_lease: dict[NodeId, str] = {}
        self.history: list[Event] = []
        self.watchers: list[Callable[[str], None]] = []  # told what kind of key has changed
        self.on_view: Callable[[View | None, View], None] = lambda old, new: None
        self.on_promise: Callable[[Promise], None] = lambda promise: None
        self._snapshot: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = Snapshot(
                revision=self.revision,
                view=self.view,
                view_revision=self.view_revision,
                spec=self.spec,
                spec_revision=self.spec_revision,
                reports=dict(self.reports),
                promises=dict(self.promises),
                requests=tuple(sorted(self.requests.values(), key=lambda r: r.created_revision)),
                leader=self.leader,
            )
        return self._snapshot

    def changed(self, kind: str) -> None:
        self.revision += 1
        self._snapshot = None
        for watcher in self.watchers:
            watcher(kind)

    # -- leases ---------------------------------------------------------------------------------

    def renew(self, owner: str, ttl_s: float = TTL_S) -> None:
        if owner not in self.leases:
            self.world.after(ttl_s + 0.01, self._expire, owner)
        self.leases[owner] = self.world.now + ttl_s

    def _expire(self, owner: str) -> None:
        ends = self.leases.get(owner)
        if ends is None:
            return
        if self.down or ends > self.world.now:  # an election of etcd gives every lease its whole time again
            self.world.after(max(ends - self.world.now, 0.2) + 0.01, self._expire, owner)
            return
        self.end_lease(owner)

    def end_lease(self, owner: str) -> None:
        self.leases.pop(owner, None)
        if self.leader is not None and self.leader_lease == owner:
            self.leader = None
            self.world.say(STORE, f"the lead of {owner} has ended")
            self.changed("leader")
        for node, held in list(self.report_lease.items()):
            if held == owner:
                del self.report_lease[node]
                self.reports.pop(node, None)
                self.world.say(STORE, f"the report of {node} has expired")
                self.changed("report")

    def set_down(self, down: bool) -> None:
        self.down = down
        if not down:
            for owner in self.leases:
                self.leases[owner] = self.world.now + TTL_S

    # -- writes, as applied ---------------------------------------------------------------------

    def put_report(self, owner: str, report: NodeReport) -> None:
        if owner not in self.leases:
            self.renew(owner)
        self.report_lease[report.node] = owner
        if self.reports.get(report.node) != report:
            self.reports[report.node] = report
            self.changed("report")

    def put_promise(self, promise: Promise) -> None:
        known = self.promises.get(promise.node)
        if known is not None and known.term > promise.term:
            return
        if known != promise:
            self.promises[promise.node] = promise
            self.on_promise(promise)
            self.changed("promise")

    def close(self, request: str, outcome: str) -> None:
        known = self.requests.get(request)
        if known is not None and not known.outcome:
            self.requests[request] = dataclasses.replace(known, outcome=outcome)
            self.world.say(STORE, f"request {request}: {outcome}")
            self.changed("request")

    def put_view(
        self,
        view: View,
        read_at: int,
        leader: Leadership,
        events: tuple[Event, ...],
        outcomes: tuple[tuple[str, str], ...],
    ) -> None:
        if self.view_revision != read_at:
            raise StoreConflict(f"the view changed after revision {read_at}")
        if self.leader != leader:
            raise StoreConflict(f"{leader.sentinel} does not lead any more")
        old, self.view = self.view, view
        self.on_view(old, view)
        self.view_revision = self.revision + 1
        self.history.extend(events)
        del self.history[:-KEPT_EVENTS]
        for request, outcome in outcomes:
            known = self.requests.get(request)
            if known is not None and not known.outcome:
                self.requests[request] = dataclasses.replace(known, outcome=outcome)
                self.world.say(STORE, f"request {request}: {outcome}")
        self.changed("view")

    def campaign(self, owner: str, name: str, first: bool) -> Leadership | None:
        if self.leader is not None:
            if self.leader_lease == owner:
                return self.leader
            if self.leader.sentinel != name or not first:
                return None  # else an earlier run of this very sentinel
        self.renew(owner, LEADER_TTL_S)
        self.leader = Leadership(name, self.revision + 1)
        self.leader_lease = owner
        self.world.say(STORE, f"{owner} leads")
        self.changed("leader")
        return self.leader

    def resign(self, leader: Leadership) -> None:
        if self.leader == leader:
            self.leader = None
            self.changed("leader")

    def put_spec(self, spec: Spec) -> None:
        self.spec = spec
        self.spec_revision = self.revision + 1
        self.changed("spec")

    def add_request(self, request: Request) -> None:
        self.requests[request.id] = dataclasses.replace(request, created_revision=self.revision + 1)
        self.changed("request")


class StoreClient:
    """The store as one run of an agent reaches it: KeeperStore, SentinelStore, OperatorStore and LeaseKeeper.

    Reads are shared and cached as in agent/reader.py: while the watch has said nothing, the last answer is given again.
    """

    def __init__(self, store: SimStore, node: str, owner: str, clock: SimClock) -> None:
        self.store = store
        self.world = store.world
        self.node = node
        self.owner = owner  # of its lease: this run of the agent
        self.clock = clock
        self.last_read: Snapshot | None = None
        self.read_at = float("-inf")
        self.dirty = True
        self._first_campaign = True
        self._last_report: NodeReport | None = None

    def reachable(self) -> bool:
        return not self.store.down and self.world.talk(self.node, STORE)

    async def read(self) -> Snapshot:
        world = self.world
        if self.last_read is not None and not self.dirty and self.clock.boottime() - self.read_at < REFRESH_S:
            return self.last_read
        self.dirty = False
        try:
            sent_at = self.clock.boottime()
            await sleep(world.latency())
            if not self.reachable():
                await sleep(TIMEOUT_S)
                raise StoreUnavailable("the store does not answer")
            snapshot = self.store.snapshot()
            await sleep(world.latency())
            if not self.reachable():
                await sleep(TIMEOUT_S)
                raise StoreUnavailable("the store's answer was lost")
        except StoreUnavailable:
            self.dirty = True
            raise
        self.read_at = sent_at
        self.last_read = snapshot
        return snapshot

    async def _write(self, apply: Callable[[], object]) -> object:
        """Send a write. It may be applied although the answer is lost, and even after the sender has given up."""
        try:
            return await self._send(apply)
        finally:
            self.dirty = True

    async def _send(self, apply: Callable[[], object]) -> object:
        world = self.world
        await sleep(world.latency())
        if not self.reachable():
            if world.chance(0.2):
                world.after(world.between(0.0, 2 * TIMEOUT_S), self._late, apply)
            await sleep(TIMEOUT_S)
            raise OutcomeUnknown("the store does not answer")
        if self.store.flaky and world.chance(self.store.flaky):
            if world.chance(0.5):
                self._late(apply)
            await sleep(TIMEOUT_S)
            raise OutcomeUnknown("the store's answer was lost")
        try:
            answer = apply()
        except StoreConflict:
            await sleep(world.latency())
            raise
        await sleep(world.latency())
        if not self.reachable():
            await sleep(TIMEOUT_S)
            raise OutcomeUnknown("the store's answer was lost")
        return answer

    def _late(self, apply: Callable[[], object]) -> None:
        if self.store.down:
            return
        try:
            apply()
        except StoreConflict:
            self.world.say(STORE, "a late write of a loser came to nothing")

    async def report(self, report: NodeReport) -> None:
        self._last_report = report
        await self._write(lambda: self.store.put_report(self.owner, report))

    async def promise(self, promise: Promise) -> None:
        await self._write(lambda: self.store.put_promise(promise))

    async def close_request(self, request: str, outcome: str) -> None:
        await self._write(lambda: self.store.close(request, outcome))

    async def put_view(
        self,
        view: View,
        *,
        read_at: int,
        leader: Leadership,
        events: tuple[Event, ...] = (),
        outcomes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        await self._write(lambda: self.store.put_view(view, read_at, leader, events, outcomes))

    async def campaign(self) -> Leadership | None:
        first, self._first_campaign = self._first_campaign, False
        answer = await self._write(lambda: self.store.campaign(f"sentinel {self.owner}", self.node, first))
        assert answer is None or isinstance(answer, Leadership)
        return answer

    async def keep_leadership(self) -> bool:
        def apply() -> bool:
            held = f"sentinel {self.owner}" in self.store.leases
            if held:
                self.store.renew(f"sentinel {self.owner}", LEADER_TTL_S)
            return held

        return bool(await self._send(apply))

    async def resign(self, leader: Leadership) -> None:
        await self._write(lambda: self.store.resign(leader))

    async def put_spec(self, spec: Spec, *, read_at: int, events: tuple[Event, ...] = ()) -> None:
        def apply() -> None:
            if self.store.spec_revision != read_at:
                raise StoreConflict("the spec has changed")
            self.store.put_spec(spec)

        await self._write(apply)

    async def add_request(self, request: Request) -> None:
        await self._write(lambda: self.store.add_request(request))

    async def read_request(self, request: str) -> Request | None:
        await self.read()
        return self.store.requests.get(request)

    async def read_events(self, last: int) -> list[Event]:
        await self.read()
        return self.store.history[-last:]

    async def keep_lease(self) -> LeaseProof:
        """A lease under which no report stands proves nothing: the others could not see it."""
        report = self._last_report

        def apply() -> bool:
            if report is not None and self.owner not in self.store.leases:
                self.store.put_report(self.owner, report)
            self.store.renew(self.owner)
            return self.store.report_lease.get(NodeId(self.node)) == self.owner

        asked_at = self.clock.boottime()
        attached = await self._send(apply)
        return LeaseProof(asked_at, TTL_S if attached else 0.0)
