"""What the steps on one PostgreSQL share: its files, its postmaster, its connection, the clock; and how to reload
it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from cluster.clock import Clock
from cluster.errors import InstanceError, PostgresUnavailable
from cluster.model import NodeId
from postgres import queries
from postgres.command import Account
from postgres.config import Dynamic, InstanceConfig
from postgres.connection import Session, Spare
from postgres.files import DiskThread
from postgres.process import Postmaster
from postgres.server_files import ServerFiles

POLL_S = 0.002  # between looks inside a step that is under way
RELOAD_S = 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    config: InstanceConfig
    me: NodeId
    owner: Account | None
    clock: Clock
    files: ServerFiles
    disk: DiskThread
    postmaster: Postmaster
    session: Session
    spare: Spare


async def until(condition: Callable[[], Awaitable[bool]], within_s: float, otherwise: str, clock: Clock) -> None:
    """Ask again every few milliseconds until `condition` holds. Raises InstanceError(`otherwise`) when it does not."""
    deadline = clock.boottime() + within_s
    while not await condition():
        if clock.boottime() > deadline:
            raise InstanceError(f"{otherwise} within {within_s:g} s")
        await asyncio.sleep(POLL_S)


async def reload(parts: Parts) -> queries.Loaded:
    """Have the server read its files again; returns once our own backend has."""
    before = await parts.session.ask(queries.loaded)
    if not parts.postmaster.send(signal.SIGHUP):
        raise PostgresUnavailable("PostgreSQL is not running")
    now = before

    async def read_again() -> bool:
        nonlocal now
        now = await parts.session.ask(queries.loaded)
        return now.at != before.at

    await until(read_again, RELOAD_S, "PostgreSQL did not read its changed configuration", parts.clock)
    return now


async def change(parts: Parts, dynamic: Dynamic) -> None:
    """Write `dynamic` and make the server run with it. Raises InstanceError when it does not."""
    await parts.disk.do(lambda: parts.files.write_dynamic(dynamic))
    now = await reload(parts)
    if now.names != dynamic.names:
        raise InstanceError(f"PostgreSQL runs synchronous_standby_names={now.names!r}, not {dynamic.names!r}")
    if (now.conninfo == "") != (dynamic.upstream is None):
        raise InstanceError("PostgreSQL did not take over primary_conninfo; see its log")


async def change_names(parts: Parts, names: str, *, standing: bool) -> None:
    await change(parts, replace(parts.files.dynamic, names=names, standing=standing))
