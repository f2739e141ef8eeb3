"""One node: everything an agent runs, put together, and the tasks that keep it going."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Never

from agent.fence import Fence
from agent.keeper import Keeper, KeeperConfig
from agent.loops import Wake, fence_loop, keeper_loop, leadership_loop, lease_loop, sentinel_loop
from agent.node_tls import certificates_of, stats_of
from agent.pooling import Pooling, access_loop, handing_over
from agent.provider import NodeProvider
from agent.reader import AsItIs, SharedStore
from agent.region import seed_region
from agent.routing.haproxy import HAProxy
from agent.routing.haproxy_config import door
from agent.routing.target import choose_route
from agent.seeding import RepositorySeeder
from agent.slots import slots_loop
from agent.wiring import Parts
from backups.notes import Notes
from backups.service import BackupService
from cluster.clock import SystemClock
from cluster.errors import FlypgError
from cluster.model import Answer, Snapshot, Upstream, Verdict, View
from healthchecks.server import HttpServer
from postgres.config import OPERATOR
from postgres.disk import StateFile
from postgres.instance import Run
from postgres.server import LocalInstance
from postgres.watch import PrimaryWatch, Target
from sentinel.turn import Sentinel

if TYPE_CHECKING:
    from agent.drills import NodeDrills

ROUTING_TICK_S = 5.0


class WatchLine:
    """The keeper's view of the watch on the primary."""

    def __init__(self, watch: PrimaryWatch) -> None:
        self._watch = watch

    def target(self, upstream: Upstream | None) -> None:
        self._watch.watch(
            Target(upstream.term, upstream.node, upstream.host, upstream.port) if upstream is not None else None
        )

    def answer(self) -> Answer:
        verdict = self._watch.verdict
        return verdict.answer if verdict is not None else Answer.UNKNOWN


class FenceForInstance:
    """The keeper's view of the fence: it knows which postmaster is meant."""

    def __init__(self, fence: Fence, instance: LocalInstance) -> None:
        self._fence = fence
        self._instance = instance

    @property
    def inherited(self) -> bool:
        return self._fence.inherited

    def arm(self, until: float) -> None:
        pid = self._instance.postmaster_pid
        if pid is None:
            self._fence.disarm()
        else:
            self._fence.arm(until, pid)

    def disarm(self) -> None:
        self._fence.disarm()


