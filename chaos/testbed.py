"""A whole cluster on this machine, made to be broken: etcd members and nodes as processes, each node under its agent.

Two kinds. On loopback every node has ports of its own; no rights are needed, and machines cannot be cut off. With
`namespaces` every node and every etcd member lives in its own network namespace with its own address and the usual
ports, and can be cut off from the rest (chaos/netns.py); that needs root. Everything lies in one temporary directory.
What a testbed started is stopped by pid when it is closed, at the end of the process, or, when that was killed, by the
next testbed (`remove_leftovers`).
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from chaos import clocks, netns, processes, volumes
from chaos.netns import Network
from chaos.places import USUAL, Node, Place, environment
from chaos.ports import free_ports
from chaos.shield import held
from chaos.target import Target, TestbedError
from chaos.volumes import mount_disk, mount_small, unmount_below
from cluster.model import Ports

PREFIX = "fpd"
OWNER = "owner"  # file in a testbed's directory: pid of who made it, its start, its pid namespace
DRILLED = ("pool_mode=transaction",)  # in session mode a client that stays connected loses its session once
ROUNDS = 10  # of stopping what a testbed has left behind


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build."""

    nodes: int = 3
    etcd: int = 3
    namespaces: bool = False
    ipv6: bool = False  # the namespaces have IPv6 addresses and no others
    env: Mapping[str, str] = field(default_factory=dict)  # settings of every node
    node_env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # and of single ones
    spec: tuple[str, ...] = ()  # wishes, as `flypg init` takes them
    cluster: str = "drill"
    data_mb: int = 0  # each node's directory is a volume of this size; 0: it is not (needs root)
    wal_mb: int = 0  # and so is its WAL
    disk_mb: int = 0  # each node's directory is a disk of its own, which can be slow or hang (needs root)
    clocks: bool = False  # each node's wall clock can be moved (needs libfaketime)
    module: str = "flypg"  # what a node runs; a test puts one with a planted bug here


class Testbed(Target):
    """A running cluster. Use as a context manager."""

    __test__ = False

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda _: None) -> None:
        remove_leftovers()
        super().__init__(plan.cluster, say)
        self.plan = plan
        self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        (self.directory / OWNER).write_text(_owned_by_us())
        self.directory.chmod(0o711)  # PostgreSQL runs as another user and must get through
        self.network = Network.create(ipv6=plan.ipv6) if plan.namespaces else None
        self._closed = False
        self.secrets = {key: secrets.token_urlsafe(18) for key in ("SU_PASSWORD", "OPERATOR_PASSWORD", "REPL_PASSWORD")}
        atexit.register(self.close)

    def __enter__(self) -> Testbed:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- building -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start etcd and all nodes; returns when the cluster is healthy."""
        self._say(f"starting {self.plan.etcd} etcd and {self.plan.nodes} nodes in {self.directory}")
        self._start_etcd()
        if self.plan.spec:
            self.flypg("init", *self.plan.spec)
        for number in range(1, self.plan.nodes + 1):
            self.add_node(f"n{number}")
        self.wait_healthy()
        if self.plan.wal_mb:
            for node in [*self.standbys, self.primary]:
                self._move_wal(node, self.plan.wal_mb)

    def _move_wal(self, node: Node, size_mb: int) -> None:
        """Give a node's WAL a small volume of its own, while the node is down."""
        node.kill()
        node.wal_volume = self.directory / f"{node.name}-wal"
        mount_small(node.wal_volume, size_mb)
        wal = node.pgdata / "pg_wal"
        owner = wal.stat()
        home = node.wal_volume / "pg_wal"
        shutil.move(wal, home)
        for path in [node.wal_volume, home, *home.rglob("*")]:
            os.chown(path, owner.st_uid, owner.st_gid)
        wal.symlink_to(home)
        os.chown(wal, owner.st_uid, owner.st_gid, follow_symlinks=False)
        node.start()
        self.wait_healthy()

    def _place(self, name: str) -> tuple[str, list[str]]:
        """Address of a new place, and what goes before its command."""
        if self.network is None:
            return "127.0.0.1", []
        return self.network.add(name), self.network.inside(name)

    def _start_etcd(self) -> None:
        names = [f"e{number}" for number in range(1, self.plan.etcd + 1)]
        where = {}
        for name in names:
            address, before = self._place(name)
            client, peer = free_ports(2) if self.network is None else (2379, 2380)
            where[name] = (address, before, client, peer)
        peers = ",".join(f"{name}=http://{written(address)}:{peer}" for name, (address, _, _, peer) in where.items())
        for name, (address, before, client, peer) in where.items():
            directory = self.directory / name
            directory.mkdir()
            place = Place(name, address, directory, self.directory / f"{name}.log", env=environment({}))
            url = f"http://{written(address)}:{client}"
            place.command = [*before, "etcd", "--name", name, "--data-dir", str(directory), "--log-level", "warn"]
            place.command += ["--listen-client-urls", url, "--advertise-client-urls", url]
            place.command += ["--listen-peer-urls", f"http://{written(address)}:{peer}"]
            place.command += ["--initial-advertise-peer-urls", f"http://{written(address)}:{peer}"]
            place.command += ["--initial-cluster", peers, "--initial-cluster-token", self.directory.name]
            place.endpoint = f"{written(address)}:{client}"
            place.start()
            self.etcd[name] = place
        self._until(lambda: "" if self.etcd_healthy() else "etcd does not answer", 30, self.etcd.values())

    def etcd_healthy(self) -> bool:
        return bool(self.etcdctl("put", "/drill/alive", "1"))

    def add_node(self, name: str, **env: str) -> Node:
        """Start a new node; it joins by itself."""
        address, before = self._place(name)
        ports = USUAL if self.network is not None else Ports(*free_ports(7))
        directory = self.directory / name
        directory.mkdir()
        if self.plan.data_mb:
            mount_small(directory, self.plan.data_mb)
        if self.plan.disk_mb:
            mount_disk(directory, self.plan.disk_mb)
        directory.chmod(0o711)
        node = Node(name, address, directory, self.directory / f"{name}.log", ports=ports)
        node.pgdata = directory / "pgdata"
        node.password = self.secrets["OPERATOR_PASSWORD"]
        node.command = [*before, sys.executable, "-m", self.plan.module, "agent"]
        clock = clocks.settings(directory, binaries()) if self.plan.clocks else {}
        own = {**clock, **self.plan.env, **self.plan.node_env.get(name, {}), **env}
        node.env = environment({**self._settings(node), **self.secrets, **own})
        node.start()
        self.nodes[name] = node
        return node

    def _settings(self, node: Node) -> dict[str, str]:
        p = node.ports
        return {
            "FLYPG_CLUSTER": self.cluster,
            "FLYPG_NODE": node.name,
            "FLYPG_HOST": node.address,
            "FLYPG_DATA_DIR": str(node.directory),
            "FLYPG_ETCD_ENDPOINTS": ",".join(self.endpoints),
            "FLYPG_PROXY_PORT": str(p.proxy),
            "FLYPG_POSTGRES_PORT": str(p.postgres),
            "FLYPG_READ_PORT": str(p.read),
            "FLYPG_POOLER_PORT": str(p.pooler),
            "FLYPG_HTTP_PORT": str(p.http),
            "FLYPG_METRICS_PORT": str(p.metrics),
            "FLYPG_STATS_PORT": str(p.stats),
            "FLYPG_SNAPSHOT_URL": "off",  # a snapshot and its restore test would disturb what is measured
        }

    # --- stopping -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop everything and remove every trace. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        with held():
            self._end()
        atexit.unregister(self.close)

    def _end(self) -> None:
        for node in self.nodes.values():
            processes.send(node.all(), signal.SIGCONT)
            node.kill()
        for place in self.etcd.values():
            place.kill()
        super().close()
        _remove(self.directory)
        if self.network is not None:
            self.network.close()


