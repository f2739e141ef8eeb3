"""A witness: a sentinel on a machine without PostgreSQL. It leads and judges; it holds no data and has no vote."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Never

from cluster.clock import SystemClock
from cluster.errors import FlypgError
from cluster.etcd_store import EtcdStore
from cluster.model import NodeId
from sentinel.turn import Sentinel

TICK_S = 1.0
TURN_MAX_S = 30.0
PAUSE_S = 1.0


class _Ended(Exception):
    """The witness was told to end."""


async def run_witness(store: EtcdStore, name: NodeId, sentinel_ttl_s: float) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code."""
    log = logging.getLogger("flypg.sentinel")
    sentinel = Sentinel(store, SystemClock(), name, log)
    wake, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    log.info("witness started", extra={"name_of_witness": name})
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(store.watch(wake.set))
            group.create_task(_turns(sentinel, wake, log))
            group.create_task(_keep(store, sentinel, sentinel_ttl_s / 3))
            await ended.wait()
            raise _Ended
    except* _Ended:
        pass
    if sentinel.leadership is not None:
        try:
            await store.resign(sentinel.leadership)
        except FlypgError as error:
            log.info("not resigned, the lease runs out", extra={"error": str(error)})
    return 0


async def _turns(sentinel: Sentinel, wake: asyncio.Event, log: logging.Logger) -> Never:
    while True:
        wake.clear()
        again, pause_s = False, TICK_S
        try:
            async with asyncio.timeout(TURN_MAX_S):
                again = await sentinel.turn()
        except (FlypgError, TimeoutError) as error:
            log.info("sentinel's turn failed", extra={"error": str(error) or type(error).__name__})
            pause_s = PAUSE_S
        if again:
            await asyncio.sleep(0)
            continue
        try:
            async with asyncio.timeout(pause_s):
                await wake.wait()
        except TimeoutError:
            pass


async def _keep(store: EtcdStore, sentinel: Sentinel, every_s: float) -> Never:
    while True:
        await asyncio.sleep(every_s)
        if sentinel.leadership is None:
            continue
        try:
            if not await store.keep_leadership():
                sentinel.leadership = None
        except FlypgError:
            continue  # the lease runs out by itself, and the next write of ours is refused
