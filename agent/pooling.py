"""The pooler as a part of the agent: when its clients are held, what it needs to know of users, how it is doing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Never

from agent.keeper import Keeper
from agent.routing.pooler import LastWill, Pooler
from agent.routing.pooler_admin import Rows
from agent.routing.pooler_config import PoolerSettings
from agent.routing.target import Address, address_of
from cluster.clock import Clock
from cluster.errors import CommandFailed, FlypgError
from cluster.model import HandoverStage, NodeId, Phase, Snapshot
from cluster.pool import PoolMode, modes
from healthchecks.provider import PoolerStats, PoolStats
from postgres import roles
from postgres.config import InstanceConfig
from postgres.connection import Connection, connect_local
from postgres.doors import Doors
from postgres.instance import Run

HOLD_WITHIN_S = 0.1
STRAIGHT_AFTER_S = 2.0
ACCESS_TICK_S = 0.5  # what is compared was read by the keeper: it costs nothing
ACCESS_EVERY_S = 60.0
ACCESS_RETRY_S = 3.0
ACCESS_WITHIN_S = 20.0
STATS_AGE_S = 5.0


class Pooling:
    """This node's pooler, if there is one.

    It connects through this node's HAProxy, which never refuses: while there is no primary, a connection of the
    pooler waits there like any other client's. On the primary's own node it goes straight to the server after a
    while, which spares it the proxy; what HAProxy cuts off when the primary changes, the end of that server cuts off
    too. Clients are held in the pooler itself while there is no primary, for a planned change when transactions are
    to end first, and from the moment the primary seems to have died: a login of the pooler that died with it makes
    PgBouncer turn clients away (see pooler_release.py).
    """

    def __init__(
        self,
        settings: PoolerSettings | None,
        me: NodeId,
        door: Address,
        clock: Clock,
        last_will: LastWill,
        on_drained: Callable[[], None],
        pause_at_death: Callable[[int], None] = lambda pid: None,
    ) -> None:
        """`door`: HAProxy's address for the primary. The rest: see Pooler."""
        self._me = me
        self._door = door
        self._clock = clock
        self._led_since: tuple[int, float] | None = None  # the term in which clients are led, and since when
        self.pooler = (
            Pooler(settings, clock, last_will, on_drained, pause_at_death, door) if settings is not None else None
        )
        self._handover = False  # clients wait for a planned change
        self._doubt: int | None = None  # the term whose primary has gone away, as it seems
        self._last: tuple[Snapshot, bool] | None = None  # what `route` was told
        self._sessions = True  # every pool is in session mode: a hold does not drain
        self._stats: PoolerStats | None = None
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._log = logging.getLogger("flypg.pooler")

    async def start(self) -> None:
        """Without a pooler the cluster serves all the same: what fails is logged."""
        if self.pooler is not None:
            try:
                await self.pooler.start()
            except (CommandFailed, OSError) as error:
                self._log.error("no pooler", extra={"error": str(error)})

    async def stop(self) -> None:
        await self._end_asking()
        if self.pooler is not None:
            await self.pooler.stop()

    async def abandon(self) -> None:
        await self._end_asking()
        if self.pooler is not None:
            await self.pooler.abandon()

    def refresh(self) -> None:
        """The node's certificate, or whom it trusts, has changed."""
        if self.pooler is not None:
            self.pooler.refresh()

    def route(self, snap: Snapshot, *, there: bool) -> None:
        """Pooled clients go to the primary, wherever that is, and wait while there is none: in a planned change from
        when the old one stops. `there`: HAProxy leads to one."""
        view = snap.view
        if self.pooler is None or view is None:
            return
        self._last = (snap, there)
        self._handover = handing_over(snap) or (self._handover and not there)
        if there and self._doubt is not None and view.term > self._doubt:
            self._doubt = None
        if not self._handover and (not there or self._doubt is not None):
            self.pooler.hold()
        spec = snap.spec
        self._sessions = spec.pool_mode == PoolMode.SESSION and PoolMode.TRANSACTION not in modes(spec).values()
        servers = tuple(sorted(address_of(m) for m in view.members if m.node in snap.reports))
        held = self._handover or not there or self._doubt is not None
        mine = view.member(self._me) if view.primary == self._me and self._settled(view.term, held) else None
        at = address_of(mine) if mine is not None else self._door
        self.pooler.route(None if held else at, spec, max(1, len(view.members)), servers, here=mine is not None)

    def _settled(self, term: int, held: bool) -> bool:
        """Have clients been led in this term for a while? To load another address costs them time, so not at first."""
        now = self._clock.boottime()
        if held:
            self._led_since = None
        elif self._led_since is None or self._led_since[0] != term:
            self._led_since = (term, now)
        return self._led_since is not None and now >= self._led_since[1] + STRAIGHT_AFTER_S

    def doubt(self, term: int) -> None:
        """The primary of this term seems to have gone away: clients wait until it is found again, or another one."""
        view = self._last[0].view if self._last is not None else None
        if self._last is not None and view is not None and view.term <= term and self._doubt is None:
            self._doubt = term
            self.route(self._last[0], there=self._last[1])

    def ended(self, node: NodeId) -> None:
        """PostgreSQL of this node does not run any more. Doubted is the term in which clients are led there, if they
        are; another may have begun meanwhile."""
        if self._last is not None and self._last[1]:
            view = self._last[0].view
            if view is not None and view.primary == node:
                self.doubt(view.term)

    def to_pause(self) -> int:
        """The process to which the kernel sends its PAUSE when the connection to the primary ends; 0: none."""
        return self.pooler.to_pause if self.pooler is not None else 0

    def paused(self) -> None:
        """Clients are held, or may be: the kernel has seen the end of the primary, here or on the other node."""
        if self.pooler is not None:
            self.pooler.paused()

    def certain(self, term: int) -> None:
        """It is there."""
        if self._last is not None and self._doubt == term:
            self._doubt = None
            self.route(self._last[0], there=self._last[1])

    async def holding(self) -> None:
        """Return when clients are held, or after a moment."""
        if self.pooler is not None:
            await self.pooler.holding(HOLD_WITHIN_S)

    def drained(self, request: str) -> bool:
        """Does no pooled transaction run any more? Sessions of session mode get a moment only: most do not end."""
        pooler = self.pooler
        if pooler is None or pooler.pid is None or pooler.drained:
            return True
        return self._sessions and pooler.sessions_had_time

    def stats(self) -> PoolerStats | None:
        """As last seen; asked anew when that was some seconds ago. None: there is no pooler, or it was never asked."""
        now = asyncio.get_running_loop().time()
        if self.pooler is not None and now - self._asked_at > STATS_AGE_S:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask(self.pooler), name="pool statistics")
        return self._stats

    async def _ask(self, pooler: Pooler) -> None:
        try:
            self._stats = PoolerStats(True, pool_stats(await pooler.console.ask("SHOW POOLS")))
        except CommandFailed:
            self._stats = PoolerStats(False)

    async def _end_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)


