"""Before a primary's agent ends: ask for a switchover and wait for it, within a limit."""

from __future__ import annotations

import asyncio
import logging
import secrets

from agent.keeper import Keeper
from agent.reader import SharedStore
from cluster.errors import FlypgError
from cluster.model import Phase, Request, RequestKind

LOOK_S = 0.05


async def hand_over(keeper: Keeper, store: SharedStore, within_s: float, log: logging.Logger) -> bool:
    """Give the primary role away if this node has it and somebody can take it. True: it is not ours (any more)."""
    try:
        async with asyncio.timeout(within_s):
            return await _hand_over(keeper, store, log)
    except TimeoutError:
        log.warning("the primary role was not handed over in time", extra={"within_s": within_s})
    except FlypgError as error:
        log.warning("the primary role was not handed over", extra={"error": str(error)})
    return False


async def _hand_over(keeper: Keeper, store: SharedStore, log: logging.Logger) -> bool:
    me = keeper.member.node
    snap = await store.read()
    view = snap.view
    if view is None or view.primary != me:
        return True
    own = snap.reports.get(me)
    if own is None or not any(s.caught_up for s in own.standbys):
        log.info("no standby could take over: stopping without handing over")
        return False
    request = Request(
        f"stop-{me}-{secrets.token_hex(4)}", RequestKind.SWITCHOVER, None, f"the agent of {me}, which ends"
    )
    await store.add_request(request)
    while True:
        snap = await store.read()
        view = snap.view
        assert view is not None, "a view never vanishes"
        if view.primary not in (None, me) and view.phase is Phase.OPEN:
            log.info("handed over", extra={"to": view.primary})
            return True
        answered = await store.read_request(request.id)
        if answered is not None and answered.outcome.startswith("refused"):
            log.warning("switchover refused", extra={"why": answered.outcome})
            return False
        await asyncio.sleep(LOOK_S)
