"""The loops of an agent: each wakes on a change or a tick, does one turn, and catches what the world does wrong.

A bug is not caught: it ends the process, and whoever started the agent starts it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Never

from agent.keeper import Keeper
from agent.reader import SharedStore
from cluster.errors import FlypgError
from sentinel.turn import Sentinel

TURN_MAX_S = 180.0  # a CHECKPOINT before a switchover may take long; everything else has shorter deadlines of its own
SOON_S = 0.008
SOONEST_GROWTH = 1.25
TICK_S = 1.0
SUSPECT_S = 0.25
LOOKED_S = 1.5  # an idle keeper looks more often
SENTINEL_TICK_S = 0.5
SENTINEL_FOUNDING_S = 0.1  # somebody waits for a new cluster
SENTINEL_CALM_S = 3.0  # while only a change in etcd can matter, and that wakes it
PAUSE_S = 0.25  # after an error, growing …
PAUSE_MAX_S = 2.0  # … up to this


class Wake:
    """A bell that several may ring; the loop that owns it hears at most one ring between two turns."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self, at_most_s: float) -> None:
        timer = asyncio.get_running_loop().call_later(at_most_s, self._event.set)  # cheaper than a timeout's exception
        try:
            await self._event.wait()
        finally:
            timer.cancel()
        self._event.clear()


async def keeper_loop(
    keeper: Keeper, wake: Wake, log: logging.Logger, after_turn: Callable[[], Awaitable[None]]
) -> Never:
    """Turn after turn. `after_turn` runs after each that changed something, so that routers and pages follow."""
    pause_s, soon_s = PAUSE_S, SOON_S
    while True:
        try:
            async with asyncio.timeout(TURN_MAX_S):
                plan = await keeper.turn()
        except (FlypgError, TimeoutError) as error:
            log.warning("turn failed", extra={"error": str(error) or type(error).__name__, "doing": keeper.problem})
            await after_turn()
            await wake.wait(pause_s)
            pause_s = min(PAUSE_MAX_S, pause_s * 2)
            continue
        pause_s = PAUSE_S
        await after_turn()
        if plan.step is not None:
            soon_s = SOON_S
            await asyncio.sleep(0)
            continue
        if plan.soon:
            await wake.wait(soon_s)
            soon_s = min(TICK_S, soon_s * SOONEST_GROWTH)
            continue
        soon_s = SOON_S
        await wake.wait(SUSPECT_S if keeper.seen is not None and keeper.seen.suspect else TICK_S)


async def sentinel_loop(sentinel: Sentinel, wake: Wake, log: logging.Logger) -> Never:
    pause_s = PAUSE_S
    while True:
        try:
            async with asyncio.timeout(TURN_MAX_S):
                again = await sentinel.turn()
        except (FlypgError, TimeoutError) as error:
            log.info("sentinel's turn failed", extra={"error": str(error) or type(error).__name__})
            await wake.wait(pause_s)
            pause_s = min(PAUSE_MAX_S, pause_s * 2)
            continue
        pause_s = PAUSE_S
        if again:
            await asyncio.sleep(0)
            continue
        busy_s = SENTINEL_FOUNDING_S if sentinel.founding else SENTINEL_TICK_S
        await wake.wait(SENTINEL_CALM_S if sentinel.calm else busy_s)


async def lease_loop(keeper: Keeper, every_s: float, log: logging.Logger) -> Never:
    """Renew this node's lease; after a failure soon again."""
    failed = False
    while True:
        try:
            await keeper.renew()
            if failed:
                log.info("lease renewed again")
            failed = False
            pause_s = every_s if keeper.lease is not None and keeper.lease.ttl_s > 0 else 0.5
        except FlypgError as error:
            if not failed:
                log.warning("lease not renewed", extra={"error": str(error)})
            failed, pause_s = True, min(1.0, every_s)
        await asyncio.sleep(pause_s)


async def fence_loop(keeper: Keeper) -> Never:
    """Keep the fence informed while a long step runs; every look of the keeper does so as well."""
    while True:
        await asyncio.sleep(1.0)
        if keeper.looked_ago_s > LOOKED_S:
            keeper.rearm()


async def leadership_loop(store: SharedStore, sentinel: Sentinel, every_s: float, log: logging.Logger) -> Never:
    while True:
        await asyncio.sleep(every_s)
        if sentinel.leadership is None:
            continue
        try:
            if not await store.keep_leadership():
                log.info("no longer leads: the lease ran out")
                sentinel.leadership = None
        except FlypgError as error:
            log.info("leadership not renewed", extra={"error": str(error)})