def handing_over(snap: Snapshot) -> bool:
    """Is the primary to stop for a planned change?"""
    view = snap.view
    return view is not None and view.handover is not None and view.handover.stage is HandoverStage.STOP


def pool_stats(rows: Rows) -> tuple[PoolStats, ...]:
    """SHOW POOLS, without the console's own."""
    return tuple(
        PoolStats(
            database=row["database"],
            user=row["user"],
            client_active=int(row["cl_active"]),
            client_waiting=int(row["cl_waiting"]),
            server_active=int(row["sv_active"]),
            server_idle=int(row["sv_idle"]),
            server_used=int(row["sv_used"]),
            maxwait_s=int(row["maxwait"]) + int(row.get("maxwait_us", "0")) / 1e6,
        )
        for row in rows
        if row["database"] != "pgbouncer"
    )


async def access_loop(
    keeper: Keeper, config: InstanceConfig, pooler: PoolerSettings | None, log: logging.Logger
) -> Never:
    """On the primary: databases made since follow the roles, and the pooler may look users up in them. A new database
    is noticed in the keeper's next look: one made from template0 has nothing of what template1 hands down. Every
    database is entered once in a term, for what a newer flypg has to change."""

    async def connect(database: str) -> Connection:
        return await connect_local(config, name="flypg access", database=database)

    password = pooler.password if pooler is not None else None
    done_term, done_at, done_for, not_before = 0, float("-inf"), "", 0.0
    while True:
        await asyncio.sleep(ACCESS_TICK_S)
        view = keeper.snap.view if keeper.snap is not None else None
        if view is None or view.phase is not Phase.OPEN or view.primary != keeper.member.node:
            continue
        seen = keeper.seen
        if view.handover is not None or seen is None or not seen.gate_open or seen.run is not Run.UP:
            continue
        now = asyncio.get_running_loop().time()
        first = view.term != done_term
        if now < not_before or (not first and seen.databases == done_for and now - done_at < ACCESS_EVERY_S):
            continue
        doors = Doors(connect)
        try:
            changed = await doors.work(roles.follow(doors.open, pooler=password, thorough=first), ACCESS_WITHIN_S)
            done_term, done_at, done_for = view.term, now, seen.databases
            if changed:
                log.info("databases follow the roles", extra={"databases": ", ".join(changed)})
        except FlypgError as error:
            not_before = asyncio.get_running_loop().time() + ACCESS_RETRY_S
            log.warning("databases do not follow the roles yet", extra={"error": str(error)})
