"""The processes of a local cluster: started in sessions of their own, remembered with their start time, stopped by pid.

A process is ours only if its pid, its start time and the machine's boot are those we noted, so a pid that was given to
somebody else is never signalled. What an agent that was killed left behind is found through /proc: programs that run
from its node's directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OURS = ("postgres", "haproxy", "pgbouncer")  # programs an agent starts; agent and fence are Python
ZOMBIE_STATES = ("Z", "X")


@dataclass(frozen=True, slots=True)
class Process:
    """One process, told apart from any later one with the same pid."""

    pid: int
    started: int  # clock ticks after boot, from /proc/PID/stat
    boot: str


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time of a process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
    return fields[0], int(fields[1]), int(fields[19])


def identify(pid: int) -> Process | None:
    """The process that has this pid now; None when there is none, or only a zombie."""
    found = _stat(pid)
    return None if found is None or found[0] in ZOMBIE_STATES else Process(pid, found[2], boot_id())


def is_alive(process: Process) -> bool:
    return identify(process.pid) == process


def remember(file: Path, process: Process) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps({"pid": process.pid, "started": process.started, "boot": process.boot}))
    temporary.replace(file)


def recall(file: Path) -> Process | None:
    """The process noted in `file`, if it still runs. A file that cannot be read notes nothing."""
    try:
        data = json.loads(file.read_text())
        process = Process(int(data["pid"]), int(data["started"]), str(data["boot"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return process if is_alive(process) else None


def start(argv: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path, user: str | None) -> Process:
    """Start a program in a session of its own, its output appended to `log`; it outlives us. `user` None: as we are."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        os.chmod(log, 0o640)
        child = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **({} if user is None else {"user": user, "group": user, "extra_groups": []}),  # type: ignore[call-overload]
        )
    child.returncode = 0  # it is not ours to wait for: without this, Python warns that it still runs
    found = _stat(child.pid)
    return Process(child.pid, found[2] if found else 0, boot_id())


def send(process: Process, number: signal.Signals) -> None:
    """Signal a process if it is still the one we mean."""
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def wait_gone(
    processes: Iterable[Process], within_s: float, tell: Callable[[list[Process]], None] | None = None
) -> list[Process]:
    """Wait until all have ended; returns those that have not."""
    left = list(processes)
    until = time.monotonic() + within_s
    while True:
        for process in left:
            _reap(process.pid)
        left = [p for p in left if is_alive(p)]
        if not left or time.monotonic() >= until:
            return left
        if tell is not None:
            tell(left)
        time.sleep(0.05)


def _reap(pid: int) -> None:
    """Collect a child of ours that has ended; what is not our child is init's to collect."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def running_from(directory: Path) -> list[Process]:
    """The programs of a node that run from its directory, whoever their parent is now; the oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with contextlib.suppress(OSError):  # it ended meanwhile, or is none of ours to read
            if pid != os.getpid() and _belongs(pid, directory) and (process := identify(pid)) is not None:
                found.append(process)
    return sorted(found, key=lambda p: (p.started, p.pid))


def _belongs(pid: int, directory: Path) -> bool:
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    if name in OURS:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        prefix = f"{directory}/".encode()
        if any(word.startswith(prefix) for word in words):
            return True
        cwd = os.readlink(f"/proc/{pid}/cwd")
        return cwd == str(directory) or cwd.startswith(f"{directory}/")
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    if f"FLYPG_DATA_DIR={directory}".encode() not in environment:
        return False
    return os.readlink(f"/proc/{pid}/exe").rpartition("/")[2].startswith("python")


def postmaster(directory: Path) -> Process | None:
    """The running PostgreSQL of a node; None when there is none."""
    for file in (directory / "pgdata" / "postmaster.pid", directory / "postgres" / "postmaster.pid"):
        with contextlib.suppress(OSError, ValueError):
            process = identify(int(file.read_text().split("\n", 1)[0]))
            if process is not None and os.readlink(f"/proc/{process.pid}/cwd").startswith(str(directory)):
                return process
    return None
