"""On a standby: the slots it keeps for the others follow those of the primary, so that they hold no WAL for ever."""

from __future__ import annotations

import asyncio
import logging
from typing import Never

from agent.keeper import Keeper
from cluster.errors import FlypgError
from cluster.model import NodeId, Phase
from cluster.resident import release_code
from postgres import queries
from postgres.config import InstanceConfig
from postgres.connection import bounded, connect_remote
from postgres.server import LocalInstance

EVERY_S = 30.0
DEADLINE_S = 5.0


async def slots_loop(keeper: Keeper, instance: LocalInstance, config: InstanceConfig, log: logging.Logger) -> Never:
    while True:
        await asyncio.sleep(EVERY_S)
        snap, seen = keeper.snap, keeper.seen
        view = snap.view if snap is not None else None
        if view is None or view.phase is not Phase.OPEN or view.primary == keeper.member.node:
            continue
        primary = view.member(view.primary)
        if seen is None or not seen.streaming or primary is None:
            continue
        try:
            positions = await _restart_lsns(config, primary.host, primary.ports.postgres)
            await instance.advance_slots(positions)
        except FlypgError as error:
            log.info("slots not advanced", extra={"error": str(error)})
        release_code()  # of TLS and login, which nothing else here needs until the next round


async def _restart_lsns(config: InstanceConfig, host: str, port: int) -> dict[NodeId, int]:
    """How far each member's slot on the primary has come."""
    connection = await connect_remote(config, host, port)
    try:
        found = await bounded(connection, queries.slots(connection), DEADLINE_S)
    finally:
        await connection.close()
    return {NodeId(s.name.removeprefix("flypg_")): s.restart for s in found if s.restart is not None}
