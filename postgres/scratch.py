"""A PostgreSQL that nobody else can reach: for recovery out of a repository, and to see whether a backup can be used.

It listens on no address, only on a socket in a directory of its own that the server's user alone may enter, and it
never archives. Its settings come from a file of ours, not from the data directory: those belong to another cluster.

It does not wait for the disk: what it works on has been made anew, and whoever keeps that sees to it in the end.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from cluster.errors import CommandFailed, InstanceError, PostgresUnavailable
from postgres.command import Account, last_words, reap, run, spawn
from postgres.config import quoted
from postgres.connection import OWN_SESSION, open_session
from postgres.controldata import ControlData, parse
from postgres.defaults import SMALL_MB
from postgres.files import make_directory, write_atomically
from postgres.server_files import machine_memory_mb

COMPLAINT = re.compile(r"(?:FATAL|PANIC):  (.+)((?:\n.*(?:DETAIL|HINT):  .+)*)")
ADVICE = re.compile(r"(?:DETAIL|HINT):  (.+)")
ASKED = "the database system is "  # … not accepting connections: an answer to our looking whether it is open
PREPARED, MANY = "max_prepared_transactions", 1000
PORT = 5432  # only part of the socket's name
POLL_S = 0.1
DEBIAN = Path("/usr/lib/postgresql")


def find_programs(major: int, given: str = "") -> Path:
    """The directory of PostgreSQL's programs of version `major`; `given` wins. Raises InstanceError."""
    candidates = [Path(given)] if given else [DEBIAN / str(major) / "bin", Path(f"/usr/pgsql-{major}/bin")]
    for candidate in candidates:
        if (candidate / "postgres").exists():
            return candidate
    raise InstanceError(f"the programs of PostgreSQL {major} are not in {', '.join(map(str, candidates))}")


def room_for_wal(segment_bytes: int) -> dict[str, str]:
    """PostgreSQL wants room for two segments, and its defaults have that for up to 40 MB each only. Pure."""
    segment_mb = segment_bytes >> 20
    return {"min_wal_size": f"{max(80, 2 * segment_mb)}MB", "max_wal_size": f"{max(1024, 4 * segment_mb)}MB"}