class Node:
    """The parts of an agent. `start` brings them up, `tasks` are its loops, `stop` ends what is to end with it."""

    def __init__(self, parts: Parts, log: logging.Logger) -> None:
        self.parts = parts
        self.log = log
        self.clock = SystemClock()
        self.keeper_wake, self.sentinel_wake, self.routing_wake = Wake(), Wake(), Wake()
        self.store = SharedStore(parts.store, self.clock, self._changed)
        self.instance = LocalInstance(parts.instance, self.clock, parts.member.node)
        self.fence = Fence(parts.instance.run, on_fired=lambda _: self.keeper_wake.ring())
        self.watch = PrimaryWatch(
            {"user": OPERATOR, "password": parts.instance.passwords.operator},
            stream_age=self.instance.stream_age_s,
            on_change=self._watched,
        )
        self.watch.security = parts.instance.tls.parameters
        self.haproxy = HAProxy(parts.haproxy)
        self.keeper = Keeper(
            store=self.store,
            lease=self.store,
            instance=self.instance,
            disk=StateFile(parts.state_file),
            clock=self.clock,
            member=parts.member,
            watch=WatchLine(self.watch),
            fence=FenceForInstance(self.fence, self.instance),
            log=logging.getLogger("flypg.keeper"),
            config=KeeperConfig(parts.ttl_s, parts.margin_s, secrets.token_hex(4), parts.version, parts.sentinel),
        )
        self.pooling = Pooling(
            parts.pooler,
            parts.member.node,
            door(parts.haproxy),
            self.clock,
            self.fence.unpause,
            self.keeper_wake.ring,
            self.fence.pause_at_death,
        )
        self.fence.on_paused = self.pooling.paused
        self.keeper.drained = self.pooling.drained
        self.store.served = lambda: self.keeper.words is None or self.keeper.words.served > 0
        self.watch.on_contact = self._contact
        self.watch.alarm, self.watch.on_alarm = self.pooling.to_pause, self.pooling.paused
        self.instance.on_change = self._instance_changed
        self.sentinel = Sentinel(AsItIs(self.store), self.clock, parts.member.node, logging.getLogger("flypg.sentinel"))
        self.provider = NodeProvider(
            cluster=parts.cluster,
            keeper=self.keeper,
            store=self.store,
            fence=self.fence,
            clock=self.clock,
            instance=parts.instance,
            restart_routing=self.restart_routing,
            ttl_s=parts.ttl_s,
        )
        notes = Notes(parts.etcd, parts.cluster, self._revision)
        self.backups = BackupService(
            parts.backups, parts.facts, notes, lambda: self.store.snapshot, written=self.provider.written
        )
        self.provider.backups = self.backups.status
        if parts.backups.seed:
            self.instance.seed_with(RepositorySeeder(parts.backups, parts.facts, notes))
        self.provider.pools = self.pooling.stats
        self.provider.programs = self._programs
        self.drills = self._drills()
        self.provider.switched_on = self.drills
        self.http = HttpServer(parts.http, self.provider, parts.version)
        self.certificates = certificates_of(parts, self.clock, lambda: self.store.snapshot, self._apply_tls)
        self.provider.certificate_stats = stats_of(self.certificates, self.clock)
        self._routed: object = None

    def _programs(self) -> tuple[str, ...]:
        pooler = self.pooling.pooler
        return self.haproxy.trouble, pooler.trouble if pooler is not None else ""

    def _revision(self) -> int:
        return self.store.snapshot.revision if self.store.snapshot is not None else 0

    def _drills(self) -> NodeDrills | None:
        if self.parts.drills is None:
            return None
        from agent.drills import NodeDrills  # for those who switch them on

        return NodeDrills(self.parts.drills, self.clock, lambda: self.store.snapshot)

    def _changed(self) -> None:
        self.routing_wake.ring()
        self.keeper_wake.ring()
        self.sentinel_wake.ring()

    def _contact(self, term: int, there: bool) -> None:
        """The watch has lost its connection to the primary, or has found it again."""
        if there:
            self.pooling.certain(term)
        else:
            self.pooling.doubt(term)

    def _instance_changed(self) -> None:
        self.keeper_wake.ring()
        if self.instance.postmaster_pid is None:
            self.pooling.ended(self.parts.member.node)

    def _serves(self, view: View) -> bool:
        """Is this node the primary, and does it let clients in?"""
        seen = self.keeper.seen
        here = view.primary == self.parts.member.node and self.instance.postmaster_pid is not None
        return here and seen is not None and seen.run is Run.UP and seen.gate_open and seen.in_recovery is False

    def _watched(self, verdict: Verdict) -> None:
        """How the primary is found has changed."""
        self.routing_wake.ring()
        self.keeper_wake.ring()

    async def start(self) -> None:
        """Bring up what serves before the first turn. Raises FlypgError when a part cannot be started."""
        await self.fence.start()
        await self.haproxy.start()
        await self.pooling.start()
        await self.http.start()

    def tasks(self) -> list[Coroutine[Any, Any, Any]]:
        parts = self.parts
        tasks: list[Coroutine[Any, Any, Any]] = [
            keeper_loop(self.keeper, self.keeper_wake, self.log, self._after_turn),
            lease_loop(self.keeper, parts.renew_s, self.log),
            fence_loop(self.keeper),
            parts.store.follow(self.store.told),
            self.store.recover(),
            self.watch.run(),
            self.certificates.run(),
            self._routing_loop(),
            slots_loop(self.keeper, self.instance, parts.instance, self.log),
            access_loop(self.keeper, parts.instance, parts.pooler, self.log),
            self.backups.run(),
            seed_region(self.store, parts.primary_region, self.log),
        ]
        if self.drills is not None:
            tasks.append(self.drills.run())
        if parts.sentinel:
            log = logging.getLogger("flypg.sentinel")
            tasks.append(sentinel_loop(self.sentinel, self.sentinel_wake, log))
            tasks.append(leadership_loop(self.store, self.sentinel, parts.sentinel_ttl_s / 3, log))
        return tasks

    async def _after_turn(self) -> None:
        self.routing_wake.ring()
        self.backups.look()
        self.http.wake()

    async def _routing_loop(self) -> Never:
        """Routers follow what is agreed at once, also while a long step of the keeper runs."""
        while True:
            await self.routing_wake.wait(ROUTING_TICK_S)
            try:
                snap = await self.store.read()
            except FlypgError:
                pass  # everything stays as it is
            else:
                await self._route(snap)
            self._look_here()

    def _look_here(self) -> None:
        """A primary of this node that is back, also without etcd."""
        view = self.store.snapshot.view if self.store.snapshot is not None else None
        if view is not None and self._serves(view):
            self.pooling.certain(view.term)

    async def _route(self, snap: Snapshot) -> None:
        self.watch.suspect_after_s = snap.spec.suspect_after_s
        route = choose_route(snap.view, snap.reports, snap.spec, self.parts.member.node)
        if route.primary is None:  # the pooler first: what HAProxy cuts off may be a login of its own
            self.pooling.route(snap, there=False)
            if handing_over(snap):
                await self.pooling.holding()
        if route != self._routed:
            await self.haproxy.route(route)
            self._routed = route
            self.log.info("route", extra={"to": str(route.primary or "held"), "why": route.why})
        self.pooling.route(snap, there=route.primary is not None)

    async def _apply_tls(self) -> None:
        """Another certificate, or others to trust: for new connections from now on."""
        await self.instance.apply_tls()
        self.pooling.refresh()

    async def restart_routing(self) -> None:
        """Restart HAProxy; every session through it ends."""
        await self.haproxy.stop()
        await self.haproxy.start()
        self._routed = None
        self.routing_wake.ring()

    async def stop(self, *, leave_running: bool) -> None:
        """End what is this agent's. `leave_running`: PostgreSQL, HAProxy and the fence go on for the next agent."""
        await asyncio.gather(self.http.stop(), return_exceptions=True)
        if leave_running:
            await self.haproxy.abandon()
            await self.pooling.abandon()
            await self.fence.abandon()
        else:
            await self.backups.stop()
            await self.haproxy.stop()
            await self.pooling.stop()
            await self.fence.stop()
        await self.instance.close()
        await self.parts.etcd.close()