def binaries() -> Path:
    """Where this machine's newest PostgreSQL is. Raises TestbedError when there is none."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin/postgres") if path.parts[-3].isdigit()]
    if not found:
        raise TestbedError("no PostgreSQL below /usr/lib/postgresql")
    return max(found, key=lambda path: int(path.parts[-3])).parent


def written(address: str) -> str:
    """An address as it stands before a port."""
    return f"[{address}]" if ":" in address else address


def _remove(directory: Path) -> None:
    """Stop what still runs below `directory`, unmount what is mounted there, remove it."""
    for _ in range(ROUNDS):  # an agent may have started something since it was looked for
        table = processes.everything()
        left = [*processes.belonging(directory, table), *processes.orphans(directory, table)]
        if not left:
            break
        processes.send(left, signal.SIGKILL)
        processes.wait_gone(left, 5)
    unmount_below(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _owned_by_us() -> str:
    """What is written into a testbed's directory about the process that makes it."""
    me = processes.look(os.getpid())
    assert me is not None, "we run"
    return f"{me.pid} {me.started} {_pid_namespace()}"


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _is_left(directory: Path) -> bool:
    """Is it ours, and is the process gone that made it? A pid that was given out again is not that process."""
    owner = directory.name.removeprefix(PREFIX).partition("-")[0]
    try:
        if directory.stat().st_uid != os.geteuid() or not owner.isdigit():
            return False
        pid, started, space = (directory / OWNER).read_text().split()
    except (OSError, ValueError):  # it was killed before it could write it
        return not os.path.exists(f"/proc/{owner}")
    if space != _pid_namespace():  # of a container that shares /tmp with us: we do not see its processes
        return False
    now = processes.look(int(pid))
    return now is None or now.started != int(started) or now.state == "Z"


def remove_leftovers() -> None:
    """Remove testbeds whose process is gone, and all that they had started."""
    volumes.remove_leftovers()
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}[0-9]*-*"):
        if _is_left(directory):
            _remove(directory)
    if os.geteuid() == 0 and shutil.which("ip") is not None:
        netns.remove_leftovers()
