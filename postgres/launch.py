"""Starting and stopping the postmaster.

Every start writes the whole configuration anew, gate closed; whether an absence was asked for is on disk before it
happens; and nothing of an earlier server, process or lock, is in the way of the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import replace
from pathlib import Path

from cluster.errors import InstanceError
from cluster.model import Rule, Upstream
from postgres import command, server_log
from postgres.config import Dynamic, standby_names
from postgres.controldata import ControlData
from postgres.files import read_or_empty, remove
from postgres.parts import Parts
from postgres.process import end_leftovers, remove_stale_lock
from postgres.promotion import drop_trailing_stubs

LAUNCHED_S = 10.0  # for a postmaster to write its pid file
STOP_FAST_S = 5.0  # how long `stop` waits before it says "look again"
STOP_NOW_S = 1.0  # for an immediate stop; after that everything is killed
MARK_S = 0.3  # for a word on a disk that may hang, before a stop


class Launcher:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.logged: tuple[Path | None, int] = (None, 0)  # where the log ended before the last start

    async def standby(self, upstream: Upstream | None, found: ControlData) -> None:
        """Start with standby.signal and a list that nobody satisfies. Raises InstanceError with PostgreSQL's reason."""
        files = self._parts.files
        await self._clear()

        def write() -> None:
            files.write_signal("standby.signal")
            demands = files.demands(found.demands)
            files.write_all(replace(files.without_rule(), upstream=upstream, demands=demands), gate_open=False)

        await self._parts.disk.do(write)
        await self._launch()

    async def primary(self, rule: Rule) -> None:
        """Start without standby.signal, under `rule`."""
        files, names = self._parts.files, standby_names(rule)
        await self._clear()

        def write() -> None:
            files.write_all(Dynamic(names, standing=bool(names)), gate_open=False)
            files.remove_signals()

        await self._parts.disk.do(write)
        await self._launch()

    async def _clear(self) -> None:
        """Nothing of an earlier server may be left."""
        config = self._parts.config
        await end_leftovers(config.pgdata)
        for lock in (config.pgdata / "postmaster.pid", config.run / f".s.PGSQL.{config.port}.lock"):
            remove_stale_lock(lock, config.pgdata)
        remove(config.pgdata / "promote")
        drop_trailing_stubs(config.pgdata / "pg_wal")

    async def _launch(self) -> None:
        parts, config = self._parts, self._parts.config
        await parts.session.drop()
        await parts.disk.do(lambda: parts.files.set_mark("started"))
        logged = server_log.mark(config.log)
        self.logged = logged
        output = config.log / "start.log"
        pid = command.spawn(
            [config.binaries / "postgres", "-D", config.pgdata, "-c", f"config_file={parts.files.main_path}"],
            user=parts.owner,
            output=output,
            env={},
        )
        parts.postmaster.watch(pid)
        deadline = parts.clock.boottime() + LAUNCHED_S
        while not launched(read_or_empty(config.pgdata / "postmaster.pid"), pid):
            if parts.postmaster.find() is None:
                await asyncio.sleep(0.1)  # its logger writes the last words
                said = server_log.reason(read_or_empty(output) + server_log.since(config.log, logged))
                raise InstanceError(f"PostgreSQL did not start: {said or f'see {config.log}'}")
            if parts.clock.boottime() > deadline:
                return  # slow, not dead: it is seen to start
            await asyncio.sleep(0.005)

    async def begin_stop(self) -> None:
        """Ask it to stop in order, without waiting."""
        await self._mark_stopped()
        self._parts.postmaster.send(signal.SIGINT)

    async def _mark_stopped(self) -> None:
        with contextlib.suppress(InstanceError):  # a full or hung volume must not keep a server running
            await self._parts.disk.do(lambda: self._parts.files.set_mark("stopped"), MARK_S)
        await self._parts.session.drop()

    async def stop(self, *, fast: bool) -> None:
        parts = self._parts
        if parts.postmaster.find() is None:
            return
        if fast:
            await self.begin_stop()
            await parts.postmaster.gone(STOP_FAST_S)
            return
        await self._mark_stopped()
        parts.postmaster.send(signal.SIGQUIT)
        if await parts.postmaster.gone(STOP_NOW_S):
            return
        parts.postmaster.send(signal.SIGKILL)  # frozen or stuck: it does not hear us
        await parts.postmaster.gone(STOP_NOW_S)
        await end_leftovers(self._parts.config.pgdata, patience_s=0.0)


def launched(pid_file: str, pid: int) -> bool:
    """Has this postmaster opened its sockets? It notes its status in line 8 after that. Before, a SIGHUP may end it."""
    lines = pid_file.splitlines()
    return len(lines) >= 8 and lines[0].strip() == str(pid)
