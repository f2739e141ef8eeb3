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
AT_LEAST_EVERY_S = 600.0
SEGMENT_BYTES = 16 << 20  # slots hold whole files of WAL: with less than one of new WAL there is nothing to let go
DEADLINE_S = 5.0


async def slots_loop(keeper: Keeper, instance: LocalInstance, config: InstanceConfig, log: logging.Logger) -> Never:
    done_at, done_to = float("-inf"), -SEGMENT_BYTES
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(EVERY_S)
        snap, seen = keeper.snap, keeper.seen
        view = snap.view if snap is not None else None
        if view is None or view.phase is not Phase.OPEN or view.primary == keeper.member.node:
            continue
        primary = view.member(view.primary)
        if seen is None or not seen.streaming or primary is None:
            continue
        here = seen.position.lsn if seen.position is not None else 0
        if not worth_asking(here - done_to, loop.time() - done_at):
            continue
        try:
            positions = await _restart_lsns(config, primary.host, primary.ports.postgres)
            await instance.advance_slots(positions)
            done_at, done_to = loop.time(), here
        except FlypgError as error:
            log.info("slots not advanced", extra={"error": str(error)})
        release_code()  # of TLS and login, which nothing else here needs until the next round


def worth_asking(more_bytes: int, ago_s: float) -> bool:
    """After so much new WAL, and so long after the last time? A login with TLS is dear for an idle agent. Pure."""
    return abs(more_bytes) >= SEGMENT_BYTES or ago_s >= AT_LEAST_EVERY_S


async def _restart_lsns(config: InstanceConfig, host: str, port: int) -> dict[NodeId, int]:
    """How far each member's slot on the primary has come."""
    connection = await connect_remote(config, host, port)
    try:
        found = await bounded(connection, queries.slots(connection), DEADLINE_S)
    finally:
        await connection.close()
    return {NodeId(s.name.removeprefix("flypg_")): s.restart for s in found if s.restart is not None}
