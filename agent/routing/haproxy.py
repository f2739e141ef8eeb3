"""HAProxy on every node: 5432 to the primary, 5434 to the standbys, switched in milliseconds through its admin socket.

Theory of operation. HAProxy never checks a server itself and is never restarted to switch: we tell it where to go.
New connections are held by leaving HAProxy only a server that refuses: it tries again every `connect_timeout_s`, and
`option redispatch 1` makes each try choose its server anew, so a held client is let through within one such interval of
the release. Sessions with a server that is no longer the primary are cut once clients that were only just connecting
to it have turned away (one interval, too). The primary has two slots: cutting the sessions of the old one never catches
a client of the new one. (`disable frontend` refuses, and `maxconn frontend` can deadlock 2.6: not used.)

HAProxy outlives an agent that was killed: the next one finds it by pid file and socket, reads back where it leads, and
goes on without dropping a session.
"""

from __future__ import annotations

import asyncio
import logging
import os

from agent.routing.haproxy_config import PRIMARY_SLOTS, READER_SLOTS, HAProxySettings, ipv6_works, render
from agent.routing.program import Program, open_files_limit, owner_of, write_owned
from agent.routing.resolve import Resolver
from agent.routing.slots import Slots
from agent.routing.target import Address, Route
from cluster.errors import CommandFailed

RETRY_S = 0.5  # after an address could not be resolved or the socket did not answer
READY_WITHIN_S = 5.0
TURN_AWAY_S = 0.05


