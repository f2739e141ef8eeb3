"""Clients of PgBouncer while the primary changes, as planned and by its death: held, let in, turned away by nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from agent.fence import Fence
from agent.routing.haproxy import HAProxy
from agent.routing.haproxy_config import HAProxySettings, door
from agent.routing.pooler import Pooler
from agent.routing.pooler_config import PoolerSettings
from agent.routing.target import HOLD, Address, Route
from cluster.clock import SystemClock
from cluster.model import NodeId, Ports
from postgres.watch import PrimaryWatch, Target
from tests.support.pgserver import PgServer
from tests.support.pooled import (
    NEEDED,
    SPEC,
    Load,
    address,
    ask,
    connect,
    eventually,
    pooler_settings,
    progress,
    released,
    running,
    two_servers,
)
from tests.support.ports import free_ports

pytestmark = NEEDED
SLOW = "SELECT pg_sleep(0.4)"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PgServer, PgServer]]:
    with two_servers() as both:
        yield both


@pytest.fixture
def settings() -> Iterator[PoolerSettings]:
    with pooler_settings() as made:
        yield made


async def test_switches_under_load_without_an_error(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    a, b = servers
    async with running(settings) as pooler:
        pooler.route(address(a), SPEC, 1)
        await released(pooler)
        with Load(settings) as load:
            await eventually(lambda: load.done > 50)
            for server in (b, a, b):
                pooler.route(None, SPEC, 1)
                await eventually(lambda: pooler.drained)
                before = load.done
                await asyncio.sleep(0.2)
                assert load.done - before <= load.clients, "a held pooler starts no transaction"
                pooler.route(address(server), SPEC, 1)
                await progress(load)
        assert load.errors == []
        assert load.ports == {a.port, b.port}
        assert load.longest_s < 30


@contextlib.asynccontextmanager
async def haproxy_beside(settings: PoolerSettings) -> AsyncIterator[tuple[HAProxy, Address]]:
    """HAProxy, which holds connections while there is no primary, and its door."""
    ports = Ports(*free_ports(7))
    routing = HAProxySettings(settings.log_dir, settings.log_dir, ports, listen=("127.0.0.1",), connect_timeout_s=0.1)
    haproxy = HAProxy(routing)
    await haproxy.start()
    try:
        yield haproxy, door(routing)
    finally:
        await haproxy.stop()


@pytest.mark.parametrize("warm_s", [0.0, 0.5], ids=["while its pools fill", "with full pools"])
async def test_a_dead_primary_costs_the_statements_under_way(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer], warm_s: float
) -> None:
    """The pooler turns nobody away: clients are held from the death on, and let in when logins work."""
    a, b = servers
    try:
        async with haproxy_beside(settings) as (haproxy, way), running(settings) as pooler:
            await haproxy.route(to(a.port))
            pooler.route(way, SPEC, 1)
            await released(pooler)
            with Load(settings, reconnect=True) as load:
                await eventually(lambda: load.done > 50)
                await asyncio.sleep(warm_s)
                a.process.send_signal(signal.SIGKILL)
                pooler.hold()
                pooler.route(None, SPEC, 1)
                await asyncio.to_thread(a.process.wait)
                await asyncio.sleep(0.3)
                waiting = asyncio.create_task(asyncio.to_thread(ask, settings, "SELECT inet_server_port()"))
                await asyncio.sleep(0.2)
                assert not waiting.done(), "a new client waits, too"
                await haproxy.route(HOLD)
                await haproxy.route(to(b.port))
                pooler.route(way, SPEC, 1)
                assert await waiting == [(b.port,)]
                await progress(load)
            assert len(load.errors) <= load.clients
            assert not [text for text in load.errors if "login" in text], "nobody is turned away"
    finally:
        a.start()


async def test_the_watch_of_another_node_has_the_kernel_hold_clients(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    """The pooler is paused before its agent knows of the end; when it was no death clients go on at once."""
    a, b = servers
    alarms: list[bool] = []
    dying = asyncio.Event()
    async with haproxy_beside(settings) as (haproxy, way), running(settings) as pooler:
        watch = PrimaryWatch(
            {"user": "veteran", "password": "a long password"}, stream_age=unknown_age, on_change=lambda verdict: None
        )

        def alarmed() -> None:
            alarms.append(True)
            pooler.paused()

        def contact(term: int, there: bool) -> None:
            if not there and dying.is_set():
                pooler.hold()
                pooler.route(None, SPEC, 1)

        watch.alarm, watch.on_alarm, watch.on_contact = lambda: pooler.to_pause, alarmed, contact
        await haproxy.route(to(a.port))
        pooler.route(way, SPEC, 1)
        await released(pooler)
        watch.watch(Target(1, NodeId("n1"), "127.0.0.1", a.port))
        watching = asyncio.create_task(watch.run())
        try:
            with Load(settings, reconnect=True) as load:
                await eventually(lambda: load.done > 50 and bool(a.sql(WATCHES)))
                a.sql(f"SELECT pg_terminate_backend(pid) FROM ({WATCHES}) AS w")
                await eventually(lambda: len(alarms) == 1)
                await progress(load)
                await eventually(lambda: bool(pooler.to_pause) and bool(a.sql(WATCHES)))
                await asyncio.sleep(1.0)  # it has asked again since, and knows whom to pause
                before = len(load.errors)
                dying.set()
                a.process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(a.process.wait)
                await eventually(lambda: len(alarms) == 2)
                await haproxy.route(HOLD)
                await haproxy.route(to(b.port))
                pooler.route(way, SPEC, 1)
                await progress(load)
            errors = load.errors[before:]
            assert len(errors) <= load.clients
            assert not [text for text in errors if "login" in text], "nobody is turned away"
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            if a.process.poll() is not None:
                a.start()


WATCHES = "SELECT pid FROM pg_stat_activity WHERE application_name = 'flypg watch'"


async def unknown_age() -> float | None:
    return None


async def test_of_a_server_that_is_asked_straight_the_fence_sees_the_death(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    """Its port refuses at once, so nobody could be told in time; then clients wait for another one."""
    a, b = servers
    fence = Fence(settings.log_dir, lambda pid: None)
    await fence.start()
    pooler = Pooler(settings, SystemClock(), fence.unpause, lambda: None, fence.pause_at_death)
    told = asyncio.Event()

    def paused() -> None:
        pooler.route(None, SPEC, 1)
        pooler.paused()
        told.set()

    fence.on_paused = paused
    await pooler.start()
    try:
        pooler.route(address(a), SPEC, 1, here=True)
        await released(pooler)
        fence.arm(float("inf"), a.process.pid)
        await eventually(lambda: fence.confirmed)
        with Load(settings, reconnect=True) as load:
            await eventually(lambda: load.done > 50)
            a.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(a.process.wait)
            await asyncio.wait_for(told.wait(), 30)
            pooler.route(address(b), SPEC, 1)
            await progress(load)
        assert len(load.errors) <= load.clients
        assert not [text for text in load.errors if "login" in text], "nobody is turned away"
        a.start()
        pooler.paused()  # said once too often, or too late
        assert await asyncio.to_thread(ask, settings, "SELECT 1") == [(1,)]
    finally:
        await pooler.stop()
        await fence.stop()


async def test_a_login_that_dies_with_the_primary_turns_nobody_away(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    """PgBouncer takes it for a failed one, and would turn away whoever asks before one has worked."""
    a, b = servers
    async with (
        haproxy_beside(settings) as (haproxy, way),
        running(settings) as pooler,
        contextlib.AsyncExitStack() as stack,
    ):
        async with slow_way(a.port) as port:
            await haproxy.route(to(port))
            pooler.route(way, SPEC, 1)
            await released(pooler)
            clients = [await asyncio.to_thread(connect, settings) for _ in range(5)]
            for client in clients:
                stack.callback(client.close)
            busy = [asyncio.create_task(asyncio.to_thread(client.execute, SLOW)) for client in clients[:2]]
            await login_under_way(pooler, "wanda")
        pooler.hold()  # the primary has died, and a login with it
        pooler.route(None, SPEC, 1)
        await pooler.console.ask("SHOW VERSION")  # so that the PAUSE was seen before anybody asks
        asked = [asyncio.create_task(asyncio.to_thread(clients[2].execute, "SELECT 1"))]
        await asyncio.sleep(0.3)
        assert not asked[0].done(), "who asks meanwhile waits"
        port = await stack.enter_async_context(slow_way(b.port))
        await haproxy.route(to(port))
        pooler.route(way, SPEC, 1)
        for client in clients[3:]:  # in the middle of the first logins at the new one
            await asyncio.sleep(0.1)
            asked.append(asyncio.create_task(asyncio.to_thread(client.execute, "SELECT 1")))
        for task in asked:
            assert (await task).fetchone() == (1,)
        assert await asyncio.to_thread(ask, settings, "SELECT inet_server_port()") == [(b.port,)]
        told = await asyncio.gather(*busy, return_exceptions=True)
        assert not [one for one in told if "login" in str(one)]


async def test_nobody_is_let_in_while_no_login_works(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    """A primary that is found again may still be recovering, or let no client in yet."""
    a, _ = servers
    hba = (a.data / "pg_hba.conf").read_text()
    async with running(settings) as pooler:
        pooler.route(address(a), SPEC, 1)
        await released(pooler)
        with await asyncio.to_thread(connect, settings) as client:
            client.execute("SELECT 1")
            pooler.hold()
            try:
                (a.data / "pg_hba.conf").write_text("local all all trust\n")
                a.send(signal.SIGHUP)
                await asyncio.sleep(0.2)
                waiting = asyncio.create_task(asyncio.to_thread(client.execute, "SELECT 2"))
                pooler.route(None, SPEC, 1)
                pooler.route(address(a), SPEC, 2)
                await asyncio.sleep(1.5)
                assert pooler.held and not waiting.done()
            finally:
                (a.data / "pg_hba.conf").write_text(hba)
                a.send(signal.SIGHUP)
            assert (await waiting).fetchone() == (2,)
            await released(pooler)


async def login_under_way(pooler: Pooler, user: str) -> None:
    async with asyncio.timeout(30):
        while not any(int(r["sv_login"]) for r in await pooler.console.ask("SHOW POOLS") if r["user"] == user):  # noqa: ASYNC110 (a program changes it, not a task of ours)
            await asyncio.sleep(0.01)


def at(port: int) -> Address:
    return Address("127.0.0.1", port)


def to(port: int) -> Route:
    return Route(at(port), at(port), (), frozenset(), "a test")


@contextlib.asynccontextmanager
async def slow_way(target: int) -> AsyncIterator[int]:
    """A port that leads to `target`, a fifth of a second late. In the end all its connections break."""
    under_way: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.transport.abort()

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        try:
            await asyncio.sleep(0.2)
            there, back = await asyncio.open_connection("127.0.0.1", target)
            try:
                await asyncio.gather(carry(reader, back), carry(there, writer))
            finally:
                back.transport.abort()
        except asyncio.CancelledError:
            pass  # the end: asyncio's streams would report it
        finally:
            writer.transport.abort()
            under_way.discard(task)

    server = await asyncio.start_server(slowly, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0)  # for those that have just been accepted
        while under_way:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


async def test_a_login_that_a_hold_cuts_off_turns_nobody_away(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    a, _ = servers
    async with slow_way(a.port) as port, running(settings) as pooler:
        pooler.route(at(port), SPEC, 1)
        await released(pooler)
        first = asyncio.create_task(asyncio.to_thread(ask, settings, "SELECT 1"))
        await login_under_way(pooler, "flypg_pooler")
        pooler.route(None, SPEC, 1)
        await eventually(lambda: pooler.drained)
        pooler.route(at(port), SPEC, 1)
        await released(pooler)
        assert await asyncio.to_thread(ask, settings, "SELECT 2") == [(2,)]
        assert await first == [(1,)]


async def test_a_transaction_in_a_held_pool_may_end(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    a, b = servers
    async with running(settings) as pooler:
        pooler.route(address(a), SPEC, 1)
        await released(pooler)
        with await asyncio.to_thread(connect, settings) as client:
            client.execute("BEGIN")
            client.execute("SELECT 1")
            pooler.route(None, SPEC, 1)
            await eventually(lambda: pooler.held)
            await asyncio.sleep(0.2)
            assert not pooler.drained
            await asyncio.to_thread(client.execute, "COMMIT")
            await eventually(lambda: pooler.drained)
            pooler.route(address(b), SPEC, 1)
            row = await asyncio.to_thread(lambda: client.execute("SELECT inet_server_port()").fetchone())
            assert row == (b.port,)


async def test_its_last_will_is_carried_out(settings: PoolerSettings, servers: tuple[PgServer, PgServer]) -> None:
    a, _ = servers
    fence = Fence(settings.log_dir, lambda pid: None)
    await fence.start()
    pooler = Pooler(settings, SystemClock(), fence.unpause, lambda: None)
    await pooler.start()
    try:
        pooler.route(address(a), SPEC, 1)
        await released(pooler)
        pooler.route(None, SPEC, 1)
        await eventually(lambda: pooler.drained)
        await pooler.abandon()
        await fence.abandon()  # as if we had died: its standard input ends
        assert await asyncio.to_thread(ask, settings, "SELECT 1") == [(1,)], "clients do not wait for a dead agent"
    finally:
        heir = Pooler(settings, SystemClock(), lambda at, path: None, lambda: None)
        await heir.start()
        await heir.stop()
        await fence.stop()


async def test_an_agent_killed_while_clients_are_held(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    """PAUSE would outlive it; the fence does, too, and lets them go on."""
    a, _ = servers
    job = {"directory": str(settings.log_dir), "port": settings.port, "password": settings.password}
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.held_pooler", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    heir = Pooler(settings, SystemClock(), lambda at, path: None, lambda: None)
    fence = Fence(settings.log_dir, lambda pid: None)
    try:
        assert agent.stdin is not None and agent.stdout is not None
        agent.stdin.write(json.dumps(job | {"to": ["127.0.0.1", a.port]}).encode() + b"\n")
        assert await agent.stdout.readline() == b"held\n"
        waiting = asyncio.create_task(asyncio.to_thread(ask, settings, "SELECT 1"))
        await asyncio.sleep(0.3)
        assert not waiting.done(), "clients are held"
        agent.kill()
        await agent.wait()
        assert await waiting == [(1,)], "the fence has ended the hold"
    finally:
        if agent.returncode is None:
            agent.kill()
        await agent.communicate()
        await heir.start()
        await heir.stop()
        await fence.start()
        await fence.stop()
