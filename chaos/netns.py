"""Network namespaces for a testbed: each node and each etcd member behind its own cable, on one switch. Needs root.

The switch is a bridge in a namespace of its own, so that the host's firewall has no say; the host is plugged in with
one cable, through which clients and drills reach everybody. Every name carries the pid of the testbed's owner, and what
an owner left behind when it died is removed by the next one (`remove_leftovers`). Cutting somebody off is done in their
own namespace, by dropping packets.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

PREFIX = "fpg"
NAME = re.compile(rf"{PREFIX}(\d+)x\w+\Z")


class NetworkError(Exception):
    """A namespace, cable or firewall rule could not be made."""


def run(*argv: str, check: bool = True) -> str:
    """Run a network tool; its output. Raises NetworkError with its last words."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        raise NetworkError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def available() -> str:
    """Why namespaces cannot be used here; "" when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"{PREFIX}{os.getpid()}xtry"
    try:
        run("ip", "netns", "add", name)
        run("ip", "netns", "exec", name, "iptables", "-A", "OUTPUT", "-d", "192.0.2.1", "-j", "DROP")
        run("ip", "-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        run("ip", "-n", name, "link", "add", "b0", "type", "bridge")
    except (NetworkError, FileNotFoundError) as error:
        return f"network namespaces do not work here: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return ""


def _names() -> list[str]:
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]


def remove_leftovers() -> None:
    """Remove the namespaces of testbeds whose process is gone."""
    for name in _names():
        match = NAME.match(name)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            for pid in run("ip", "netns", "pids", name, check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            run("ip", "netns", "del", name, check=False)


@dataclass(slots=True)
class Network:
    """A switch with a cable to the host and one to each place. `close` removes it all."""

    tag: str
    subnet: str  # first three numbers of its addresses
    ipv6: bool = False  # its places have IPv6 addresses and no others
    places: dict[str, str] = field(default_factory=dict)  # name -> address

    @classmethod
    def create(cls, *, ipv6: bool = False) -> Network:
        """A new switch, on a subnet that no interface of the host uses."""
        remove_leftovers()
        tag = f"{PREFIX}{os.getpid()}"
        taken = run("ip", "-4", "addr", "show")
        start = os.getpid() % 200
        third = next(n for n in (20 + (start + i) % 200 for i in range(200)) if f"10.88.{n}." not in taken)
        network = cls(f"{tag}n{third}", f"10.88.{third}", ipv6)
        switch = network._namespace("sw")
        run("ip", "netns", "add", switch)
        try:
            run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", switch, "link", "set", "br0", "up")
            host = network.host_interface
            run(
                "ip",
                "-n",
                switch,
                "link",
                "add",
                "up0",
                "type",
                "veth",
                "peer",
                "name",
                host,
                "netns",
                str(os.getpid()),
            )
            run("ip", "-n", switch, "link", "set", "up0", "master", "br0", "up")
            run("ip", "addr", "add", *network._assigned(254), "dev", host)
            run("ip", "link", "set", host, "up")
        except NetworkError:
            network.close()
            raise
        return network

    @property
    def host_interface(self) -> str:
        return f"fp{self.subnet.rpartition('.')[2]}h{os.getpid() % 100000}"[:15]

    @property
    def host_address(self) -> str:
        return self._address(254)

    def _address(self, number: int) -> str:
        return f"fd88:0:0:{self.subnet.rpartition('.')[2]}::{number}" if self.ipv6 else f"{self.subnet}.{number}"

    def _assigned(self, number: int) -> list[str]:
        """As `ip addr add` wants it; without waiting whether somebody has the address already."""
        return [f"{self._address(number)}/64", "nodad"] if self.ipv6 else [f"{self._address(number)}/24"]

    def _namespace(self, place: str) -> str:
        pid = self.tag.removeprefix(PREFIX).partition("n")[0]
        return f"{PREFIX}{pid}x{self.subnet.rpartition('.')[2]}{place}"

    def add(self, place: str) -> str:
        """Plug in a new place; its address."""
        number = len(self.places) + 1
        address = self._address(number)
        space, switch = self._namespace(place), self._namespace("sw")
        run("ip", "netns", "add", space)
        self.places[place] = address
        run("ip", "-n", switch, "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
        run("ip", "-n", space, "addr", "add", *self._assigned(number), "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "link", "set", "lo", "up")
        return address

    @property
    def _firewall(self) -> str:
        return "ip6tables" if self.ipv6 else "iptables"

    def inside(self, place: str) -> list[str]:
        """What to put before a command line so that it runs in `place`."""
        return ["ip", "netns", "exec", self._namespace(place)]

    def drop(self, place: str, *, chain: str, match: Sequence[str] = ()) -> None:
        """Drop packets that arrive at (`INPUT`) or leave (`OUTPUT`) `place` over its cable; loopback is left alone."""
        side = "-i" if chain == "INPUT" else "-o"
        run(*self.inside(place), self._firewall, "-w", "-I", chain, side, "eth0", *match, "-j", "DROP")

    def lose(self, place: str, share: float) -> None:
        """Lose a share (0 to 1) of the packets in each direction."""
        for chain in ("INPUT", "OUTPUT"):
            match = ["-m", "statistic", "--mode", "random", "--probability", f"{share:.3f}"]
            self.drop(place, chain=chain, match=match)

    def heal(self, place: str) -> None:
        """Undo every cut at `place`."""
        for chain in ("INPUT", "OUTPUT"):
            run(*self.inside(place), self._firewall, "-w", "-F", chain)

    def close(self) -> None:
        """Remove the switch, the places and the cables. Processes in them must be gone."""
        for place in [*self.places, "sw"]:
            run("ip", "netns", "del", self._namespace(place), check=False)
        run("ip", "link", "del", self.host_interface, check=False)
        self.places.clear()
