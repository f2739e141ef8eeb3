"""A connection for looking: kept open, short deadlines, given up the moment the server does not answer.

One that is lost is replaced at the next question. A refusal (a lock, a statement's timeout) costs only the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import psycopg

from cluster.errors import FlypgError, PostgresUnavailable
from postgres.connection import Connection, bounded, cut

T = TypeVar("T")

LIMITS = """SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false),
                   set_config('application_name', %s, false), set_config('search_path', 'pg_catalog', false),
                   set_config('idle_in_transaction_session_timeout', '10s', false)"""
__all__ = ["Connection", "Session", "SqlRefused", "asked", "cut", "refusable", "translated"]


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


async def refusable(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises SqlRefused or PostgresUnavailable instead of psycopg's errors."""
    try:
        return await work
    except psycopg.Error as error:
        raise translated(error) from error


async def asked(connection: Connection, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """The result of `work` on `connection`. Raises PostgresUnavailable when there is none in time (the connection is
    unusable then), SqlRefused when PostgreSQL refused a statement."""
    return await bounded(connection, refusable(work), timeout_s)


class Session:
    """One connection that is opened when first needed, reused, and replaced after it broke. One user at a time."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        name: str,
        *,
        statement_timeout_s: float = 2.0,
        lock_timeout_s: float = 0.5,
    ) -> None:
        self._connect = connect
        self._name = name
        self._statement_timeout_s = statement_timeout_s
        self._lock_timeout_s = lock_timeout_s
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
            return await asked(connection, work(connection), max(0.05, when - loop.time()))
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
            limits = (f"{t * 1000:.0f}ms" for t in (self._statement_timeout_s, self._lock_timeout_s))
            await connection.execute(LIMITS, (*limits, self._name))

        await asked(connection, limit(), timeout_s)
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            cut(connection)
            await connection.close()

    async def close(self) -> None:
        """Give the connection back. A later `run` opens a new one."""
        async with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()  # in good order: a session that is cut counts as abandoned
