"""Connections to PostgreSQL: every one has deadlines, none ever sends a cancel request.

Why no cancel: PostgreSQL answers the cancelled wait of a commit with success. A statement that does not answer in time
loses its connection instead: its socket is shut down, which also works when the server is frozen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import psycopg

from cluster.errors import InstanceError, PostgresUnavailable
from postgres.config import OPERATOR, SUPERUSER, InstanceConfig, passfile

T = TypeVar("T")
Connection = psycopg.AsyncConnection[Any]

CONNECT_S = 1.0
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
NOT_YET = (
    "the database system is starting up",
    "the database system is not accepting connections",
    "the database system is not yet accepting connections",
    "the database system is in recovery mode",
    "the database system is shutting down",
)


class NotAccepting(PostgresUnavailable):
    """A live server that does not take connections now: it starts, recovers or shuts down."""


def where(conninfo: str) -> dict[str, str]:
    """The variables by which libpq's programs find the server of a connection string; without its secrets."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    return {f"PG{key.upper()}": str(parts[key]) for key in ("host", "port", "user") if parts.get(key)}


async def bounded(connection: Connection, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Await `work` on `connection`, at most `timeout_s` seconds; then, or when we are cancelled, cut the connection.

    Raises PostgresUnavailable when there was no answer.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if done:
            return task.result()
    except psycopg.OperationalError as error:
        raise PostgresUnavailable(_first_line(error)) from error
    except psycopg.Error as error:
        raise InstanceError(_first_line(error)) from error
    finally:
        if not task.done():
            cut(connection)
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen, also when we were cancelled in the moment in which it came
    raise PostgresUnavailable(f"PostgreSQL gave no answer within {timeout_s:g} s")


def cut(connection: Connection) -> None:
    """Shut the connection's socket down: whoever waits on it gets an error at once."""
    if connection.closed:
        return
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def _first_line(error: psycopg.Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# What users set for theirs, in the configuration, for a database or a role, is not for sessions of ours: a statement
# limit would end the wait for a standby, and another search path has our statements call somebody's functions.
OWN_SESSION = " ".join(
    f"-c {setting}"
    for setting in (
        "statement_timeout=0",
        "lock_timeout=0",
        "idle_in_transaction_session_timeout=0",
        "default_transaction_read_only=off",
        r"default_transaction_isolation=read\ committed",
        "search_path=pg_catalog",
    )
)
SINCE = ((140000, "SET idle_session_timeout = 0"), (170000, "SET transaction_timeout = 0"))  # unknown to those before


async def open_session(**parameters: Any) -> Connection:
    """A session of ours, whatever users have set for theirs. Raises psycopg.Error."""
    connection = await psycopg.AsyncConnection.connect(autocommit=True, options=OWN_SESSION, **parameters)
    try:
        known = "; ".join(query for version, query in SINCE if connection.info.server_version >= version)
        if known and "replication" not in parameters:
            await connection.execute(known)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _connect(timeout_s: float, **parameters: Any) -> Connection:
    try:
        async with asyncio.timeout(timeout_s):
            return await open_session(**parameters)
    except TimeoutError:
        raise PostgresUnavailable(f"a new connection got no answer within {timeout_s:g} s") from None
    except psycopg.Error as error:
        text = _first_line(error)
        kind = NotAccepting if any(words in text for words in NOT_YET) else PostgresUnavailable
        raise kind(text) from error


async def connect_local(
    config: InstanceConfig,
    *,
    name: str = "flypg",
    timeout_s: float = CONNECT_S,
    replication: bool = False,
    database: str = "postgres",
) -> Connection:
    """As superuser over the Unix socket. Raises NotAccepting or PostgresUnavailable."""
    parameters: dict[str, Any] = {"replication": "database"} if replication else {}
    return await _connect(
        timeout_s,
        host=str(config.run),
        port=config.port,
        user=SUPERUSER,
        dbname=database,
        application_name=name,
        sslmode="disable",
        gssencmode="disable",
        passfile=str(passfile(config)),
        **parameters,
    )


async def connect_remote(
    config: InstanceConfig, host: str, port: int, *, timeout_s: float = 3.0, database: str = "postgres"
) -> Connection:
    """To another node's PostgreSQL as flypg's operator. Raises NotAccepting or PostgresUnavailable."""
    return await _connect(
        timeout_s,
        host=host,
        port=port,
        user=OPERATOR,
        password=config.passwords.operator,
        dbname=database,
        application_name="flypg",
        **config.tls.parameters(host, port),
        gssencmode="disable",
    )


@contextlib.asynccontextmanager
async def helper(config: InstanceConfig, name: str) -> AsyncIterator[Connection]:
    """A local connection for one piece of work beside the persistent one; closed in any case."""
    connection = await connect_local(config, name=name)
    try:
        yield connection
    finally:
        await connection.close()


class Spare:
    """At most one `helper` connection, opened before it is needed."""

    def __init__(self) -> None:
        self._connection: Connection | None = None

    async def open(self, config: InstanceConfig) -> None:
        """Have one ready. Without an error: whoever takes it opens another when there is none."""
        await self.drop()
        with contextlib.suppress(PostgresUnavailable):
            self._connection = await connect_local(config, name="flypg_spare")

    @contextlib.asynccontextmanager
    async def helper(self, config: InstanceConfig, name: str) -> AsyncIterator[Connection]:
        """The one that is ready, if it still is; otherwise a new one. Closed in any case."""
        connection, self._connection = self._connection, None
        if connection is None or connection.closed:
            connection = await connect_local(config, name=name)
        try:
            yield connection
        finally:
            await connection.close()

    async def drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            cut(connection)
            await connection.close()


class Session:
    """The one local connection that stays open, so that looking costs neither a fork nor an authentication.

    For one task at a time, the keeper's; others use a `helper`.
    """

    def __init__(self, config: InstanceConfig) -> None:
        self._config = config
        self._connection: Connection | None = None

    async def ask(self, question: Callable[[Connection], Awaitable[T]], timeout_s: float = 2.0) -> T:
        """Run `question` on the connection. Raises NotAccepting, PostgresUnavailable or InstanceError; never hangs."""
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = await connect_local(self._config)

        async def work() -> T:
            assert connection is not None
            return await question(connection)

        try:
            return await bounded(connection, work(), timeout_s)
        except PostgresUnavailable:
            await self.drop()
            raise

    async def drop(self) -> None:
        """Close it; the next question opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            cut(connection)
            await connection.close()


async def postmaster_answers(config: InstanceConfig, timeout_s: float) -> bool:
    """Does the postmaster take a new connection and fork for it? Asks for TLS on the Unix socket, the cheapest question
    there is: no authentication, nothing in the log."""
    path = str(config.run / f".s.PGSQL.{config.port}")
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as ours:  # every second: a stream of asyncio would cost thrice as much
        ours.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_connect(ours, path)
                await loop.sock_sendall(ours, SSL_REQUEST)
                return await loop.sock_recv(ours, 1) in (b"N", b"S", b"E")
        except (TimeoutError, OSError):
            return False
