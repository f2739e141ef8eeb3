"""A copy of a primary that is made somewhere else than from it: what must be known for that, and held meanwhile.

Who does it is not known here. What is seen to here: the primary keeps its WAL from now on until the copy is complete,
as it does for pg_basebackup, and afterwards it is asked whether it still is what it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InstanceError
from cluster.model import NodeId, Upstream, format_lsn
from postgres import queries
from postgres.config import InstanceConfig
from postgres.connection import Connection, bounded, connect_remote

ASK_S = 30.0


@dataclass(frozen=True, slots=True)
class Seeding:
    """What is to be made: a standby of `source`, in the empty `directory`. LSNs."""

    source: NodeId
    directory: Path
    system_id: str
    major: int
    timeline: int
    history: str  # the content of its history file; "" on timeline 1
    oldest: int  # where the oldest WAL begins that the source still has
    flushed: int


@dataclass(frozen=True, slots=True)
class Seed:
    """What was made. `until`: LSN up to which it has WAL."""

    name: str  # of what it was made from
    until: int


Seeder = Callable[[Seeding, Callable[[str], None]], Awaitable[Seed]]
"""Fills the directory, and tells people how far it is. Raises FlypgError or OSError with the reason when it cannot."""


async def held(connection: Connection, me: NodeId) -> None:
    """Have the server behind `connection` keep the WAL since its last checkpoint, as long as the connection lasts."""
    await bounded(connection, queries.hold_wal(connection, f"seed_{me}"), ASK_S)


async def described(connection: Connection, source: Upstream, directory: Path) -> Seeding:
    """The primary as it is now. Raises InstanceError when it is none, PostgresUnavailable."""
    now = await bounded(connection, queries.history(connection), ASK_S)
    if now.timeline is None or now.flushed is None:
        raise InstanceError(f"{source.node} is not the primary (any more)")
    oldest = await bounded(connection, queries.oldest_wal(connection), ASK_S)
    return Seeding(
        source=source.node,
        directory=directory,
        system_id=now.system_id,
        major=now.version // 10000,
        timeline=now.timeline,
        history=now.history,
        oldest=oldest,
        flushed=now.flushed,
    )


@contextlib.asynccontextmanager
async def primary(config: InstanceConfig, source: Upstream) -> AsyncIterator[Connection]:
    """A connection to the source. Raises PostgresUnavailable."""
    connection = await connect_remote(config, source.host, source.port)
    try:
        yield connection
    finally:
        await connection.close()


def lost(before: Seeding, now: Seeding, seed: Seed) -> str:
    """Why a copy made from `seed` cannot follow the primary any more; "" when it can. Pure."""
    if (now.system_id, now.timeline) != (before.system_id, before.timeline):
        return f"{now.source} went from timeline {before.timeline} to {now.timeline} meanwhile"
    if now.oldest > seed.until:
        return f"{now.source} has let WAL go meanwhile: {format_lsn(seed.until)} to {format_lsn(now.oldest)}"
    return ""
