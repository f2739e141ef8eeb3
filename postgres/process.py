"""The postmaster as a process: found, watched, signalled, and never left as a zombie.

It is found by postmaster.pid and recognised by its working directory, which PostgreSQL sets to the data directory; so a
number that now belongs to somebody else is not taken for it. A pidfd tells of its death at once, also when it is not
our child because an agent before us started it. After `kill -9` of a postmaster its orphans are handed to the nearest
subreaper: an unreaped one would block the next start ("another postmaster is using the socket").
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from postgres import command

PR_SET_CHILD_SUBREAPER = 36
RECEIVER = re.compile(rb"postgres: walreceiver *(streaming [0-9A-F]+/[0-9A-F]+)? *\0*\Z")


def become_subreaper() -> None:
    """Have orphans among our descendants handed to us instead of init. Called once, by the agent."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _stat(pid: int) -> tuple[str, str, int] | None:
    """Name, state letter and parent of a process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    state, parent = text[text.rindex(")") + 2 :].split()[:2]
    return name, state, int(parent)


def _all_pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def reap_orphans() -> None:
    """Reap PostgreSQL's processes that ended after their postmaster and were handed to us."""
    me = os.getpid()
    for pid in _own_children():
        found = _stat(pid)
        if found and found[2] == me and found[1] == "Z" and found[0].startswith("postgres") and command.may_reap(pid):
            command.reap(pid)


def _works_in(pid: int, directory: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(directory)
    except OSError:
        return False


def processes_of(pgdata: Path) -> list[int]:
    """Every living process of the server in `pgdata`, postmaster and others."""
    directory = pgdata.resolve()
    found = []
    for pid in _all_pids():
        stat = _stat(pid)
        if stat and stat[1] != "Z" and stat[0].startswith("postgres") and _works_in(pid, directory):
            found.append(pid)
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return [p for p in _all_pids() if (stat := _stat(p)) and stat[2] == pid]


def _own_children() -> list[int]:
    """Children of each of our threads; looking through all processes takes longer than a failover has."""
    found: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # the thread has just ended
                found += [int(p) for p in Path(f"/proc/self/task/{thread}/children").read_text().split()]
    except FileNotFoundError:  # a kernel without these lists
        return list(_all_pids())
    return found


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class Postmaster:
    """The running postmaster of one data directory, if any. `on_death` is called as soon as it ends."""

    def __init__(self, pgdata: Path, on_death: Callable[[], None]) -> None:
        self._pgdata = pgdata
        self._on_death = on_death
        self._pid: int | None = None
        self._pidfd: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gone = asyncio.Event()

    def find(self) -> int | None:
        """Its process id; None when there is none. Adopts one that somebody else has started."""
        if self._pid is not None and not self._ended():
            return self._pid
        pid = self._noted_pid()
        if pid is not None:
            self.watch(pid)
        return self._pid

    def _noted_pid(self) -> int | None:
        try:
            first = (self._pgdata / "postmaster.pid").read_text(errors="replace").partition("\n")[0].strip()
        except FileNotFoundError:
            return None
        pid = int(first) if first.isdigit() else 0
        stat = _stat(pid) if pid > 1 else None
        if stat is None or stat[1] == "Z" or not stat[0].startswith("postgres"):
            return None
        return pid if _works_in(pid, self._pgdata.resolve()) else None

    def watch(self, pid: int) -> None:
        """From now on this is the postmaster: hear of its end."""
        self._forget()
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            command.reap(pid)
            return
        self._pid = pid
        self._gone.clear()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> bool:
        """Has it ended? Notes and tells it when so."""
        if self._pid is None or self._pidfd is None:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if not poller.poll(0):
            return False
        pid = self._pid
        self._forget()
        command.reap(pid)
        self._gone.set()
        self._on_death()
        return True

    def _forget(self) -> None:
        if self._pidfd is not None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._pid = self._pidfd = None

    def close(self) -> None:
        """Stop watching; the server goes on."""
        self._forget()

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal; False when it is not there any more."""
        if self.find() is None or self._pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    async def gone(self, within_s: float) -> bool:
        """Wait for its end; False when it still runs after `within_s` seconds."""
        if self.find() is None:
            return True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), within_s)
        return self.find() is None

    def receivers(self) -> list[int]:
        """WAL receivers of this postmaster, and children too young to be told apart from one."""
        if (pid := self.find()) is None:
            return []
        own_title = _title(pid)
        found = []
        for child in _children(pid):
            title = _title(child)
            stat = _stat(child)
            if stat is not None and stat[1] != "Z" and (RECEIVER.match(title) or title == own_title):
                found.append(child)
        return found

    def is_receiver(self, pid: int) -> bool:
        return RECEIVER.match(_title(pid)) is not None


def remove_stale_lock(lock: Path, pgdata: Path) -> None:
    """Remove a lock file of PostgreSQL whose process id now belongs to a zombie or to somebody else: PostgreSQL would
    take it for a running server. A lock of a dead process it removes by itself, and any other lock must stay."""
    try:
        first = lock.read_text(errors="replace").partition("\n")[0].strip().lstrip("-")
    except FileNotFoundError:
        return
    if not first.isdigit() or (stat := _stat(int(first))) is None:
        return
    elsewhere = False
    with contextlib.suppress(OSError):
        elsewhere = os.readlink(f"/proc/{first}/cwd") != str(pgdata.resolve())
    if stat[1] == "Z" or not stat[0].startswith("postgres") or elsewhere:
        lock.unlink(missing_ok=True)


async def end_leftovers(pgdata: Path, *, patience_s: float = 3.0) -> None:
    """See to it that nothing of an earlier server is left: without their postmaster its processes end by themselves,
    a stuck one is killed. Only for a data directory whose postmaster is gone."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_s
    while left := processes_of(pgdata):
        if loop.time() > until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if loop.time() > until + patience_s:
            break  # one that cannot even be killed sits in the kernel; the start will say so
        await asyncio.sleep(0.01)
    reap_orphans()
