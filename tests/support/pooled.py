"""PgBouncer as an agent runs it, two servers with the same users behind it, and clients: what its tests share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agent.routing.pooler import Pooler
from agent.routing.pooler_config import PoolerSettings
from agent.routing.target import Address
from cluster.clock import SystemClock
from cluster.model import Spec
from postgres import roles
from tests.integration.test_roles import HBA, LAYOUT, PASSWORD, USERS, async_door, fill
from tests.support.pgcopy import copy_of
from tests.support.pgserver import BIN, PgServer
from tests.support.ports import free_ports

NEEDED = [
    pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed"),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed"),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"PostgreSQL is not installed in {BIN}"),
]
SPEC = replace(Spec(), pool_mode="transaction")
OPERATOR = "the operator's password"


@contextlib.contextmanager
def two_servers() -> Iterator[tuple[PgServer, PgServer]]:
    """Two servers with the same users and data."""
    first = PgServer()
    made = [first]
    try:
        first.initdb(password_encryption="scram-sha-256")
        (first.data / "pg_hba.conf").write_text(HBA)
        if os.geteuid() == 0:
            shutil.chown(first.data / "pg_hba.conf", "postgres", "postgres")
        first.start()
        asyncio.run(prepared(first))
        first.stop(signal.SIGINT)
        made.append(copy_of(first))
        first.start()
        yield made[0], made[1]
    finally:
        for server in made:
            server.remove()


async def prepared(server: PgServer) -> None:
    door = async_door(server)
    server.sql("CREATE ROLE veteran LOGIN PASSWORD 'a long password'")
    server.sql("CREATE DATABASE shop")
    with server.connect("shop") as su:
        su.execute(LAYOUT.format("old_").encode())
        su.execute("INSERT INTO old_t (n) VALUES (1)")
    await roles.follow(door, pooler=roles.pooler_password(OPERATOR))
    await roles.prepare(door)
    for name, role in USERS.items():
        async with door("postgres") as connection:
            await roles.create_user(connection, name, role, PASSWORD)
    fill(server, "shop")


@contextlib.contextmanager
def pooler_settings() -> Iterator[PoolerSettings]:
    """In a directory of its own, which is removed in the end."""
    directory = Path(tempfile.mkdtemp(prefix="fp", dir="/tmp"))
    directory.chmod(0o777)
    try:
        yield PoolerSettings(
            directory / "p", directory, free_ports(1)[0], roles.pooler_password(OPERATOR), listen=("127.0.0.1",)
        )
    finally:
        shutil.rmtree(directory)


@contextlib.asynccontextmanager
async def running(
    settings: PoolerSettings, last_will: Callable[[float | None, Path], None] = lambda at, path: None
) -> AsyncIterator[Pooler]:
    pooler = Pooler(settings, SystemClock(), last_will, lambda: None)
    await pooler.start()
    try:
        assert pooler.problem == ""
        yield pooler
    finally:
        await pooler.stop()


def address(server: PgServer) -> Address:
    return Address("127.0.0.1", server.port)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (a program changes it, not a task of ours)
            await asyncio.sleep(0.02)


async def progress(load: Load) -> None:
    enough = load.done + 50
    await eventually(lambda: load.done > enough)


async def released(pooler: Pooler) -> None:
    await eventually(lambda: not pooler.held)


def connect(
    settings: PoolerSettings, user: str = "wanda", database: str = "shop", **more: Any
) -> psycopg.Connection[Any]:
    parameters: dict[str, Any] = {"password": PASSWORD, "connect_timeout": 60, "autocommit": True, **more}
    return psycopg.connect(host="127.0.0.1", port=settings.port, user=user, dbname=database, **parameters)


def ask(settings: PoolerSettings, query: str, user: str = "wanda") -> list[tuple[Any, ...]]:
    with connect(settings, user) as connection:
        return connection.execute(query.encode()).fetchall()


@dataclass
class Load:
    """Clients that run short transactions all the time."""

    settings: PoolerSettings
    clients: int = 10
    reconnect: bool = False  # go on after an error, with a new connection
    stopping: threading.Event = field(default_factory=threading.Event)
    done: int = 0
    longest_s: float = 0.0
    errors: list[str] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self.threads = [threading.Thread(target=self._client) for _ in range(self.clients)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)

    def _client(self) -> None:
        self._connection()
        while self.reconnect and not self.stopping.is_set():
            self._connection()

    def _connection(self) -> None:
        try:
            with connect(self.settings, prepare_threshold=None) as connection:
                while not self.stopping.is_set():
                    began = time.monotonic()
                    row = connection.execute("SELECT inet_server_port() FROM (SELECT pg_sleep(0.002)) s").fetchone()
                    assert row is not None
                    self.ports.add(row[0])
                    self.done += 1
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
        except psycopg.Error as error:
            self.errors.append(str(error))
