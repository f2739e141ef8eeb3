"""A connection for looking: kept open, short deadlines, given up the moment the server does not answer.

A plain `asyncio.timeout` is not enough around a statement: when it is cut off, psycopg asks the server to cancel and
waits for the answer, which a stopped server never gives. So the deadline here shuts the socket down, which ends the
wait whatever the server does.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import psycopg
from psycopg.rows import TupleRow

from cluster.errors import FlypgError, PostgresUnavailable

T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]

LIMITS = """SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', '500ms', false),
                   set_config('application_name', %s, false), set_config('search_path', 'pg_catalog', false),
                   set_config('idle_in_transaction_session_timeout', '10s', false)"""
LOST = (psycopg.OperationalError, psycopg.InterfaceError)


class SqlRefused(FlypgError):
    """PostgreSQL understood a statement and refused it."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


def translated(error: psycopg.Error) -> FlypgError:
    """A refusal when the server spoke of the statement; else the server is unavailable."""
    text = (error.diag.message_primary or str(error).strip().splitlines()[0]) if str(error) else type(error).__name__
    sqlstate = error.sqlstate or ""
    if not sqlstate or sqlstate.startswith(("08", "57P")) or isinstance(error, psycopg.InterfaceError):
        return PostgresUnavailable(text)
    return SqlRefused(sqlstate, text)


def cut(connection: Connection) -> None:
    """End every wait on `connection` at once, by shutting its socket down."""
    if connection.closed:
        return
    with socket.socket(fileno=os.dup(connection.fileno())) as twin:
        try:
            twin.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other side was faster


def _forget(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # read, so that nobody warns about it


async def bounded(connection: Connection, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """The result of `work` on `connection`. Raises PostgresUnavailable when there is none in time (the connection is
    unusable then), SqlRefused when PostgreSQL refused a statement."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_forget)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            cut(connection)
            await asyncio.wait({task}, timeout=1.0)
            raise PostgresUnavailable(f"PostgreSQL did not answer within {timeout_s:.3g} s")
        return task.result()
    except psycopg.Error as error:
        raise translated(error) from error
    finally:
        if not task.done():
            cut(connection)


class Session:
    """One connection that is opened when first needed, reused, and replaced after it broke. One user at a time."""

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], name: str, *, statement_timeout_s: float = 2.0
    ) -> None:
        self._connect = connect
        self._name = name
        self._statement_timeout_s = statement_timeout_s
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()

    async def run(self, work: Callable[[Connection], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        """The result of `work` on the connection, all told within `timeout_s`.

        Raises PostgresUnavailable or SqlRefused."""
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                await self._lock.acquire()
        except TimeoutError:
            raise PostgresUnavailable(f"the last look at PostgreSQL has not ended within {timeout_s:.3g} s") from None
        try:
            loop = asyncio.get_running_loop()
            when = deadline.when()
            assert when is not None
            connection = await self._open(max(0.05, when - loop.time()))
            return await bounded(connection, work(connection), max(0.05, when - loop.time()))
        except PostgresUnavailable:
            await self._drop()
            raise
        except asyncio.CancelledError:
            await self._drop()  # a statement may be under way on it
            raise
        finally:
            self._lock.release()

    async def _open(self, timeout_s: float) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connect()
        except TimeoutError:
            raise PostgresUnavailable(f"PostgreSQL did not accept a connection within {timeout_s:.3g} s") from None
        except psycopg.Error as error:
            raise translated(error) from error
        self._connection = connection

        async def limit() -> None:
            await connection.set_autocommit(True)
            milliseconds = f"{self._statement_timeout_s * 1000:.0f}ms"
            await connection.execute(LIMITS, (milliseconds, self._name))

        await bounded(connection, limit(), timeout_s)
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            cut(connection)
            await connection.close()

    async def close(self) -> None:
        """Give the connection back. A later `run` opens a new one."""
        async with self._lock:
            await self._drop()
