"""Cutting a live node off, for a drill: its own firewall drops packets, in two chains of ours that are entered first.

They leave alone: loopback, the helper's port, and everything that is no port of this node, no other node and no etcd,
such as an operator's ssh.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Identity = tuple[int, int]  # pid and start time (ticks since boot)
Rules = dict[str, dict[str, list[list[str]]]]  # {tool: {chain: [match]}}

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


def rules(fault: str, facts: Facts) -> Rules:
    """What each tool drops in each direction."""
    peers = tools_of(a for host in facts.peers for a in resolved(host) if not local(a))
    etcd = [(a, port) for host, port in facts.etcd for a in resolved(host) if not local(a)]
    found: Rules = {}
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
    etcd = [address for host, _ in facts.etcd for address in resolved(host)]
    for tool in tools_of([*addresses, *etcd]):
        if not works(tool):
            return f"{tool} is not installed, or does not work here"
    return ""


def works(tool: str) -> bool:
    return shutil.which(tool, path=PATH) is not None and firewall(tool, "-n", "-L", "INPUT", check=False)


def cut(wanted: Rules, fault: str, port: int, facts: Facts) -> None:
    """Drop these packets, but never those of our own `port`. Raises Failed; `uncut` removes what is there by then."""
    chance = ["-m", "statistic", "--mode", "random", "--probability", "0.200"] if fault == "lossy" else []
    peers = tools_of(address for host in facts.peers for address in resolved(host))
    for tool, chains in wanted.items():
        uncut(tool)
        for chain, matches in chains.items():
            own, arrives = CHAINS[chain], chain == "INPUT"
            firewall(tool, "-N", own)
            firewall(tool, "-A", own, "-i" if arrives else "-o", "lo", "-j", "RETURN")
            firewall(tool, "-A", own, "-p", "tcp", "--dport" if arrives else "--sport", str(port), "-j", "RETURN")
            if fault == "cut-clients":
                for address in peers.get(tool, ()):
                    firewall(tool, "-A", own, "-s" if arrives else "-d", address, "-j", "RETURN")
            for match in matches:
                firewall(tool, "-A", own, *match, *chance, "-j", "DROP")
    for tool in wanted:  # last, and close together
        for chain, own in CHAINS.items():
            firewall(tool, "-I", chain, "-j", own)


def uncut(tool: str) -> None:
    """Remove what `cut` has made. May be repeated."""
    for chain, own in CHAINS.items():
        while firewall(tool, "-D", chain, "-j", own, check=False):
            pass
        firewall(tool, "-F", own, check=False)
        firewall(tool, "-X", own, check=False)
