"""Connections to several databases of one server for a piece of work, all ended when it takes too long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import psycopg

from cluster.errors import PostgresUnavailable
from postgres.connection import Connection, cut, open_session
from postgres.monitor import translated

T = TypeVar("T")


class Doors:
    """Opens connections of a superuser; `open` is a roles.Door."""

    def __init__(self, connect: Callable[[str], Awaitable[Connection]]) -> None:
        """`connect` opens a connection to a database. Raises PostgresUnavailable."""
        self._connect = connect
        self._open: set[Connection] = set()

    @contextlib.asynccontextmanager
    async def open(self, database: str) -> AsyncIterator[Connection]:
        connection = await self._connect(database)
        self._open.add(connection)
        try:
            yield connection
        finally:
            self._open.discard(connection)
            await connection.close()

    async def work(self, work: Coroutine[Any, Any, T], within_s: float) -> T:
        """The result of `work`, which opens its connections here. When it takes longer, or we are cancelled, they are
        cut: never cancelled, since PostgreSQL answers the cancelled wait of a commit with success.

        Raises SqlRefused or PostgresUnavailable."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=within_s)
            if task.done():
                return task.result()
        except psycopg.Error as error:
            raise translated(error) from error
        finally:
            if not task.done():
                for connection in list(self._open):
                    cut(connection)
                await asyncio.gather(task, return_exceptions=True)
        raise PostgresUnavailable(f"PostgreSQL gave no answer within {within_s:g} s")


def remote_doors(host: str, port: int, user: str, password: str, *, within_s: float = 5.0) -> Doors:
    """To a node's PostgreSQL over the network. Opening raises PostgresUnavailable."""

    async def connect(database: str) -> Connection:
        try:
            async with asyncio.timeout(within_s):
                return await open_session(
                    host=host,
                    port=port,
                    user=user,
                    password=password,
                    dbname=database,
                    application_name="flypg",
                    sslmode="prefer",
                )
        except TimeoutError:
            raise PostgresUnavailable(f"PostgreSQL at {host}:{port} did not answer within {within_s:g} s") from None
        except psycopg.Error as error:
            raise translated(error) from error

    return Doors(connect)
