"""What a drill breaks on a live node, and how it is mended: processes by signals, the network by the node's firewall.

Nothing is found by its name alone: a node's processes are the agent and the postmaster with all their descendants, and
HAProxy, PgBouncer and the fence that were started from the node's directory. What must be mended is kept in a file, and
it is written there before it is broken.

The firewall gets two chains of our own, entered first. They leave alone: loopback, the helper's port, and everything
that is no port of this node, no other node and no etcd, such as an operator's ssh.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

Identity = tuple[int, int]  # pid and start time (ticks since boot)

SUPERVISOR_S = 2.5  # whoever looks after the agent has so long to start it again before we do
CHAINS = {"INPUT": "flypg-drill-in", "OUTPUT": "flypg-drill-out"}
TOOLS = ("iptables", "ip6tables")
NET_ADMIN = 12  # the capability's number
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Failed(Exception):
    """The fault cannot be had; the message says why."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The node, as its agent tells the helper."""

    agent: Identity
    data_dir: str
    pgdata: str
    state: str  # the file that says what must be mended
    peers: tuple[str, ...] = ()  # hosts of the other nodes
    etcd: tuple[tuple[str, int], ...] = ()
    client_ports: tuple[int, ...] = ()  # where clients connect
    ports: tuple[int, ...] = ()  # all ports of the node


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


# --- the firewall -------------------------------------------------------------------------------------------------


def firewall(tool: str, *arguments: str, check: bool = True) -> bool:
    """Run iptables or ip6tables. Raises Failed when it fails and `check` is set."""
    try:
        done = subprocess.run(
            [tool, "-w", "5", *arguments],
            env={"PATH": PATH, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        if check:
            raise Failed(f"{tool}: {error}") from None
        return False
    if check and done.returncode != 0:
        raise Failed(f"{tool} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.returncode == 0


def resolved(host: str) -> list[str]:
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except OSError:
        return []


def local(address: str) -> bool:
    """Is this an address of the machine (or namespace) that we are on?"""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def tools_of(addresses: Iterable[str]) -> dict[str, list[str]]:
    """Which program drops packets of which addresses."""
    found: dict[str, list[str]] = {}
    for address in addresses:
        found.setdefault("ip6tables" if ":" in address else "iptables", []).append(address)
    return found


def rules(fault: str, facts: Facts) -> dict[str, dict[str, list[list[str]]]]:
    """What each tool drops in each direction: {tool: {chain: [match]}}."""
    peers = tools_of(a for host in facts.peers for a in resolved(host) if not local(a))
    etcd = [(a, port) for host, port in facts.etcd for a in resolved(host) if not local(a)]
    found: dict[str, dict[str, list[list[str]]]] = {}
    everywhere = fault in ("isolate", "deaf", "mute", "lossy")
    for tool in TOOLS:
        into: list[list[str]] = []
        out: list[list[str]] = []
        if everywhere or fault == "cut-replication":
            into += [["-s", address] for address in peers.get(tool, ())]
            out += [["-d", address] for address in peers.get(tool, ())]
        if everywhere or fault == "cut-etcd":
            mine = [(a, str(port)) for a, port in etcd if (":" in a) == (tool == "ip6tables")]
            into += [["-s", address, "-p", "tcp", "--sport", port] for address, port in mine]
            out += [["-d", address, "-p", "tcp", "--dport", port] for address, port in mine]
        if everywhere or fault == "cut-clients":
            ports = [str(port) for port in (facts.ports if everywhere else facts.client_ports)]
            into += [["-p", "tcp", "--dport", port] for port in ports]
            out += [["-p", "tcp", "--sport", port] for port in ports]
        chains = {"INPUT": into if fault != "mute" else [], "OUTPUT": out if fault != "deaf" else []}
        if any(chains.values()):
            found[tool] = chains
    return found


def why_no_network(facts: Facts) -> str:
    """Why this node's packets cannot be dropped; "" when they can."""
    lines = Path("/proc/self/status").read_text().splitlines()
    capable = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))
    if not capable >> NET_ADMIN & 1:
        return "the agent may not change the firewall: it needs root or the capability NET_ADMIN"
    addresses = [address for host in facts.peers for address in resolved(host)]
    if not addresses:
        return "the addresses of the other nodes cannot be found"
    if any(local(address) for address in addresses):
        return "the node shares its network with another node"
    for tool in tools_of(addresses):
        if shutil.which(tool, path=PATH) is None:
            return f"{tool} is not installed"
        if not firewall(tool, "-n", "-L", "INPUT", check=False):
            return f"{tool} does not work here"
    return ""


def offer(facts: Facts, faults: Iterable[str]) -> dict[str, str]:
    """Every fault, and why it cannot be had on this node; "" when it can."""
    first = "the agent is the first process of its container, which nobody inside can kill or freeze"
    family, network = Family(facts), why_no_network(facts)
    found = {}
    for fault in faults:
        verb, _, part = fault.partition("-")
        if verb in ("kill", "freeze"):
            if part in ("agent", "node") and facts.agent[0] == 1:
                found[fault] = first
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
        chance = ["-m", "statistic", "--mode", "random", "--probability", "0.200"] if fault == "lossy" else []
        found = rules(fault, self.facts)
        self.tools = list(found)
        self._save()
        for tool, chains in found.items():
            self._remove(tool)
            for chain, matches in chains.items():
                own, ours = CHAINS[chain], "--dport" if chain == "INPUT" else "--sport"
                firewall(tool, "-N", own)
                firewall(tool, "-A", own, "-i" if chain == "INPUT" else "-o", "lo", "-j", "RETURN")
                firewall(tool, "-A", own, "-p", "tcp", ours, str(port), "-j", "RETURN")
                if fault == "cut-clients":
                    side = "-s" if chain == "INPUT" else "-d"
                    for address in tools_of(a for host in self.facts.peers for a in resolved(host)).get(tool, ()):
                        firewall(tool, "-A", own, side, address, "-j", "RETURN")
                for match in matches:
                    firewall(tool, "-A", own, *match, *chance, "-j", "DROP")
        for tool in found:  # last, and close together
            for chain, own in CHAINS.items():
                firewall(tool, "-I", chain, "-j", own)

    def _remove(self, tool: str) -> None:
        for chain, own in CHAINS.items():
            while firewall(tool, "-D", chain, "-j", own, check=False):
                pass
            firewall(tool, "-F", own, check=False)
            firewall(tool, "-X", own, check=False)

    def mend(self) -> str:
        """Undo everything. Returns what an operator should know, "" mostly."""
        for tool in self.tools:
            self._remove(tool)
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
