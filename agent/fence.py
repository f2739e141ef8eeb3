"""The agent's side of the fence: keeps the small process of fence_process.py running, and tells it until when.

A fence that dies is started again at once and gets the last order; one that does not confirm an order is replaced. The
fence of an agent that has died keeps its order until ours has confirmed one, so there is never a moment without.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from agent import fence_process
from agent.processes import gone, reap, start_time
from cluster.errors import CommandFailed

CONFIRM_WITHIN_S = 2.0
PAUSE_S = 0.1  # before a fence that ended is started again


class Fence:
    """Stops the postmaster at the time last given to `arm`, even if we are dead, stuck or stopped by then."""

    def __init__(self, run_dir: Path, on_fired: Callable[[int], None]) -> None:
        """`on_fired` is called with the postmaster's pid when the fence begins to stop it."""
        self.fired = 0  # how often
        self.on_paused: Callable[[], None] = lambda: None  # it has paused the pooler of `pause_at_death`
        self._pid_file = run_dir / "fence.pid"
        self._on_fired = on_fired
        self._order: str | None = None  # None: not told anything yet
        self._confirmed: str | None = None
        self._will = ""
        self._pause = ""
        self._pid: int | None = None
        self._stdin = self._stdout = -1
        self._buffer = b""
        self._ready = asyncio.Event()
        self._before: list[tuple[int, int]] = []  # pid and start of the fences of agents before us
        self._supervisor: asyncio.Task[None] | None = None
        self._check: asyncio.TimerHandle | None = None
        self._log = logging.getLogger("flypg.fence")

    @property
    def pid(self) -> int | None:
        return self._pid

    @property
    def confirmed(self) -> bool:
        """Has the fence taken the last order?"""
        return self._confirmed == self._order

    @property
    def inherited(self) -> bool:
        """Does a fence of an agent before us still hold its last order? It ends when ours has confirmed one."""
        return bool(self._before)

    async def start(self) -> None:
        """Start the fence. Raises CommandFailed when it does not come up within five seconds."""
        self._before = self._fences_before()
        self._spawn()
        try:
            async with asyncio.timeout(5.0):
                await self._ready.wait()
        except TimeoutError as error:
            raise CommandFailed("the fence did not start within 5 s") from error
        self._supervisor = asyncio.create_task(self._supervise(), name="supervise fence")

    def arm(self, valid_until: float, pid: int) -> None:
        """Stop postmaster `pid` at `valid_until` (boottime; inf: never) unless told otherwise before. Never blocks."""
        started = start_time(pid)
        if started is None:
            self.disarm()
        else:
            self._give(f"arm {valid_until!r} {pid} {started}")

    def disarm(self) -> None:
        """There is no writable PostgreSQL here to stop."""
        self._give("disarm")

    def unpause(self, at: float | None, pid: int) -> None:
        """RESUME this PgBouncer at this boottime, or soon after our death; None: only then. 0: there is none."""
        self._will = f"unpause {'inf' if at is None else repr(at)} {pid} {start_time(pid) or 0}"
        self._write(self._will)

    def pause_at_death(self, pid: int) -> None:
        """PAUSE this PgBouncer the moment the postmaster of `arm` dies; 0: none."""
        self._pause = f"pause {pid} {start_time(pid) or 0}" if pid else "pause 0 0"
        self._write(self._pause)

    async def stop(self) -> None:
        """End the fence and its supervision: nothing will be stopped any more."""
        await self.abandon()
        if self._pid is not None and start_time(self._pid) is not None:
            os.kill(self._pid, signal.SIGKILL)
            await gone(self._pid)
        self._forget()
        self._pid_file.unlink(missing_ok=True)

    async def abandon(self) -> None:
        """End the supervision only: the fence keeps its last order for the next agent to take over."""
        if self._check is not None:
            self._check.cancel()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        self._close_pipes()

    def _give(self, order: str) -> None:
        if order == self._order and self._pid is not None:
            return
        self._order = order
        self._send()

    def _send(self) -> None:
        """Tell the fence; if it does not confirm in time it is replaced."""
        if self._stdin < 0 or self._order is None:
            return  # it gets the order when it has been started again
        self._write(self._order)
        if self._check is None:
            self._check = asyncio.get_running_loop().call_later(CONFIRM_WITHIN_S, self._check_confirmed, self._order)

    def _write(self, line: str) -> None:
        if self._stdin < 0:
            return
        try:
            os.write(self._stdin, line.encode() + b"\n")
        except (BlockingIOError, BrokenPipeError):
            self._log.warning("fence_deaf", extra={"pid": self._pid})

    def _check_confirmed(self, order: str | None) -> None:
        self._check = None
        if self._confirmed == self._order:
            return
        if self._order != order:  # a newer one is under way
            self._check = asyncio.get_running_loop().call_later(CONFIRM_WITHIN_S, self._check_confirmed, self._order)
        elif self._pid is not None and start_time(self._pid) is not None:
            self._log.warning("fence_replaced", extra={"pid": self._pid, "why": f"it did not confirm {order!r}"})
            os.kill(self._pid, signal.SIGKILL)

    async def _supervise(self) -> None:
        while True:
            if self._pid is not None:
                await gone(self._pid)
                self._log.warning("fence_ended", extra={"pid": self._pid})
                self._forget()
            await asyncio.sleep(PAUSE_S)
            try:
                self._spawn()
            except OSError as error:
                self._log.warning("fence_failed", extra={"problem": str(error)})

    def _spawn(self) -> None:
        read_end, self._stdin = os.pipe()
        self._stdout, write_end = os.pipe()
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(fence_process.__file__)), str(self._pid_file)],
                stdin=read_end,
                stdout=write_end,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError:
            self._close_pipes()
            raise
        finally:
            os.close(read_end)
            os.close(write_end)
        child.returncode = 0  # subprocess is to forget it: it may outlive us, and we reap it ourselves
        self._pid = child.pid
        self._confirmed, self._buffer = None, b""
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        asyncio.get_running_loop().add_reader(self._stdout, self._hear)
        self._send()
        for line in filter(None, (self._will, self._pause)):
            self._write(line)

    def _hear(self) -> None:
        """Read what the fence says."""
        try:
            data = os.read(self._stdout, 65536)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._stdout)
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "ready":
                self._ready.set()
            elif word == "ok" and not rest.startswith(("unpause", "pause")):
                self._confirmed = rest
                self._end_those_before()
            elif word == "paused":
                self.on_paused()
            elif word == "fired":
                self.fired += 1
                self._log.error("fence_fired", extra={"postmaster": rest})
                self._on_fired(int(rest))

    def _fences_before(self) -> list[tuple[int, int]]:
        """The fences that earlier agents have left running. The pid file names only the last one, whose agent may have
        died before it gave an order, while the one before still holds its own."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended, or is somebody else's
                continue
            ours = any(word.endswith(b"fence_process.py") for word in words) and os.fsencode(self._pid_file) in words
            if ours and (started := start_time(pid)) is not None:
                found.append((pid, started))
        return found

    def _end_those_before(self) -> None:
        """Ours has an order now: the fences of the agents before are not needed any more."""
        for pid, started in self._before:
            if start_time(pid) == started:
                os.kill(pid, signal.SIGKILL)
        self._before = []

    def _forget(self) -> None:
        if self._pid is not None:
            reap(self._pid)
        self._pid = None
        self._close_pipes()

    def _close_pipes(self) -> None:
        if self._stdout >= 0:
            asyncio.get_running_loop().remove_reader(self._stdout)
            os.close(self._stdout)
        if self._stdin >= 0:
            os.close(self._stdin)
        self._stdin = self._stdout = -1
