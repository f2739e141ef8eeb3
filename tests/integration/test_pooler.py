"""PgBouncer as an agent runs it: modes and sizes, its death, and its next agent."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.routing.pooler import Pooler
from agent.routing.pooler_config import PoolerSettings
from cluster.clock import SystemClock
from cluster.model import Spec
from tests.support.pgserver import PgServer
from tests.support.pooled import (
    NEEDED,
    SPEC,
    address,
    connect,
    eventually,
    pooler_settings,
    released,
    running,
    two_servers,
)

pytestmark = NEEDED


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PgServer, PgServer]]:
    with two_servers() as both:
        yield both


@pytest.fixture
def settings() -> Iterator[PoolerSettings]:
    with pooler_settings() as made:
        yield made


async def test_modes_and_sizes_change_without_dropping_a_client(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    a, _ = servers
    async with running(settings) as pooler:
        pooler.route(address(a), Spec(), 1)
        await released(pooler)
        with await asyncio.to_thread(connect, settings) as client:
            client.execute("SELECT 1")
            spec = replace(Spec(), pool_modes="shop=transaction", pool_plan="launch")
            pooler.route(address(a), spec, 3)
            async with asyncio.timeout(30):
                while True:
                    rows = await pooler.console.ask("SHOW DATABASES")
                    modes = {row["name"]: row["pool_mode"] for row in rows}
                    if modes.get("shop") == "transaction":
                        break
                    await asyncio.sleep(0.05)
            values = {row["key"]: row["value"] for row in await pooler.console.ask("SHOW CONFIG")}
            assert (values["max_client_conn"], values["max_db_connections"], values["default_pool_size"]) == (
                "500",
                "50",
                "40",
            )
            assert client.execute("SELECT 1").fetchone() == (1,)


async def test_it_comes_back_and_is_adopted(settings: PoolerSettings, servers: tuple[PgServer, PgServer]) -> None:
    a, b = servers
    before = Pooler(settings, SystemClock(), lambda at, path: None, lambda: None)
    await before.start()
    before.route(address(a), SPEC, 1)
    await released(before)
    first = before.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: before.pid not in (None, first))
    await released(before)
    with await asyncio.to_thread(connect, settings) as client:
        client.execute("SELECT 1")
        await before.abandon()
        async with running(settings) as after:
            assert after.pid == before.pid
            after.route(address(b), SPEC, 1)
            await released(after)
            row = await asyncio.to_thread(lambda: client.execute("SELECT inet_server_port()").fetchone())
            assert row == (b.port,)
