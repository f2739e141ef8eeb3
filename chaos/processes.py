"""Which processes make up a node, and signals for them. Read from /proc; nothing is found by its name alone.

A node's processes are those whose command line or environment names its directory, the postmaster of its pid file, and
all their descendants. A pid that was reused is recognised by its start time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One process, as it was when it was looked at."""

    pid: int
    parent: int
    started: int  # clock ticks since boot; with the pid, this names the process for good
    state: str  # "Z": a zombie
    argv: tuple[str, ...]
    cpu_s: float
    rss_bytes: int


TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def look(pid: int) -> Process | None:
    """The process `pid`; None when there is none."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
        argv = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        started=int(fields[19]),
        state=fields[0],
        argv=tuple(argv.decode(errors="replace").rstrip("\0").split("\0")),
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS,
        rss_bytes=int(fields[21]) * PAGE,
    )


def everything() -> dict[int, Process]:
    """All processes of this machine, in all namespaces below ours."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (process := look(int(entry.name))) is not None:
            found[process.pid] = process
    return found


def postmaster_of(pgdata: Path) -> int | None:
    """The postmaster of a data directory; None when none runs."""
    try:
        pid = int((pgdata / "postmaster.pid").read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None
    process = look(pid)
    return pid if process is not None and process.state != "Z" else None


def descendants(root: int, table: dict[int, Process]) -> list[Process]:
    """`root` and everything below it, parents first."""
    if root not in table:
        return []
    found = [table[root]]
    for process in found:
        found.extend(child for child in table.values() if child.parent == process.pid)
    return found


def belonging(directory: Path, table: dict[int, Process]) -> list[Process]:
    """Processes that run for a directory: it, or something below it, is in their command line, or their environment
    says that it is their node's."""
    text = str(directory)
    return [p for p in table.values() if p.pid != os.getpid() and (_named(text, p) or _is_nodes(text, p))]


def _is_nodes(directory: str, process: Process) -> bool:
    key = b"FLYPG_DATA_DIR="
    told = [pair.removeprefix(key) for pair in _environment(process.pid) if pair.startswith(key)]
    return any(f"{os.fsdecode(path)}/".startswith(f"{directory}/") for path in told)


def orphans(directory: Path, table: dict[int, Process]) -> list[Process]:
    """Children of a postmaster below a directory, which no command line shows: they work in their data directory."""
    found = []
    for process in table.values():
        if process.argv[0].startswith("postgres: "):
            with suppress(OSError):
                if f"{os.readlink(PROC / str(process.pid) / 'cwd')}/".startswith(f"{directory}/"):
                    found.append(process)
    return found


def _named(directory: str, process: Process) -> bool:
    for word in process.argv:
        at = word.find(directory)
        if at >= 0 and word[at + len(directory) : at + len(directory) + 1] in ("", "/", ",", " "):
            return True
    return False


def _environment(pid: int) -> list[bytes]:
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # gone, or somebody else's
        return []


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """Signal each of them that still is the process it was."""
    for process in processes:
        now = look(process.pid)
        if now is not None and now.started == process.started:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def wake_when_we_are_gone(processes: Iterable[Process]) -> subprocess.Popen[bytes]:
    """A guard that sends SIGCONT to these when its pipe closes: when we close it, or when we are killed."""
    pids = [str(process.pid) for process in processes]
    return subprocess.Popen(
        ["sh", "-c", 'read -r end; kill -CONT "$@" 2>/dev/null', "guard", *pids],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def alive(processes: Iterable[Process]) -> list[Process]:
    """Those that still run; a zombie does not."""
    found = []
    for process in processes:
        now = look(process.pid)
        if now is not None and now.started == process.started and now.state != "Z":
            found.append(process)
    return found


def wait_gone(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Wait until they are gone; returns those that are not."""
    left = alive(processes)
    until = time.monotonic() + timeout_s
    while left and time.monotonic() < until:
        time.sleep(0.02)
        left = alive(left)
    return left
