"""PgBouncer's admin console over its Unix socket: one command a connection, or several, each with a deadline.

Spoken directly: the console knows the simple query protocol only, and asks no password of whoever can reach the socket,
which lies in a directory that only the servers' user may enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from cluster.errors import CommandFailed

ADMIN = "flypg_pooler"
ANSWER_WITHIN_S = 2.0
Rows = list[dict[str, str]]


class Console:
    """The console of the PgBouncer whose socket is in `directory`."""

    def __init__(self, directory: Path, port: int) -> None:
        self.path = directory / f".s.PGSQL.{port}"

    async def ask(
        self,
        command: str,
        *,
        within_s: float = ANSWER_WITHIN_S,
        passes: str = "",
        on_sent: Callable[[], None] = lambda: None,
    ) -> Rows:
        """What `command` answers; errors that contain `passes` count as success. Raises CommandFailed, also when there
        is no answer in time: what was begun (a PAUSE) goes on then. `on_sent` is called once it was given."""
        with _explained(command, self.path, within_s):
            async with asyncio.timeout(within_s):
                reader, writer = await asyncio.open_unix_connection(self.path)
                try:
                    writer.write(_startup() + _message(b"Q", command.encode() + b"\0"))
                    await _until_ready(reader)
                    on_sent()
                    return await _until_ready(reader, passes)
                finally:
                    writer.transport.abort()

    @contextlib.asynccontextmanager
    async def talk(self) -> AsyncIterator[Talk]:
        """A connection for several commands. Raises CommandFailed."""
        with _explained("a login", self.path, ANSWER_WITHIN_S):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                reader, writer = await asyncio.open_unix_connection(self.path)
                try:
                    writer.write(_startup())
                    await _until_ready(reader)
                except BaseException:
                    writer.transport.abort()
                    raise
        try:
            yield Talk(reader, writer, self.path)
        finally:
            writer.transport.abort()


class Talk:
    """An open connection to the console. One that waits for the end of a PAUSE or SUSPEND can be asked nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
        self._reader, self._writer, self._path = reader, writer, path

    async def ask(self, command: str, passes: str = "") -> Rows:
        """As Console.ask."""
        with _explained(command, self._path, ANSWER_WITHIN_S):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                self._writer.write(_message(b"Q", command.encode() + b"\0"))
                return await _until_ready(self._reader, passes)

    async def order(self, *commands: str) -> None:
        """Give commands that PgBouncer carries out in one go: it looks at nothing else between them. Returns when the
        first was answered; what the others say is not waited for. The last thing to do with this connection."""
        with _explained(commands[0], self._path, ANSWER_WITHIN_S):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                self._writer.write(b"".join(_message(b"Q", command.encode() + b"\0") for command in commands))
                await _until_ready(self._reader, passes="not paused")


@contextlib.contextmanager
def _explained(command: str, path: Path, within_s: float) -> Iterator[None]:
    """What goes wrong with the console becomes CommandFailed."""
    try:
        yield
    except _Refused as error:
        raise CommandFailed(f"PgBouncer refused {command}: {error}") from error
    except TimeoutError as error:
        raise CommandFailed(f"PgBouncer did not answer {command} within {within_s:g} s") from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise CommandFailed(f"PgBouncer's console {path}: {error}") from error


class _Refused(Exception):
    """The console's own words."""


def _startup() -> bytes:
    body = struct.pack("!i", 196608) + b"".join(
        part.encode() + b"\0" for part in ("user", ADMIN, "database", "pgbouncer", "")
    )
    return struct.pack("!i", len(body) + 4) + body


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


async def _until_ready(reader: asyncio.StreamReader, passes: str = "") -> Rows:
    """Read to the next ReadyForQuery; the rows that came. Raises _Refused with the text of an error, unless it contains
    `passes`."""
    names: list[str] = []
    rows: Rows = []
    failed = ""
    while True:
        kind, length = struct.unpack("!ci", await reader.readexactly(5))
        body = await reader.readexactly(length - 4)
        if kind == b"T":
            names = _names(body)
        elif kind == b"D":
            rows.append(dict(zip(names, _values(body), strict=False)))
        elif kind == b"E":
            failed = _error(body)
            if b"FATAL" in body:
                raise _Refused(failed)
        elif kind == b"Z":
            if failed and not (passes and passes in failed):
                raise _Refused(failed)
            return rows


def _names(body: bytes) -> list[str]:
    names, at = [], 2
    for _ in range(int.from_bytes(body[:2])):
        end = body.index(b"\0", at)
        names.append(body[at:end].decode())
        at = end + 19
    return names


def _values(body: bytes) -> list[str]:
    values, at = [], 2
    for _ in range(int.from_bytes(body[:2])):
        length = int.from_bytes(body[at : at + 4], signed=True)
        at += 4
        values.append(body[at : at + max(0, length)].decode(errors="replace"))
        at += max(0, length)
    return values


def _error(body: bytes) -> str:
    for part in body.split(b"\0"):
        if part.startswith(b"M"):
            return part[1:].decode(errors="replace")
    return "no reason given"
