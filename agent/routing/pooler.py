"""PgBouncer on every node: to an address that leads to the primary; clients are paused while that is to change.

Theory of operation. PAUSE lets running transactions end and gives no new one a server; a pool that is paused while its
primary changes loses no client. Then RESUME (after a new address was written and a RELOAD, if it is another one), in
the way of pooler_release.py. PAUSE outlives whoever asked for it, so with every PAUSE a last will is deposited (the
fence keeps it): RESUME at a given time, or soon after our death. One that waits for long transactions, or for the
sessions of session mode, is not waited for: new ones are held even so.

A primary that has died is another matter: PgBouncer may turn clients away from that moment on, so `hold` gives the
PAUSE by signal, at once. The address should be one where connections are held rather than refused meanwhile. This
node's own server is none of these: while it is asked straight, the fence gives the PAUSE the moment it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from agent.routing import pooler_config as config
from agent.routing.pooler_admin import Console
from agent.routing.pooler_config import PoolerSettings, Pools
from agent.routing.pooler_release import let_in
from agent.routing.program import Program, owner_of, write_owned
from agent.routing.resolve import Resolver
from agent.routing.target import Address
from cluster.clock import Clock
from cluster.errors import CommandFailed
from cluster.model import Spec
from cluster.pool import PoolMode, Share, modes, pool_size, share

LONGEST_HOLD_S = 120.0  # then clients are better off with an error
READY_WITHIN_S = 5.0
RETRY_S = 0.5
AGAIN_S = 0.05  # before those who wait are let in again, after no login worked
LET_IN_WITHIN_S = 10.0  # then whoever is left is let in without: what is wrong with the logins is for clients to see
SESSIONS_END_S = 0.05  # for sessions of session mode that are about to end anyway, before the server stops

LastWill = Callable[[float | None, int], None]  # RESUME this process at this boottime; None: only when we have died


class Pooler:
    """This node's PgBouncer: `start`, then `route` whenever the primary or the wishes have changed."""

    def __init__(
        self,
        settings: PoolerSettings,
        clock: Clock,
        last_will: LastWill,
        on_drained: Callable[[], None],
        pause_at_death: Callable[[int], None] = lambda pid: None,
        door: Address | None = None,
    ) -> None:
        """`pause_at_death`: PAUSE this process the moment this node's server dies; 0: none. It tells `paused` then.
        `door`: what is loaded while clients are held, after this node's own server, so that they need not wait for it
        later; None: that stays.

        `on_drained` is called when a hold has no transaction left that runs, and when sessions have had time."""
        self.console = Console(settings.run_dir, settings.port)
        self.drained = False  # held, and no pooled transaction runs
        self._settings = settings
        self._clock = clock
        self._last_will = last_will
        self._pause_at_death = pause_at_death
        self._door = door
        self._on_drained = on_drained
        self._owner = owner_of(settings.user)
        self._resolver = Resolver()
        self._version = (0, 0)
        self._pools = Pools(None, Share(200, 40, 10, 50))
        self._loaded = ""  # the configuration that PgBouncer has; "" when that is not known
        self._held_at = 0.0  # on the loop's clock
        self._let_in_by: float | None = None  # since clients are to be let in; on the loop's clock
        self._heard_of: int | None = None  # the process that has answered, and so knows its signals
        self._held: bool | None = None  # None: not known, as after an adoption
        self._wanted: tuple[Address | None, Pools, tuple[Address, ...]] | None = None
        self._wake = asyncio.Event()
        self._holding = asyncio.Event()  # a PAUSE was given, or is pointless
        self._worker: asyncio.Task[None] | None = None
        self._pausing: asyncio.Task[None] | None = None
        self._program: Program | None = None
        self._log = logging.getLogger("flypg.pooler")

    @property
    def pid(self) -> int | None:
        return self._program.pid if self._program is not None else None

    @property
    def problem(self) -> str:
        """Why there is no pooler, for people; "" when there is one."""
        return self._program.problem if self._program is not None else "it was not started"

    @property
    def trouble(self) -> str:
        """As `problem`, or what was one until a moment ago."""
        return self._program.trouble if self._program is not None else "the pooler was not started"

    @property
    def held(self) -> bool:
        """Do clients wait?"""
        return self._held is not False

    @property
    def sessions_had_time(self) -> bool:
        """Have clients been held for so long that sessions of session mode which are still open will stay?"""
        asked = self._wanted is not None and self._wanted[0] is None
        return asked and self.held and asyncio.get_running_loop().time() >= self._held_at + SESSIONS_END_S

    async def start(self) -> None:
        """Start PgBouncer, or adopt the one an earlier agent left. Raises CommandFailed without such a program."""
        self._version = await version_of(self._settings.program)
        run = self._settings.run_dir
        own_directory(run, self._owner.uid, self._owner.gid)
        write_owned(run / "pg_hba.conf", config.HBA, self._owner)
        write_owned(run / "users.txt", config.render_users(self._settings), self._owner)
        if not (run / "pgbouncer.ini").exists():
            self._write(self._pools)
        self._program = Program(
            "pgbouncer",
            (self._settings.program, str(run / "pgbouncer.ini")),
            config=config.fingerprint_of(self._settings, self._version),
            run_dir=run,
            log_file=self._settings.log_dir / "pgbouncer.log",
            owner=self._owner,
            ready=self._ready,
        )
        await self._program.start()
        self._worker = asyncio.create_task(self._work(), name="pooler")

    async def stop(self) -> None:
        """End PgBouncer; all its clients are cut off."""
        await self._end_tasks()
        if self._program is not None:
            await self._program.stop()
        self._last_will(None, 0)

    async def abandon(self) -> None:
        """Leave it running as it is, for the next agent to adopt."""
        await self._end_tasks()
        if self._program is not None:
            await self._program.abandon()

    def route(
        self,
        primary: Address | None,
        spec: Spec,
        poolers: int,
        servers: tuple[Address, ...] = (),
        *,
        here: bool = False,
    ) -> None:
        """Lead clients to `primary`, or hold them while it is None. Done at once by a task of ours, which tries again
        what fails. `servers`: those that `primary` may lead to; none: it is the server itself. `here`: it is this
        node's own, which may be asked without TLS; not if the operator wrote who may come how."""
        plain = here and not spec.hba
        pools = Pools(
            None, share(pool_size(spec), poolers), PoolMode(spec.pool_mode), modes(spec), here=here, plain=plain
        )
        if (primary, pools, servers) != self._wanted:
            self._wanted = (primary, pools, servers)
            self._wake.set()

    def hold(self) -> None:
        """Hold clients from this moment on, until `route` is told where to lead them next."""
        if self.to_pause:
            self._begin_hold()
            self._signal(signal.SIGUSR1)
            self._holding.set()

    @property
    def to_pause(self) -> int:
        """The process that takes a PAUSE by signal now; 0 while there is none, or while clients wait anyway."""
        pid = self.pid
        return pid if pid is not None and pid == self._heard_of and self._held is False else 0

    def paused(self) -> None:
        """Somebody else has given the PAUSE: whether clients are to wait is looked at again."""
        if self._held is False:
            self._held = None
            self._wake.set()

    def refresh(self) -> None:
        """Its certificate, or whom it trusts, has changed: it loads that, and drops nobody."""
        self._wake.set()

    async def holding(self, within_s: float) -> None:
        """Return when the PAUSE that `route` asked for was given, or after a while."""
        if self.pid is None or self._wanted is None or self._wanted[0] is not None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._holding.wait()

    async def _work(self) -> None:
        failed = False
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                if self._program is not None and self._program.alive:
                    await self._apply()
                failed = False
            except CommandFailed as error:
                if not failed:
                    self._log.warning("pooler_route_failed", extra={"problem": str(error)})
                failed, self._held, self._loaded = True, None, ""
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def _apply(self) -> None:
        if self._wanted is None:
            return
        primary, pools, servers = self._wanted
        if primary is None:
            if self._held is not True:
                await self._cancel_pause()
                self._begin_hold()
                self._pausing = asyncio.create_task(self._pause(), name="pause")
            self._let_in_by = None
            was = self._pools
            if was.here and self._door is not None:
                await self._given()  # before it, a login would begin at the new address, and the PAUSE break it
                was = await self._leading(self._door, replace(was, here=False, plain=False), servers)
            same = replace(pools, primary=was.primary, verified=was.verified, here=was.here, plain=was.plain)
            await self._reload(same)
            return
        led = await self._leading(primary, pools, servers)
        if self._held is False and (led.primary, led.plain) != (self._pools.primary, self._pools.plain):
            await self._hold_for_another()
        await self._reload(led)
        self._holding.clear()
        if self._held is not False:
            await self._let_in()

    async def _hold_for_another(self) -> None:
        """Another address closes the connections to the one before, and breaks a login that is under way: clients wait
        for some milliseconds, or the next would be turned away."""
        await self._cancel_pause()
        self._holding.clear()
        self._begin_hold()
        self._pausing = asyncio.create_task(self._pause(drains=False), name="pause")
        await self._given()

    async def _given(self) -> None:
        """Return when PgBouncer was told to PAUSE, or after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_WITHIN_S):
                await self._holding.wait()

    async def _leading(self, to: Address, pools: Pools, servers: tuple[Address, ...]) -> Pools:
        tls = self._settings.tls
        verified = all(tls.verifies(at.host, at.port) for at in servers or (to,))
        return replace(pools, primary=await self._resolver.numeric(to), verified=verified)

    def _begin_hold(self) -> None:
        """The will is made before the PAUSE is given."""
        loop = asyncio.get_running_loop()
        self._last_will(self._clock.boottime() + LONGEST_HOLD_S, self.pid or 0)
        self._held, self._held_at, self._let_in_by = True, loop.time(), None
        loop.call_later(SESSIONS_END_S + 0.005, self._on_drained)

    async def _let_in(self) -> None:
        """Clients go on. Nobody is let in yet while no login works: then we look again soon."""
        loop = asyncio.get_running_loop()
        await self._cancel_pause()  # a PAUSE that still waits can hang for ever after a RESUME (pgbouncer #715)
        self._let_in_by = self._let_in_by or loop.time() + LET_IN_WITHIN_S
        if loop.time() > self._let_in_by:
            await self.console.ask("RESUME", passes="not paused")
        elif not await let_in(self.console, lambda: self._signal(signal.SIGUSR2)):
            loop.call_later(AGAIN_S, self._wake.set)
            return
        self._held, self._let_in_by = False, None
        self._last_will(None, self.pid or 0)

    def _signal(self, number: signal.Signals) -> None:
        """SIGUSR1 is PAUSE, SIGUSR2 is RESUME, also from SUSPEND. A process that just starts would die of them."""
        if self._program is not None and self.pid == self._heard_of:
            self._program.signal(number)

    async def _pause(self, *, drains: bool = True) -> None:
        """PAUSE, which ends when no transaction runs any more. Not `drains`: others begin soon, so nobody is told."""
        try:
            await self.console.ask("PAUSE", within_s=LONGEST_HOLD_S, passes="already", on_sent=self._holding.set)
        except CommandFailed as error:
            self._log.warning("pause_failed", extra={"problem": str(error)})
            self._held = None
            return
        if drains:
            self.drained = True
            self._on_drained()

    async def _cancel_pause(self) -> None:
        self.drained = False
        if self._pausing is not None:
            self._pausing.cancel()
            await asyncio.gather(self._pausing, return_exceptions=True)
            self._pausing = None

    async def _reload(self, pools: Pools) -> None:
        """Write and load the configuration if it is not what PgBouncer has."""
        text = config.render(self._settings, pools, self._version)
        if text != self._loaded:
            self._loaded = ""
            self._write(pools)
            await self.console.ask("RELOAD")
            self._loaded = text
            self._pause_at_death(self.pid if pools.here and self.pid is not None else 0)
        self._pools = pools

    def _write(self, pools: Pools) -> None:
        text = config.render(self._settings, pools, self._version)
        write_owned(self._settings.run_dir / "pgbouncer.ini", text, self._owner)

    async def _ready(self) -> None:
        """After a start or an adoption: wait for the console; then our task leads it where it should."""
        self._held, self._loaded, self._heard_of = None, "", None
        assert self._program is not None, "it is what calls us"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_WITHIN_S
        while True:
            try:
                await self.console.ask("SHOW VERSION", within_s=1.0)
                break
            except CommandFailed as error:
                if not self._program.alive or loop.time() > deadline:
                    raise
                if isinstance(error.__cause__, TimeoutError):  # it listens, and was left suspended by an earlier agent
                    self._program.signal(signal.SIGUSR2)
            await asyncio.sleep(0.02)
        self._heard_of = self.pid
        self._wake.set()

    async def _end_tasks(self) -> None:
        if self._program is not None:
            await self._program.abandon()
        await self._cancel_pause()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None


async def version_of(program: str) -> tuple[int, int]:
    """Of PgBouncer. Raises CommandFailed when it cannot be run."""
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},  # not our passwords
            cwd="/",
        )
    except OSError as error:
        raise CommandFailed(f"{program} cannot be run: {error}") from error
    try:
        async with asyncio.timeout(5.0):
            out, _ = await process.communicate()
    except TimeoutError as error:
        raise CommandFailed(f"{program} --version did not answer within 5 s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return config.parse_version(out.decode(errors="replace"))


def own_directory(directory: Path, uid: int | None, gid: int | None) -> None:
    """Only the servers' user, and root, may enter."""
    directory.mkdir(mode=0o700, exist_ok=True)
    directory.chmod(0o700)
    if uid is not None and gid is not None:
        os.chown(directory, uid, gid)