class HAProxy:
    """This node's HAProxy: `start`, then `route` whenever the route has changed; the rest happens by itself."""

    def __init__(self, settings: HAProxySettings) -> None:
        self._settings = settings
        self._socket = settings.run_dir / "haproxy.sock"
        self._resolver = Resolver()
        self._wanted: Route | None = None
        self._primary = Slots("pg", PRIMARY_SLOTS)
        self._readers = Slots("read", READER_SLOTS)
        self._sure = False  # do these two say what HAProxy does?
        self._keep: list[Address] = []  # servers whose sessions may go on, though they get no new ones
        self._readers_keep: list[Address] = []
        self._turn = asyncio.Lock()
        self._late: asyncio.Task[None] | None = None  # tries a route that failed again
        self._cutting: asyncio.Task[None] | None = None
        self._log = logging.getLogger("flypg.haproxy")
        self._owner = owner_of(settings.user)
        self._config = render(
            settings, ipv6=ipv6_works(), open_files=open_files_limit(), cpus=len(os.sched_getaffinity(0))
        )
        self._program = Program(
            "haproxy",
            (settings.program, "-db", "-f", str(settings.run_dir / "haproxy.cfg")),
            config=self._config,
            run_dir=settings.run_dir,
            log_file=settings.log_dir / "haproxy.log",
            owner=self._owner,
            ready=self._ready,
        )

    @property
    def pid(self) -> int | None:
        return self._program.pid

    @property
    def problem(self) -> str:
        """Why clients cannot be routed, for people; "" when they can."""
        return self._program.problem

    @property
    def trouble(self) -> str:
        """As `problem`, or what was one until a moment ago."""
        return self._program.trouble

    @property
    def routed_to(self) -> Address | None:
        """Where new connections of 5432 go now; None while they are held."""
        return next(iter(self._primary.opened()), None)

    async def start(self) -> None:
        """Start HAProxy, or adopt the one an earlier agent left. A new one holds clients until `route` is called."""
        write_owned(self._settings.run_dir / "haproxy.cfg", self._config, self._owner)
        await self._program.start()

    async def stop(self) -> None:
        """End HAProxy; all sessions end."""
        await self._program.abandon()
        await _cancelled(self._late, self._cutting)
        await self._program.stop()

    async def abandon(self) -> None:
        """Leave HAProxy running as it is, for the next agent to adopt."""
        await self._program.abandon()
        await _cancelled(self._late, self._cutting)

    async def route(self, route: Route) -> None:
        """Lead clients to where `route` says. Returns within milliseconds; what fails is tried again by itself."""
        self._wanted = route
        await _cancelled(self._late)
        if self._program.pid is not None:  # otherwise it is applied as soon as HAProxy is up
            await self._apply_or_later(route)

    async def _apply_or_later(self, route: Route) -> None:
        try:
            await self._apply(route)
        except CommandFailed as error:
            self._log.warning("route_failed", extra={"problem": str(error), "why": route.why})
            self._late = asyncio.create_task(self._apply_late(route), name="route again")

    async def _apply_late(self, route: Route) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                return await self._apply(route)
            except CommandFailed:
                continue  # logged when it failed first

    async def _ready(self) -> None:
        """After a start or an adoption: wait for the socket, learn where it leads, then lead where it should."""
        self._sure = False
        deadline = asyncio.get_running_loop().time() + READY_WITHIN_S
        while True:
            try:
                async with self._turn:
                    await self._learn()
                break
            except CommandFailed:
                if not self._program.alive or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.02)
        if self._wanted is not None:
            await _cancelled(self._late)
            await self._apply_or_later(self._wanted)

    async def _learn(self) -> None:
        text = await self._ask("show servers state pg;show servers state read")
        self._primary.learn(text)
        self._readers.learn(text)
        self._sure = True

    async def _apply(self, route: Route) -> None:
        """The primary first: it never waits for what is to be found out about standbys."""
        async with self._turn:
            if not self._sure:
                await self._learn()
            self._sure = False  # until all of it has worked
            primary = [await self._resolver.numeric(route.primary)] if route.primary is not None else []
            self._keep = [await self._resolver.numeric(route.keep)] if route.keep is not None else []
            await self._tell(self._primary.lead(primary, self._keep))
            self._cut_soon()
            readers = [await self._resolver.numeric(a) for a in route.readers]
            self._readers_keep = [await self._resolver.numeric(a) for a in sorted(route.readers_keep)]
            await self._tell(self._readers.lead(readers, self._readers_keep))
            self._cut_soon()
            self._sure = True

    def _cut_soon(self) -> None:
        if self._cutting is None or self._cutting.done():
            self._cutting = asyncio.create_task(self._cut(), name="cut sessions")

    async def _cut(self) -> None:
        """End sessions with servers that may have none. Clients that are still connecting to such a server are first
        given the time to turn away from it: so they are held, not cut."""
        while self._primary.to_cut(self._keep) or self._readers.to_cut(self._readers_keep):
            await asyncio.sleep(self._settings.connect_timeout_s + TURN_AWAY_S)
            try:
                async with self._turn:
                    if not self._sure:
                        await self._learn()
                    self._sure = False
                    await self._tell(self._primary.cut(self._primary.to_cut(self._keep)))
                    await self._tell(self._readers.cut(self._readers.to_cut(self._readers_keep)))
                    self._sure = True
            except CommandFailed as error:
                self._log.warning("cut_failed", extra={"problem": str(error)})

    async def _tell(self, commands: list[str]) -> None:
        """Give commands; raises CommandFailed when HAProxy did not take one of them."""
        if not commands:
            return
        answer = await self._ask(";".join(commands))
        bad = [line for line in answer.splitlines() if line.strip() and not _accepted(line)]
        if bad:
            raise CommandFailed(f"HAProxy refused a command: {' / '.join(bad)}")

    async def _ask(self, line: str) -> str:
        try:
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_unix_connection(self._socket, limit=1 << 20)
                try:
                    writer.write(line.encode() + b"\n")
                    return (await reader.read(-1)).decode(errors="replace")
                finally:
                    writer.close()
                    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        except TimeoutError as error:
            raise CommandFailed("HAProxy's admin socket did not answer within 2 s") from error
        except OSError as error:
            raise CommandFailed(f"HAProxy's admin socket {self._socket}: {error}") from error


async def _cancelled(*tasks: asyncio.Task[None] | None) -> None:
    """End these tasks, and return when they have."""
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    await asyncio.gather(*there, return_exceptions=True)


def _accepted(line: str) -> bool:
    """Is this the answer to a `set server … addr` that worked? (The other commands of a switch answer nothing.)"""
    return line.startswith(("IP changed", "no need to change", "port changed", "nothing changed"))