class ScratchServer:
    """One server on a restored data directory. `home`: a short path, created; for its files, socket and log."""

    def __init__(self, data: Path, home: Path, programs: Path, user: Account | None) -> None:
        self.data = data
        self.home = home
        self._programs = programs
        self._user = user
        self._pid: int | None = None

    @property
    def log(self) -> Path:
        return self.home / "log"

    def _program(self, name: str) -> Path:
        return self._programs / name

    async def control(self) -> ControlData:
        """The control file of the data directory."""
        output = await run([self._program("pg_controldata"), "-D", self.data], timeout_s=30, user=self._user)
        return parse(output.decode())

    async def tool(self, name: str, *arguments: str | Path, timeout_s: float) -> str:
        """Run one of PostgreSQL's programs as the server's user. Raises CommandFailed, CommandTimedOut."""
        env = {"PGOPTIONS": OWN_SESSION}
        output = await run([self._program(name), *arguments], timeout_s=timeout_s, user=self._user, env=env)
        return output.decode(errors="replace")

    async def start(self, settings: Mapping[str, str]) -> None:
        """Launch it; returns at once. See `wait_until_open`."""
        control = await self.control()
        demands = control.demands
        demands[PREPARED] = max(demands[PREPARED], MANY)  # WAL may hold more of them than were allowed at its beginning
        await asyncio.to_thread(
            self._write_files,
            {**{k: str(v) for k, v in demands.items()}, **room_for_wal(control.segment_bytes), **settings},
        )
        await asyncio.to_thread((self.data / "postmaster.pid").unlink, missing_ok=True)
        argv: list[str | Path] = [
            self._program("postgres"),
            "-D",
            self.data,
            "-c",
            f"config_file={self.home / 'postgresql.conf'}",
        ]
        self._pid = await asyncio.to_thread(spawn, argv, user=self._user, output=self.log, env={})

    def _write_files(self, settings: Mapping[str, str]) -> None:
        make_directory(self.home, owner=self._user)
        lines = {
            "data_directory": str(self.data),
            "hba_file": str(self.home / "pg_hba.conf"),
            "ident_file": str(self.home / "pg_ident.conf"),
            "unix_socket_directories": str(self.home),
            "listen_addresses": "",
            "port": str(PORT),
            "shared_buffers": "64MB" if machine_memory_mb() >= SMALL_MB else "16MB",
            "archive_mode": "off",
            "autovacuum": "off",
            "fsync": "off",
            "ssl": "off",
            "synchronous_standby_names": "",
            "primary_conninfo": "",
            "logging_collector": "off",
            "log_min_messages": "log",
            "restart_after_crash": "off",
            **settings,
        }
        text = "".join(f"{name} = {quoted(value)}\n" for name, value in lines.items())
        for name, content in (
            ("postgresql.conf", text),
            ("pg_hba.conf", "local all all trust\n"),  # the directory of the socket is closed to everybody else
            ("pg_ident.conf", ""),
        ):
            write_atomically(self.home / name, content, owner=self._user, durable=False)
        # settings of the cluster it came from, which would win over ours
        write_atomically(self.data / "postgresql.auto.conf", "", owner=self._user, durable=False)

    def alive(self) -> bool:
        if self._pid is None:
            return False
        reap(self._pid)
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return True

    def last_words(self) -> str:
        """What it died of, in a line, if it said so; else the end of its log."""
        try:
            log = self.log.read_bytes()
        except FileNotFoundError:
            return ""
        return death(log.decode(errors="replace")) or last_words(log)

    @asynccontextmanager
    async def connection(self, database: str = "postgres") -> Any:
        try:
            connection = await open_session(
                host=str(self.home), port=PORT, user="postgres", dbname=database, connect_timeout=10
            )
        except psycopg.OperationalError as error:
            raise PostgresUnavailable(f"the scratch server does not answer: {error}") from error
        async with connection:
            yield connection

    async def row(self, query: str, database: str = "postgres") -> tuple[Any, ...]:
        """The first row of a query of ours. Raises PostgresUnavailable."""
        async with self.connection(database) as connection:
            try:
                cursor = await connection.execute(query)
                found = await cursor.fetchone()
            except psycopg.Error as error:
                raise PostgresUnavailable(f"{query}: {error}") from error
        assert found is not None, "every query here has a row"
        return tuple(found)

    async def column(self, query: str, database: str = "postgres") -> list[Any]:
        """The first column of a query of ours. Raises PostgresUnavailable."""
        async with self.connection(database) as connection:
            try:
                cursor = await connection.execute(query)
                return [r[0] for r in await cursor.fetchall()]
            except psycopg.Error as error:
                raise PostgresUnavailable(f"{query}: {error}") from error

    async def wait_until_open(self, *, timeout_s: float, writable: bool = True) -> None:
        """Wait until it answers, and (`writable`) has left recovery. Raises InstanceError with its last words."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._open(writable):
                    if not self.alive():
                        raise InstanceError(f"PostgreSQL on {self.data} ended: {self.last_words()}")
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise InstanceError(f"PostgreSQL on {self.data} was not ready in {timeout_s:g} s") from None

    async def _open(self, writable: bool) -> bool:
        try:
            (recovering,) = await self.row("SELECT pg_is_in_recovery()")
        except PostgresUnavailable:
            return False
        return not (writable and recovering)

    async def stop(self, *, timeout_s: float = 120.0) -> None:
        """Stop in order; killed when that takes longer. Safe to repeat."""
        if not self.alive():
            self._pid = None
            return
        assert self._pid is not None
        os.kill(self._pid, signal.SIGINT)
        if not await self._ended(timeout_s):
            await self.kill()
            raise CommandFailed(f"PostgreSQL on {self.data} did not stop in {timeout_s:g} s and was killed")
        self._pid = None

    async def kill(self) -> None:
        """End it at once; its data directory needs recovery then."""
        for number in (signal.SIGQUIT, signal.SIGKILL):
            if self._pid is not None and self.alive():
                os.kill(self._pid, number)
                await self._ended(5.0)
        self._pid = None

    async def _ended(self, within_s: float) -> bool:
        """Has it ended, or does it within `within_s` seconds?"""
        for _ in range(int(within_s / POLL_S)):
            if not self.alive():
                return True
            await asyncio.sleep(POLL_S)
        return not self.alive()


def death(log: str) -> str:
    """The last complaint in a server's log that was fatal, with what it advises; "" without one. Pure."""
    found = [(said, advice) for said, advice in COMPLAINT.findall(log) if not said.startswith(ASKED)]
    return " ".join((found[-1][0], *(f"({text})" for text in ADVICE.findall(found[-1][1])))) if found else ""
