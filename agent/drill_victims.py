"""What a drill breaks on a live node, and how it is mended: processes by signals, the network by drill_network.py.

Nothing is found by its name alone: a node's processes are the agent and the postmaster with all their descendants, and
HAProxy, PgBouncer and the fence that were started from the node's directory. What must be mended is kept in a file, and
it is written there before it is broken.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agent.drill_network import (
    TOOLS,
    Facts,
    Failed,
    Identity,
    cut,
    local,
    resolved,
    rules,
    uncut,
    why_no_network,
    works,
)

SUPERVISOR_S = 2.5  # whoever looks after the agent has so long to start it again before we do


# --- processes ----------------------------------------------------------------------------------------------------


def stat(pid: int) -> Identity | None:
    """Parent and start time of a live process; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else (int(fields[1]), int(fields[19]))


def argv(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def table() -> dict[int, Identity]:
    """Every live process: its parent and start time."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return {pid: found for pid in pids if (found := stat(pid)) is not None}


def below(root: int, processes: dict[int, Identity]) -> set[int]:
    """`root` and all its descendants."""
    found = {root} & processes.keys()
    more = set(found)
    while more:
        more = {pid for pid, (parent, _) in processes.items() if parent in more} - found
        found |= more
    return found


def send(victims: Iterable[Identity], number: signal.Signals) -> None:
    """Signal each that still is the process it was."""
    for pid, started in victims:
        now = stat(pid)
        if now is not None and now[1] == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def named(directory: str, words: list[str]) -> bool:
    """Does a command line name something in this directory?"""
    return any(f"{directory}/" in word or word == directory for word in words)


class Family:
    """The processes of one node."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def find(self, part: str) -> set[Identity]:
        """The processes that `part` of the node consists of now; we are never among them."""
        processes = table()
        ours = below(os.getpid(), processes)
        return {(pid, processes[pid][1]) for pid in self._pids(part, processes) - ours if pid in processes}

    def _pids(self, part: str, processes: dict[int, Identity]) -> set[int]:
        if part == "agent":
            pid, started = self._facts.agent
            return {pid} if pid in processes and processes[pid][1] == started else set()
        if part in ("postmaster", "postgres"):
            postmaster = self._postmaster()
            if postmaster is None:
                return set()
            return {postmaster} if part == "postmaster" else below(postmaster, processes)
        if part == "node":
            found: set[int] = set().union(*(self._pids(p, processes) for p in ("postgres", "haproxy", "pgbouncer")))
            for agent in self._pids("agent", processes):
                found |= below(agent, processes)
            return found | self._pids("fence", processes)
        return {pid for pid in processes if self._is(part, argv(pid))}

    def _postmaster(self) -> int | None:
        try:
            return int(Path(self._facts.pgdata, "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def _is(self, part: str, words: list[str]) -> bool:
        if not named(self._facts.data_dir, words):
            return False
        if part == "fence":
            return any(word.endswith("fence_process.py") for word in words)
        return os.path.basename(words[0].rstrip(":")) == part


# --- the agent, started again -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Recipe:
    """How to start the agent again as it was started."""

    argv: list[str]
    env: dict[bytes, bytes]
    cwd: str
    out: int  # descriptors of its standard output and error
    err: int
    killed_at: float

    @staticmethod
    def of(pid: int) -> Recipe:
        """Raises Failed when this process may not be looked at."""
        try:
            pairs = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
            env = {key: value for key, _, value in (pair.partition(b"=") for pair in pairs) if key}
            cwd = os.readlink(f"/proc/{pid}/cwd")
        except OSError as error:
            raise Failed(f"the agent could not be started again afterwards: {error}") from None
        return Recipe(argv(pid), env, cwd, _stream(pid, 1), _stream(pid, 2), time.monotonic())

    def start(self) -> int:
        child = subprocess.Popen(
            self.argv,
            env=self.env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.err,
            start_new_session=True,
        )
        child.returncode = 0  # it outlives us
        return child.pid


def _stream(pid: int, number: int) -> int:
    """Where a process writes, opened once more; a socket (systemd's journal) cannot be, and its owner will restart."""
    try:
        return os.open(f"/proc/{pid}/fd/{number}", os.O_WRONLY | os.O_APPEND)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def agent_runs(data_dir: str) -> bool:
    """Does some agent keep this directory?"""
    try:
        descriptor = os.open(os.path.join(data_dir, "agent.lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _keeps_alive(agent: int) -> bool:
    """Does the machine or container end with the agent, as on Fly and under a container's small init?"""
    found = stat(agent)
    if found is None or found[0] != 1:
        return False
    with contextlib.suppress(OSError):
        small = Path("/proc/1/comm").read_text().strip() in ("tini", "docker-init", "dumb-init", "catatonit")
        return small or b"\0FLY_MACHINE_ID=" in b"\0" + Path(f"/proc/{agent}/environ").read_bytes()
    return False


def offer(facts: Facts, faults: Iterable[str]) -> dict[str, str]:
    """Every fault, and why it cannot be had on this node; "" when it can."""
    first = "the agent is the first process of its container, which nobody inside can kill or freeze"
    only = "the agent is what its machine is there for: without it the machine ends"
    family, network = Family(facts), why_no_network(facts)
    found = {}
    for fault in faults:
        verb, _, part = fault.partition("-")
        if verb in ("kill", "freeze"):
            if part in ("agent", "node") and facts.agent[0] == 1:
                found[fault] = first
            elif part in ("agent", "node") and verb == "kill" and _keeps_alive(facts.agent[0]):
                found[fault] = only
            else:
                found[fault] = "" if family.find(part) else f"{part} does not run here"
        elif fault == "cut-etcd" and not network:
            near = any(local(address) for host, _ in facts.etcd for address in resolved(host))
            found[fault] = "a member of etcd runs on this machine" if near else ""
        else:
            found[fault] = network
    return found


# --- break and mend -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Broken:
    """What is broken, and how it is mended. Mending may be repeated."""

    facts: Facts
    frozen: set[Identity] = field(default_factory=set)
    tools: list[str] = field(default_factory=list)
    recipe: Recipe | None = None

    def begin(self, fault: str, port: int) -> None:
        """Break it; `port` is ours and stays reachable. Raises Failed: nothing is broken then, or `mend` mends it."""
        family = Family(self.facts)
        verb, _, part = fault.partition("-")
        if verb == "freeze":
            self._freeze(lambda: family.find(part), part)
        elif verb == "kill":
            self._kill(family, part)
        else:
            self._cut(fault, port)

    def _freeze(self, look: Callable[[], set[Identity]], what: str) -> None:
        """Again until nothing new is found: a process may have forked meanwhile."""
        for _ in range(5):
            new = look() - self.frozen
            if not new:
                break
            self.frozen |= new
            self._save()
            send(new, signal.SIGSTOP)
        if not self.frozen:
            raise Failed(f"{what} does not run here")

    def _kill(self, family: Family, part: str) -> None:
        if part in ("agent", "node"):
            self.recipe = Recipe.of(self.facts.agent[0])
        if part == "node":  # all of it at the same instant: nothing may see something else die
            self._freeze(lambda: family.find(part), part)
        victims = family.find(part) | self.frozen
        if not victims:
            raise Failed(f"{part} does not run here")
        send(victims, signal.SIGKILL)

    def _cut(self, fault: str, port: int) -> None:
        if why := why_no_network(self.facts):
            raise Failed(why)
        found = {tool: chains for tool, chains in rules(fault, self.facts).items() if works(tool)}
        self.tools = list(found)
        self._save()
        cut(found, fault, port, self.facts)

    def mend(self) -> str:
        """Undo everything. Returns what an operator should know, "" mostly."""
        for tool in self.tools:
            uncut(tool)
        send(self.frozen, signal.SIGCONT)
        said = self._start_agent()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.facts.state)
        self.frozen, self.tools, self.recipe = set(), [], None
        return said

    def _start_agent(self) -> str:
        if self.recipe is None:
            return ""
        until = self.recipe.killed_at + SUPERVISOR_S
        while time.monotonic() < until:
            time.sleep(0.05)
        if agent_runs(self.facts.data_dir):
            return ""
        try:
            return f"agent {self.recipe.start()}"
        except OSError as error:
            return f"the agent could not be started again: {error}"

    def _save(self) -> None:
        new = self.facts.state + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            json.dump({"frozen": sorted(self.frozen), "tools": self.tools}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.facts.state)


def left_behind(facts: Facts) -> Broken | None:
    """What the state file says is broken; None when there is none."""
    try:
        found = json.loads(Path(facts.state).read_text())
        tools = [tool for tool in TOOLS if tool in found["tools"]]
        return Broken(facts, {(int(pid), int(started)) for pid, started in found["frozen"]}, tools)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Broken(facts, tools=list(TOOLS))
