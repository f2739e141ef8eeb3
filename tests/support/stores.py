"""Stores of a test's own on a real etcd, and conditions that are waited for through its errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import pytest

from cluster.clock import SystemClock
from cluster.errors import FlypgError
from cluster.etcd import Etcd
from cluster.etcd_store import EtcdStore
from cluster.model import Member, NodeId, NodeReport, Phase, ServerState, View
from tests.support.etcd import TestEtcd

A, B = NodeId("a"), NodeId("b")
VIEW = View(1, Phase.FOUNDING, A, 1, ())
PATIENCE_S = 30.0


@asynccontextmanager
async def client(etcd: TestEtcd, **options: object) -> AsyncIterator[Etcd]:
    connection = Etcd(etcd.options(**options))
    try:
        yield connection
    finally:
        await connection.close()


def store(connection: Etcd, cluster: str, me: NodeId = A, ttl_s: float = 10, sentinel_ttl_s: float = 5) -> EtcdStore:
    return EtcdStore(connection, cluster, me, clock=SystemClock(), ttl_s=ttl_s, sentinel_ttl_s=sentinel_ttl_s)


def new_cluster() -> str:
    return f"t{uuid4().hex[:8]}"


def report(node: NodeId, run: str = "r1") -> NodeReport:
    return NodeReport(Member(node, "127.0.0.1"), run, ServerState.STANDBY)


async def eventually(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds, through errors of the store; fails by name after half a minute."""
    until = time.monotonic() + PATIENCE_S
    last: object = "false"
    while time.monotonic() < until:
        try:
            if await condition():
                return
            last = "false"
        except FlypgError as error:
            last = error
        await asyncio.sleep(0.05)
    pytest.fail(f"{what}: not within {PATIENCE_S:g} s; last: {last}")


def ready(event: asyncio.Event) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return event.is_set()

    return condition


def writing(node: EtcdStore, what: NodeReport) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        await node.report(what)
        return True

    return condition


def reading(node: EtcdStore) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        await node.read()
        return True

    return condition


def holding(node: EtcdStore) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return (await node.keep_lease()).ttl_s > 0

    return condition


@asynccontextmanager
async def watching(node: EtcdStore) -> AsyncIterator[asyncio.Event]:
    woken = asyncio.Event()
    task = asyncio.create_task(node.watch(woken.set))
    try:
        yield woken
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
