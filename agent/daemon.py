"""The agent of a node: from settings to a running node, its signals, and an orderly end.

SIGTERM, SIGINT   hand the primary role over if this node has it, then stop PostgreSQL and end
SIGQUIT           stop PostgreSQL and end without handing over
SIGUSR1           end and leave PostgreSQL, HAProxy and the fence running, for the agent that follows (an upgrade)
SIGHUP            read the settings again
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from agent import identity, in_place
from agent.adoption import held_back, let_go, seed_settings, take_over
from agent.handover import hand_over
from agent.node import Node
from agent.orphans import reap_orphans
from agent.wiring import Parts, assemble, lock_directory
from cluster.errors import FlypgError, SettingsError
from cluster.resident import release_start_up_code
from cluster.settings import Settings
from postgres.instance import Run
from postgres.process import become_subreaper

SETTLED_S = (20.0, 120.0, 900.0)  # by then everything has been touched that a running agent uses
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
FAST_STOP_S = 20.0
PAUSE_AT_END_S = 0.02
T = TypeVar("T")
AGAIN = -1  # start anew, as another process: the cluster is to be restored in place


class _Ended(Exception):
    """The agent was told to end; carries nothing but leaves the group of tasks."""


def run(settings: Settings, reload: Callable[[], Settings] | None = None) -> int:
    """Run the agent of this node until it is told to end. Returns the exit code: 0, or 1 when it could not start."""
    code = asyncio.run(_run(settings, reload))
    if code == AGAIN:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return code


async def _run(settings: Settings, reload: Callable[[], Settings] | None) -> int:
    log = logging.getLogger("flypg.agent")
    become_subreaper()
    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:  # early: the kernel drops what a container's first process has no handler for
        loop.add_signal_handler(number, asked.put_nowait, number)
    try:
        parts = assemble(settings)
        lock = lock_directory(parts.state_file.parent)
        restored_with = await _unless_told(in_place.settle(parts, log), parts, asked)
        if restored_with is None:
            return 0
        adopted = take_over(parts.instance, log)
        me = identity.Identity(parts.cluster, parts.member.node, settings.restored_from)
        known = False
        if identity.doubtful(parts.state_file, me):
            log.info("asking etcd whether it knows this node: its volume may be another cluster's")
            answer = await _unless_told(identity.counted(parts.store.read, me.node), parts, asked)
            if answer is None:
                return 0
            known = answer
        identity.settle(parts.state_file, me, log, known=known)
    except FlypgError as error:
        log.error("cannot start", extra={"error": str(error)})
        return 2 if isinstance(error, SettingsError) else 1
    has_data = (parts.instance.pgdata / "PG_VERSION").exists()
    begins_with = settings.restored_from or restored_with
    member = held_back(parts.member, begins_with, has_data=has_data)
    if member != parts.member:
        log.warning("no data here: waits for the node that brings it", extra={"restored_from": begins_with})
    node = Node(replace(parts, member=member), log)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(node, reload, log))
    try:
        await node.start()
    except (FlypgError, OSError) as error:
        log.error("cannot start", extra={"error": str(error)})
        await node.stop(leave_running=True)
        return 1
    log.info("agent started", extra={"node": parts.member.node, "cluster": parts.cluster, "version": parts.version})
    for settled_s in SETTLED_S:
        loop.call_later(settled_s, release_start_up_code)
    how = signal.SIGTERM
    again = False

    def restart() -> None:
        nonlocal again
        again = True
        asked.put_nowait(signal.SIGQUIT)

    try:
        async with asyncio.TaskGroup() as group:
            for task in node.tasks():
                group.create_task(task)
            group.create_task(reap_orphans())
            group.create_task(seed_settings(node.store, adopted, log))
            group.create_task(in_place.notice(parts, restart, log))
            group.create_task(let_go(node.keeper, node.store, parts.member, node.keeper_wake.ring))
            how = await asked.get()
            log.info("asked to end", extra={"signal": how.name})
            if how in (signal.SIGTERM, signal.SIGINT):
                node.keeper.ending = True
                await hand_over(node.keeper, node.store, parts.stop_within_s, log)
            raise _Ended
    except* _Ended:
        pass
    await _end(node, how, log)
    os.close(lock)
    return AGAIN if again and how is signal.SIGQUIT else 0


async def _unless_told(work: Coroutine[Any, Any, T], parts: Parts, asked: asyncio.Queue[signal.Signals]) -> T | None:
    """What must happen before the node starts, for as long as nobody asks us to end; then None."""
    task = asyncio.ensure_future(work)
    told = asyncio.ensure_future(asked.get())
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        if told.done():  # at the same moment: it counts
            asked.put_nowait(told.result())
        told.cancel()
        return task.result()
    task.cancel()  # what is half done is found by the next start
    await asyncio.gather(task, return_exceptions=True)
    await parts.etcd.close()
    return None


async def _end(node: Node, how: signal.Signals, log: logging.Logger) -> None:
    leave = how is signal.SIGUSR1
    if not leave:
        await _stop_postgres(node, log)
    try:
        if node.sentinel.leadership is not None:
            await node.store.resign(node.sentinel.leadership)
        if not leave:
            await node.store.withdraw()
    except FlypgError as error:
        log.info("etcd was not told of our end", extra={"error": str(error)})
    await node.stop(leave_running=leave)
    log.info("agent ended")


async def _stop_postgres(node: Node, log: logging.Logger) -> None:
    """Stop in order; what does not end within the deadline is stopped at once."""
    deadline = node.clock.boottime() + FAST_STOP_S
    fast = True
    while (await node.instance.observe()).run is not Run.DOWN:
        if node.clock.boottime() > deadline:
            log.warning("PostgreSQL did not stop in order", extra={"within_s": FAST_STOP_S})
            fast = False
        try:
            await node.instance.stop(fast=fast)
        except FlypgError as error:
            log.warning("PostgreSQL not stopped", extra={"error": str(error)})
        if not fast:
            return
        await asyncio.sleep(PAUSE_AT_END_S)


def _reload(node: Node, reload: Callable[[], Settings] | None, log: logging.Logger) -> None:
    """Take over what can change while we run: this node's tags. The rest needs a restart of the agent, and says so."""
    if reload is None:
        return
    try:
        settings = reload()
        member = settings.member
    except (FlypgError, OSError) as error:
        log.error("settings not reloaded, the old ones stay", extra={"error": str(error)})
        return
    old = node.keeper.member
    if (member.node, member.host, member.ports) != (old.node, old.host, old.ports):
        log.warning("a changed name, address or port needs a restart of the agent: the old ones stay")
        return
    node.keeper.member = member
    node.keeper_wake.ring()
    log.info("settings reloaded", extra={"changed": member != old})
