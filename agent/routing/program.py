"""A helper program (HAProxy, PgBouncer) that is kept running, and that outlives an agent that was killed.

Theory of operation. The program runs in a session of its own and writes to a log file, so nothing of ours that dies
takes it along. Its pid, start time and the fingerprint of its configuration are in a pid file: the next agent finds it
there and adopts it when the configuration is still the same. Its death is noticed through a pidfd, also when it is not
our child, and it is started again after a pause that grows while it keeps failing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import pwd
import resource
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.processes import gone, reap, start_time
from cluster.errors import CommandFailed

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
SETTLED_S = 10.0  # after that long a life the next death counts as the first
TOLD_S = 60.0  # for so long people are told that it had to be started again


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a program runs as. Both None: as the caller."""

    uid: int | None = None
    gid: int | None = None


def owner_of(user: str) -> Owner:
    """The servers' user when we are root, else ourselves. Raises CommandFailed when there is no such user."""
    if os.geteuid() != 0:
        return Owner()
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise CommandFailed(f"there is no OS user {user} to run HAProxy and PgBouncer as") from error
    return Owner(entry.pw_uid, entry.pw_gid)


def open_files_limit() -> int:
    """How many files a program started by us may have open at most."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def write_owned(path: Path, text: str, owner: Owner, mode: int = 0o600) -> None:
    """Replace `path` at once, readable by its owner only."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), mode)
        if owner.uid is not None and owner.gid is not None:
            os.fchown(file.fileno(), owner.uid, owner.gid)
        file.write(text)
    temporary.replace(path)


class Program:
    """One supervised program. `ready` is awaited after every start and adoption; it may raise CommandFailed."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        config: str,
        run_dir: Path,
        log_file: Path,
        owner: Owner,
        ready: Callable[[], Awaitable[None]],
        end_with: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.problem = ""  # why it does not run, for people; "" while it does
        self.starts = 0  # how often it was started by us
        self._argv = tuple(argv)
        self._pid_file = run_dir / f"{name}.pid"
        self._fingerprint = hashlib.sha256("\0".join((*argv, config)).encode()).hexdigest()[:16]
        self._log_file = log_file
        self._owner = owner
        self._ready = ready
        self._end_with = end_with
        self._pid: int | None = None
        self._ended = ""  # how it last ended by itself
        self._deaths = 0  # one soon after the other
        self._started_at = 0.0
        self._supervisor: asyncio.Task[None] | None = None
        self._log = logging.getLogger(f"flypg.{name}")

    @property
    def pid(self) -> int | None:
        """Of the running program; None while there is none."""
        return self._pid

    @property
    def trouble(self) -> str:
        """What is wrong with it, or was until a moment ago, for people; "" when it runs well."""
        if self.problem or not self._deaths:
            return self.problem
        if asyncio.get_running_loop().time() - self._started_at > TOLD_S:
            return ""
        times = "" if self._deaths == 1 else f", {self._deaths} times so far"
        return f"{self._ended}; it was started again{times}"

    @property
    def alive(self) -> bool:
        return self._pid is not None and start_time(self._pid) is not None

    async def start(self) -> None:
        """Adopt the program if it runs with this configuration, start it otherwise, and keep it running.

        Returns when it was tried once, whether it worked or not: `problem` tells, and it is tried again.
        """
        if not await self._adopt():
            await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")

    async def stop(self) -> None:
        """End the program and its supervision."""
        await self.abandon()
        if self._pid is not None:
            await self._end(self._pid)
        self._pid_file.unlink(missing_ok=True)
        self._forget()

    async def abandon(self) -> None:
        """End the supervision only; the program goes on for the next agent to adopt."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it is gone."""
        if self._pid is not None and start_time(self._pid) is not None:
            os.kill(self._pid, number)

    async def _supervise(self) -> None:
        pause = FIRST_PAUSE_S
        clock = asyncio.get_running_loop().time
        while True:
            if self._pid is not None:
                began = clock()
                await gone(self._pid)
                self._forget()
                self._ended = f"{self.name} ended by itself"
                self.problem = f"{self._ended}: {self._last_words()}"
                self._deaths = 1 if clock() - began > TOLD_S else self._deaths + 1
                self._log.warning("program_ended", extra={"program": self.name, "problem": self.problem})
                pause = FIRST_PAUSE_S if clock() - began > SETTLED_S else pause
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)
            await self._launch()

    async def _adopt(self) -> bool:
        """Take over what an earlier agent left running; end it when its configuration is not ours."""
        try:
            pid_text, started, fingerprint = self._pid_file.read_text().split()
        except (OSError, ValueError):
            return False
        pid = int(pid_text)
        if start_time(pid) != int(started):
            return False
        if fingerprint == self._fingerprint:
            self._pid = pid
            try:
                await self._ready()
            except CommandFailed as error:
                self._log.warning("adoption_failed", extra={"program": self.name, "problem": str(error)})
            else:
                self._log.info("program_adopted", extra={"program": self.name, "pid": pid})
                return True
        self._pid = None
        await self._end(pid)
        return False

    async def _launch(self) -> None:
        """Start it once. What goes wrong is kept in `problem`."""
        try:
            self._spawn()
            await self._ready()
        except (OSError, CommandFailed) as error:
            if self._pid is not None:
                await self._end(self._pid)
                self._forget()
            self.problem = f"{self.name} does not start: {error}; {self._last_words()}"
            self._log.warning("program_failed", extra={"program": self.name, "problem": self.problem})
        else:
            self.problem = ""

    def _spawn(self) -> None:
        with self._log_file.open("ab") as log:
            child = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
                start_new_session=True,
                user=self._owner.uid,
                group=self._owner.gid,
                extra_groups=[] if self._owner.uid is not None else None,
            )
        self.starts += 1
        self._started_at = asyncio.get_running_loop().time()
        with contextlib.suppress(OSError):
            resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (open_files_limit(), open_files_limit()))
        child.returncode = 0  # subprocess is to forget it: it may outlive us, and we reap it ourselves
        self._pid = child.pid
        write_owned(self._pid_file, f"{child.pid} {start_time(child.pid) or 0} {self._fingerprint}\n", Owner())

    def _forget(self) -> None:
        """It is gone: reap it if it was our child."""
        if self._pid is not None:
            reap(self._pid)
        self._pid = None

    async def _end(self, pid: int) -> None:
        """Ask it to end, insist after two seconds."""
        started = start_time(pid)
        for number in (self._end_with, signal.SIGKILL):
            if started is None or start_time(pid) != started:
                return
            os.kill(pid, number)
            try:
                async with asyncio.timeout(2.0):
                    await gone(pid)
            except TimeoutError:
                continue
            return

    def _last_words(self) -> str:
        """The last lines of its log, for the operator."""
        try:
            lines = self._log_file.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return " / ".join(lines[-3:]) if lines else "it left no message"
