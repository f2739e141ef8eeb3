"""Where everything of a local cluster lies: directories, files and ports. Pure.

A node `nI` has a block of a hundred ports from `base + 100 * (I - 1)`; etcd's ports lie just below the first block.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cluster.model import Ports

FORMAT_VERSION = 1
DEFAULT_NODES = 3
DEFAULT_PORT_BASE = 15400
DEFAULT_CLUSTER = "local"
HOST = "127.0.0.1"
LONGEST_SOCKET = 100  # bytes; the kernel allows 107


@dataclass(frozen=True, slots=True)
class EtcdMember:
    name: str
    client: int  # port
    peer: int  # port

    @property
    def client_url(self) -> str:
        return f"http://{HOST}:{self.client}"

    @property
    def peer_url(self) -> str:
        return f"http://{HOST}:{self.peer}"


@dataclass(frozen=True, slots=True)
class Layout:
    """A local cluster as it was set up."""

    root: Path
    nodes: int = DEFAULT_NODES
    etcd_members: int = 1
    port_base: int = DEFAULT_PORT_BASE
    cluster: str = DEFAULT_CLUSTER
    settings: tuple[tuple[str, str], ...] = ()  # extra environment of every node, sorted by name

    @property
    def names(self) -> list[str]:
        return [f"n{i}" for i in range(1, self.nodes + 1)]

    @property
    def file(self) -> Path:
        return self.root / "local.json"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets.json"

    def node_dir(self, node: str) -> Path:
        return self.root / node

    def log(self, name: str) -> Path:
        return self.root / "log" / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        return self.root / "pids" / f"{name}.json"

    def etcd_dir(self, member: str) -> Path:
        return self.root / "etcd" / member

    def etcd(self) -> list[EtcdMember]:
        first = self.port_base - 21
        return [EtcdMember(f"e{i + 1}", first + 2 * i, first + 2 * i + 1) for i in range(self.etcd_members)]

    @property
    def endpoints(self) -> str:
        return ",".join(f"{HOST}:{member.client}" for member in self.etcd())

    def lent_out(self, kernels_range: str) -> str:
        """What to say when the kernel gives these ports to outgoing connections, too; "" when it does not. Pure.
        `kernels_range`: net.ipv4.ip_local_port_range as the kernel shows it, like "32768\t60999"."""
        low, high = (int(word) for word in kernels_range.split())
        first, last = self.port_base, self.port_base + 100 * self.nodes - 1
        if last < low or first > high:
            return ""
        return (
            f"note: ports {first} to {last} are in the range of outgoing connections ({low} to {high}): one may be"
            " taken while what listens on it restarts; another --port-base is safer"
        )

    def ports(self, node: str) -> Ports:
        base = self.port_base + 100 * (int(node[1:]) - 1)
        return Ports(
            proxy=base + 32,
            postgres=base + 33,
            read=base + 34,
            pooler=base + 64,
            http=base + 50,
            metrics=base + 87,
            stats=base + 84,
        )

    def environment(self, node: str) -> dict[str, str]:
        """The settings of one node's agent, without passwords."""
        ports = self.ports(node)
        return {
            "FLYPG_CLUSTER": self.cluster,
            "FLYPG_NODE": node,
            "FLYPG_HOST": HOST,
            "FLYPG_LISTEN": HOST,
            "FLYPG_DATA_DIR": str(self.node_dir(node)),
            "FLYPG_ETCD_ENDPOINTS": self.endpoints,
            "FLYPG_PROXY_PORT": str(ports.proxy),
            "FLYPG_POSTGRES_PORT": str(ports.postgres),
            "FLYPG_READ_PORT": str(ports.read),
            "FLYPG_POOLER_PORT": str(ports.pooler),
            "FLYPG_HTTP_PORT": str(ports.http),
            "FLYPG_METRICS_PORT": str(ports.metrics),
            "FLYPG_STATS_PORT": str(ports.stats),
            "FLYPG_SNAPSHOT_URL": f"file://{self.root}/snapshots",
            "FLYPG_SNAPSHOT_SHARED": "true",
            "FLYPG_LOG_FORMAT": "json",  # with times; `flypg local logs` prints it for people
            # a cluster for trying out writes its WAL once, unless a repository is named: that is for keeping it
            **({} if any(name == "FLYPG_SNAPSHOT_URL" for name, _ in self.settings) else {"FLYPG_WAL_ARCHIVE": "off"}),
            **dict(self.settings),
        }

    def too_long(self) -> str | None:
        """Why this directory cannot hold the cluster's sockets; None when it can."""
        socket = f"{self.node_dir(self.names[-1])}/run/.s.PGSQL.{self.ports(self.names[-1]).postgres}"
        if len(socket.encode()) <= LONGEST_SOCKET:
            return None
        return (
            f"{self.root} is too long a path: a unix socket would be {len(socket.encode())} bytes, at most"
            f" {LONGEST_SOCKET} are possible; choose a shorter --dir"
        )

    def dump(self) -> str:
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "cluster": self.cluster,
                "nodes": self.nodes,
                "etcd_members": self.etcd_members,
                "port_base": self.port_base,
                "settings": dict(self.settings),
            },
            indent=2,
        )


def parse_layout(root: Path, text: str) -> Layout:
    """Read what `dump` wrote. Raises ValueError, naming what is wrong."""
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
        raise ValueError("not written by this version of flypg")
    numbers = [data.get(key) for key in ("nodes", "etcd_members", "port_base")]
    if not all(isinstance(n, int) and n > 0 for n in numbers):
        raise ValueError("nodes, etcd_members and port_base must be numbers")
    settings = tuple(sorted((str(k), str(v)) for k, v in dict(data.get("settings", {})).items()))
    return Layout(root, data["nodes"], data["etcd_members"], data["port_base"], str(data["cluster"]), settings)
