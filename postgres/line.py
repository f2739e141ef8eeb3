"""One open connection to another node's PostgreSQL for trivial questions, and the question a new connection is asked.

psycopg's own waiting is not used: when it is given up it sends a cancel request, which is a new connection to a server
that may be frozen. Here giving up is closing the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Mapping
from enum import Enum
from typing import Any

import psycopg

from postgres.connection import open_session

SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


class Probe(Enum):
    ANSWERED = "answered"
    REFUSED = "refused"  # a live host with nothing listening
    NOTHING = "nothing"


async def probe(host: str, port: int, timeout_s: float) -> Probe:
    """Does PostgreSQL answer a new connection? Asks for TLS: answered with one byte, before any authentication and
    without a line in its log."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(SSL_REQUEST)
            return Probe.ANSWERED if await reader.read(1) in (b"S", b"N", b"E") else Probe.NOTHING
    except TimeoutError:
        return Probe.NOTHING
    except OSError as error:
        return Probe.REFUSED if _refused(error) else Probe.NOTHING
    finally:
        if writer is not None:
            writer.transport.abort()


def _refused(error: OSError) -> bool:
    """By each of the host's addresses (asyncio puts the errors of several into one text)."""
    text = str(error)
    return error.errno == errno.ECONNREFUSED or 0 < text.count("[Errno ") == text.count(f"[Errno {errno.ECONNREFUSED}]")


class Line:
    """An open connection. Its end is noticed at once, also between questions."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._descriptor = connection.pgconn.socket
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self._lost = False  # ended by the other side
        self._waiter: asyncio.Future[None] | None = None
        self._listening = True
        self._loop.add_reader(self._descriptor, self._hear)

    @property
    def ended(self) -> bool:
        """Has the other side closed it, or died?"""
        return self._lost

    @classmethod
    async def open(cls, host: str, port: int, credentials: Mapping[str, str], timeout_s: float) -> Line | None:
        """None when there was no login within `timeout_s`, for whatever reason."""
        parameters: dict[str, Any] = {
            "dbname": "postgres",
            "application_name": "flypg watch",
            "gssencmode": "disable",
            **credentials,
        }
        with contextlib.suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(timeout_s):
                return cls(await open_session(host=host, port=port, **parameters))
        return None

    def ask(self) -> None:
        """Send a trivial statement; `answer` waits for its result."""
        try:
            self._pgconn.send_query(b"SELECT 1")
            self._pgconn.flush()  # a few bytes always fit
        except psycopg.Error:
            self._lost = True
            self._end()

    async def answer(self, within_s: float | None = None) -> bool | None:
        """True: it came. False: the connection has ended. None: not within this time; may be called again."""
        while not self._ended:
            if not self._pgconn.is_busy():
                if self._pgconn.get_result() is None:
                    return True
            elif not await self._news(within_s):
                return None
        return False

    async def idle(self, pause_s: float, alarm: int = 0) -> bool:
        """Pause; False as soon as anything arrives, which between questions is next to always the connection's end.

        `alarm`: a process to which the kernel itself sends SIGUSR1 in that moment, before any program could; 0: none.
        """
        self._set_alarm(alarm)
        try:
            return not (await self._news(pause_s) or self._ended)
        finally:
            self._set_alarm(0)

    def _set_alarm(self, process: int) -> None:
        """fcntl(2), F_SETOWN and F_SETSIG. The kernel keeps the process, not its number, which may be given again."""
        if self._ended:
            return
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        if process:
            with contextlib.suppress(OSError):  # it has ended
                fcntl.fcntl(self._descriptor, fcntl.F_SETOWN, process)
                fcntl.fcntl(self._descriptor, fcntl.F_SETSIG, signal.SIGUSR1)
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
        elif flags & os.O_ASYNC:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_ASYNC)

    async def _news(self, within_s: float | None) -> bool:
        """Wait for something to arrive. False: nothing did within this time."""
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(within_s, waiter.cancel) if within_s is not None else None
        try:
            await asyncio.wait({waiter})
            return not waiter.cancelled()
        finally:
            if timer is not None:
                timer.cancel()
            self._waiter = None

    def _hear(self) -> None:
        try:
            self._pgconn.consume_input()
        except psycopg.Error:
            self._lost = True
            self._end()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        """The connection is gone. libpq has closed the socket, and its number may soon be somebody else's."""
        self._ended = True
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._descriptor)

    def close(self) -> None:
        self._end()
        self._pgconn.finish()
