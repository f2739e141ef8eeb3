"""Stop receiving WAL for good, and say how far it got.

Theory of operation. Clearing primary_conninfo is not enough: while the startup process is stuck in a recovery conflict
it does not read its configuration, and the receiver goes on receiving *and acknowledging*. So the receiver is
terminated by SIGTERM (any other death makes the postmaster reset the whole standby). A startup process that is just
about to launch one may do so once more with the old configuration, therefore: reload first, terminate after, and see it
gone twice.

The position is the greatest of received and replayed. Received is unknown until the server has streamed since its
start; then local WAL may exist that was neither received nor replayed since, so replay must have reached its end first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal

from cluster.errors import InstanceError
from cluster.model import Position
from postgres import queries
from postgres.connection import bounded, connect_local
from postgres.parts import POLL_S, Parts, change

RECEIVER_S = 5.0  # for a receiver to end
SETTLE_S = 0.012  # between the two looks that must not see one
LOCAL_WAL_S = 10.0  # for replay of local WAL to come to its end
SEGMENT_NAME = re.compile(r"[0-9A-F]{24}\Z")


async def detach(parts: Parts, known_timeline: int = 0) -> Position:
    """Detach and return the position. Raises InstanceError when it cannot be certain, PostgresUnavailable.

    `known_timeline`: one that replay has reached; 0 means unknown.
    """
    before = await parts.session.ask(queries.standby)
    if not before.in_recovery:
        raise InstanceError("this server is a primary: it has nothing to detach from; stop it")
    await change(parts, parts.files.detached())
    identifying = asyncio.ensure_future(identify(parts))  # a new connection takes as long as the receiver's end
    try:
        await _end_receiver(parts)
        return await _position(parts, before.received_timeline, known_timeline, identifying)
    finally:
        identifying.cancel()
        await asyncio.wait({identifying})


async def _end_receiver(parts: Parts) -> None:
    deadline = parts.clock.boottime() + RECEIVER_S
    asked: set[int] = set()
    unseen = 0
    while unseen < 2:
        if parts.clock.boottime() > deadline:
            raise InstanceError(f"the WAL receiver has not ended within {RECEIVER_S:g} s")
        alive = parts.postmaster.receivers()
        for pid in alive:
            if pid not in asked and parts.postmaster.is_receiver(pid):
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(pid, signal.SIGTERM)
        if alive or (await parts.session.ask(queries.standby)).receiving:
            unseen = 0
            await asyncio.sleep(POLL_S)
        else:
            unseen += 1
            if unseen < 2:
                await asyncio.sleep(SETTLE_S)


async def _position(
    parts: Parts, received_timeline: int | None, known_timeline: int, identifying: asyncio.Future[Position]
) -> Position:
    """`identifying`: asked before the receiver's end; true if nothing was replayed since."""
    deadline = parts.clock.boottime() + LOCAL_WAL_S
    quiet = 0
    while True:
        now = await parts.session.ask(queries.standby)
        if now.received is not None:
            break  # it has streamed since its start, so all local WAL was replayed before that
        quiet = quiet + 1 if now.at_end_of_local_wal else 0
        if quiet >= 2:
            break
        if parts.clock.boottime() > deadline:
            raise InstanceError(f"replay has not reached the end of local WAL within {LOCAL_WAL_S:g} s; asking again")
        await asyncio.sleep(SETTLE_S)
    if now.received is not None and now.replayed is not None and received_timeline == known_timeline:
        replayed = Position(known_timeline, now.replayed)  # replay cannot be on a newer one than what was received
    else:
        replayed = await identifying
        if replayed.lsn != now.replayed:
            replayed = await identify(parts)
    if not now.in_recovery or parts.postmaster.receivers():
        raise InstanceError("the server changed while it was being detached; asking again")
    return furthest(replayed, now.received, received_timeline or await newest_timeline_at(parts, now.received))


async def identify(parts: Parts) -> Position:
    connection = await connect_local(parts.config, name="flypg_identify", replication=True)
    try:
        _system, position = await bounded(connection, queries.identify(connection), 2.0)
    finally:
        await connection.close()
    return position


def furthest(replayed: Position, received: int | None, received_timeline: int) -> Position:
    """The greatest of both. WAL received on a newer timeline counts as such only beyond what was replayed."""
    if received is None or received <= replayed.lsn:
        return replayed
    return Position(max(received_timeline, replayed.timeline), received)


async def newest_timeline_at(parts: Parts, lsn: int | None) -> int:
    """The newest timeline of the WAL file that holds the byte before `lsn`; 0 when there is none."""
    if not lsn:
        return 0
    size = int((await parts.session.ask(lambda c: queries.values(c, ("wal_segment_size",))))["wal_segment_size"])
    number = (lsn - 1) // size
    per_high = (1 << 32) // size
    suffix = f"{number // per_high:08X}{number % per_high:08X}"
    names = await asyncio.to_thread(os.listdir, parts.config.pgdata / "pg_wal")
    return max((int(n[:8], 16) for n in names if SEGMENT_NAME.match(n) and n[8:] == suffix), default=0)
