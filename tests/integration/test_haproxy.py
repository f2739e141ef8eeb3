"""HAProxy for real: holding, switching, cutting, surviving the agent. Small TCP servers stand in for PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from agent.routing.haproxy import HAProxy
from agent.routing.haproxy_config import HAProxySettings
from agent.routing.target import Address, Route
from cluster.model import Ports
from tests.support.ports import free_ports

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")


class Server:
    """Says its name to whoever connects, then echoes."""

    def __init__(self, name: str, port: int, host: str = "127.0.0.1") -> None:
        self.name, self.address = name, Address(host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.address.host, self.address.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        writer.write(self.name.encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)
        self._writers.discard(writer)
        writer.close()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            await asyncio.sleep(0.05)


class Client:
    """A client of HAProxy; all are closed when the test leaves `running`."""

    opened: ClassVar[list[Client]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        Client.opened.append(self)

    @classmethod
    async def connect(cls, port: int, host: str = "127.0.0.1") -> Client:
        return cls(*await asyncio.open_connection(host, port))

    async def line(self, within_s: float = 30.0) -> str:
        """The next line; "" when the connection was closed."""
        async with asyncio.timeout(within_s):
            try:
                return (await self.reader.readline()).decode().strip()
            except ConnectionError:
                return ""

    async def echo(self, text: str) -> str:
        self.writer.write(text.encode() + b"\n")
        return await self.line()

    async def silent(self) -> bool:
        """Nothing came and it is still open, for a moment."""
        try:
            await self.line(within_s=0.4)
        except TimeoutError:
            return True
        return False


async def close_clients() -> None:
    for client in Client.opened:
        client.writer.transport.abort()
    await asyncio.sleep(0.05)  # the transports close in the loop's next turns
    Client.opened.clear()


@pytest.fixture
def settings() -> Iterator[HAProxySettings]:
    directory = Path(tempfile.mkdtemp(prefix="fp"))
    directory.chmod(0o777)
    proxy, read, stats = free_ports(3)
    ports = Ports(proxy=proxy, read=read, stats=stats)
    yield HAProxySettings(directory, directory, ports, listen=("127.0.0.1", "::1"), connect_timeout_s=0.1)
    shutil.rmtree(directory)


@contextlib.asynccontextmanager
async def running(settings: HAProxySettings) -> AsyncIterator[HAProxy]:
    haproxy = HAProxy(settings)
    await haproxy.start()
    try:
        assert haproxy.problem == ""
        yield haproxy
    finally:
        await close_clients()
        await haproxy.stop()


@contextlib.asynccontextmanager
async def servers(*names: str) -> AsyncIterator[list[Server]]:
    made = [Server(name, port) for name, port in zip(names, free_ports(len(names)), strict=True)]
    try:
        for server in made:
            await server.start()
        yield made
    finally:
        for server in made:
            await server.stop()


def to(server: Server | None, *readers: Server, keep: Server | None = None, stay: tuple[Server, ...] = ()) -> Route:
    primary = server.address if server else None
    return Route(
        primary,
        keep.address if keep else primary,
        tuple(r.address for r in readers),
        frozenset(s.address for s in (*readers, *stay)),
        "a test",
    )


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (a program changes it, not a task of ours)
            await asyncio.sleep(0.02)


async def test_holds_until_told_then_lets_all_through(settings: HAProxySettings) -> None:
    async with running(settings) as haproxy, servers("a") as (a,):
        clients = [await Client.connect(settings.ports.proxy) for _ in range(20)]
        assert await clients[0].silent(), "a new HAProxy holds clients"
        await haproxy.route(to(a))
        assert [await c.line() for c in clients] == ["a"] * 20
        assert haproxy.routed_to == a.address


async def test_failover_cuts_the_old_sessions_and_holds_new_ones(settings: HAProxySettings) -> None:
    async with running(settings) as haproxy, servers("a", "b") as (a, b):
        await haproxy.route(to(a))
        old = await Client.connect(settings.ports.proxy)
        assert await old.line() == "a"
        await haproxy.route(to(None))
        assert await old.line() == "", "the session with a deposed primary is cut"
        held = await Client.connect(settings.ports.proxy)
        assert await held.silent()
        await haproxy.route(to(None))
        await haproxy.route(to(b))
        assert await held.line() == "b"
        assert await held.echo("hello") == "hello"


async def test_direct_switch_without_a_hold(settings: HAProxySettings) -> None:
    async with running(settings) as haproxy, servers("a", "b") as (a, b):
        await haproxy.route(to(a))
        old = await Client.connect(settings.ports.proxy)
        assert await old.line() == "a"
        await haproxy.route(to(b))
        assert await old.line() == ""
        new = await Client.connect(settings.ports.proxy)
        assert await new.line() == "b"


async def test_handover_that_is_called_off_keeps_sessions(settings: HAProxySettings) -> None:
    async with running(settings) as haproxy, servers("a", "b") as (a, b):
        await haproxy.route(to(a))
        old = await Client.connect(settings.ports.proxy)
        assert await old.line() == "a"
        await haproxy.route(to(None, keep=a))
        assert await old.echo("still here") == "still here"
        held = await Client.connect(settings.ports.proxy)
        assert await held.silent()
        await haproxy.route(to(a))
        assert await held.line() == "a"
        assert await old.echo("still here") == "still here"
        await haproxy.route(to(None, keep=a))
        await haproxy.route(to(b))
        assert await old.line() == "", "after the hand-over its sessions are cut"
        assert await held.line() == ""


async def test_clients_waiting_for_a_dead_primary_survive_the_cut(settings: HAProxySettings) -> None:
    async with running(settings) as haproxy, servers("a", "b") as (a, b):
        await haproxy.route(to(a))
        await a.stop()
        waiting = [await Client.connect(settings.ports.proxy) for _ in range(5)]
        assert await waiting[0].silent()
        await haproxy.route(to(None))
        await haproxy.route(to(b))
        assert [await c.line() for c in waiting] == ["b"] * 5


async def test_many_failovers_lose_no_held_client(settings: HAProxySettings) -> None:
    async with running(settings) as haproxy, servers("a", "b") as (a, b):
        for turn in range(6):
            await haproxy.route(to(a if turn % 2 else b))
            await haproxy.route(to(None))
            held = [await Client.connect(settings.ports.proxy) for _ in range(50)]
            await asyncio.sleep(0.05 * turn)  # they try again at other moments of the cut
            await haproxy.route(to(b if turn % 2 else a))
            assert [await c.line() for c in held] == ["b" if turn % 2 else "a"] * 50


async def test_reads_are_spread_and_sessions_follow_the_rules(settings: HAProxySettings) -> None:
    async with running(settings) as haproxy, servers("a", "b", "c") as (a, b, c):
        await haproxy.route(to(a, b, c))
        clients = {}
        for _ in range(4):
            client = await Client.connect(settings.ports.read)
            clients[await client.line()] = client
        assert set(clients) == {"b", "c"}
        await haproxy.route(to(a, b, stay=(c,)))
        assert await clients["c"].echo("resting") == "resting", "a lagging standby keeps its sessions"
        fresh = [await Client.connect(settings.ports.read) for _ in range(4)]
        assert {await f.line() for f in fresh} == {"b"}
        await haproxy.route(to(a, b))
        assert await clients["c"].line() == "", "one that is no standby any more does not"
        await haproxy.route(to(a, b, c))
        names = set()
        for _ in range(6):
            client = await Client.connect(settings.ports.read)
            names.add(await client.line())
            fresh.append(client)
        assert "c" in names, "it has the fewest sessions"
        await haproxy.route(to(a))
        held = await Client.connect(settings.ports.read)
        assert await held.silent(), "without a reader reads are held"
        await haproxy.route(to(a, a))
        assert await held.line() == "a"


async def test_a_dead_haproxy_comes_back_with_its_route(settings: HAProxySettings) -> None:
    async with running(settings) as haproxy, servers("a", "b") as (a, b):
        await haproxy.route(to(a, b))
        first = haproxy.pid
        assert first is not None and haproxy.trouble == ""
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: haproxy.pid not in (None, first) and haproxy.routed_to == a.address)
        await eventually(lambda: haproxy.problem == "")
        assert "ended by itself" in haproxy.trouble and "started again" in haproxy.trouble
        for port, name in ((settings.ports.proxy, "a"), (settings.ports.read, "b")):
            async with asyncio.timeout(30):
                while True:
                    with contextlib.suppress(ConnectionError):
                        client = await Client.connect(port)
                        if await client.line() == name:
                            break
                    await asyncio.sleep(0.05)


async def test_the_next_agent_adopts_it_without_dropping_a_session(settings: HAProxySettings) -> None:
    async with servers("a", "b", "c") as (a, b, c):
        before = HAProxy(settings)
        await before.start()
        await before.route(to(a, c))
        client, reader = await Client.connect(settings.ports.proxy), await Client.connect(settings.ports.read)
        assert (await client.line(), await reader.line()) == ("a", "c")
        await before.abandon()
        async with running(settings) as after:
            assert after.pid == before.pid
            assert after.routed_to == a.address
            await after.route(to(a, c))
            assert await client.echo("here") == "here"
            assert await reader.echo("here") == "here"
            await after.route(to(b, b))
            assert await client.line() == ""
            assert await reader.line() == ""
            new = await Client.connect(settings.ports.proxy)
            assert await new.line() == "b"


async def test_other_settings_mean_a_new_haproxy(settings: HAProxySettings) -> None:
    before = HAProxy(settings)
    await before.start()
    await before.abandon()
    async with running(replace(settings, connect_timeout_s=0.2)) as after:
        assert after.pid != before.pid


async def test_ipv6_both_ways_and_names(settings: HAProxySettings) -> None:
    server = Server("six", free_ports(1)[0], host="::1")
    try:
        await server.start()
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    try:
        async with running(settings) as haproxy, servers("four") as (four,):
            await haproxy.route(to(server, four))
            client = await Client.connect(settings.ports.proxy, "::1")
            assert await client.line() == "six"
            named = Address("localhost", four.address.port)
            await haproxy.route(Route(named, named, (), frozenset(), "by name"))
            client = await Client.connect(settings.ports.proxy)
            if haproxy.routed_to == four.address:
                assert await client.line() == "four"
    finally:
        await server.stop()


async def test_a_name_nobody_knows_is_tried_again_and_does_not_stop_the_primary(settings: HAProxySettings) -> None:
    async with running(settings) as haproxy, servers("a") as (a,):
        lost = Address("no-such-node.invalid", 5433)
        await haproxy.route(Route(a.address, a.address, (lost,), frozenset({lost}), "one standby has no address"))
        client = await Client.connect(settings.ports.proxy)
        assert await client.line() == "a"
        await haproxy.route(to(a, a))
        reader = await Client.connect(settings.ports.read)
        assert await reader.line() == "a"


async def test_a_taken_port_is_told_and_tried_again(settings: HAProxySettings) -> None:
    taken = Server("other", settings.ports.proxy)
    await taken.start()
    haproxy = HAProxy(settings)
    try:
        await haproxy.start()
        assert str(settings.ports.proxy) in haproxy.problem
        await taken.stop()
        await eventually(lambda: haproxy.problem == "")
    finally:
        await taken.stop()
        await haproxy.stop()


async def test_stats_and_metrics_are_served_on_loopback(settings: HAProxySettings) -> None:
    async with running(settings):
        for path, expected in (("/", "HAProxy"), ("/stats", "HAProxy"), ("/metrics", "haproxy_")):
            reader, writer = await asyncio.open_connection("127.0.0.1", settings.ports.stats)
            writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            async with asyncio.timeout(30):
                assert expected in (await reader.read()).decode(), path
            writer.close()
