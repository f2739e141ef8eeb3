"""A live cluster as drills see it: its nodes are known from etcd, and broken by their own agents (chaos/remote.py).

Clients write into a database of their own, which is made before the first drill and removed after the last.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.drills import Drill, Needs
from chaos.faults import Undo, nothing
from chaos.inspection import patiently
from chaos.places import Node, Place, environment
from chaos.remote import Remote
from chaos.shield import held
from chaos.target import Target, TestbedError
from chaos.watch import Watcher
from chaos.wire import Wire, WireError, connect
from cluster.drill_orders import FAULTS, LONGEST_S
from cluster.endpoints import EtcdOptions
from cluster.model import Member

DATABASE = "flypg_drill"
POOLED = "SELECT to_regprocedure('flypg.user_lookup(text)') IS NOT NULL"
REMARK = "made by flypg drill, which removes it"
OF_THE_SERVER = ("postgres", "template0", "template1", DATABASE)
ELSEWHERE = {"kill-standby": "kill-node", "freeze-standby": "freeze-node", "restart-agent": "kill-agent"}
SQL_S = 30.0
POOLED_S = 75.0  # a primary's agent looks for new databases once a minute
SPARE_S = 10.0
_NOWHERE = Path("/nonexistent")  # where a node keeps its files is its own business


@dataclass(slots=True)
class LiveNode(Node):
    """`through`: where clients connect instead of this node's own port, host and port."""

    through: tuple[str, int] | None = None

    @property
    def through_proxy(self) -> str:
        if self.through is None:
            return self.conninfo(self.ports.proxy)
        host, port = self.through
        return self.conninfo(port, host=host)


class LiveCluster(Target):
    """A cluster that somebody else runs."""

    def __init__(
        self,
        cluster: str,
        etcd: EtcdOptions,
        members: Sequence[Member],
        password: str,
        remotes: Mapping[str, Remote],
        *,
        through: Sequence[tuple[str, int]] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(cluster, say)
        self.remotes = remotes
        self.on_restarted: Callable[[str, int], None] = lambda node, pid: None  # a node's agent has this pid now
        self._options = etcd
        self.secrets = {"OPERATOR_PASSWORD": password}
        nowhere = Place("", "", directory=_NOWHERE, log=_NOWHERE)
        for endpoint in etcd.endpoints:
            written = str(endpoint) if endpoint.tls else endpoint.target
            self.etcd[written] = dataclasses.replace(nowhere, name=written, endpoint=written)
        for number, member in enumerate(members):
            self.nodes[member.node] = LiveNode(
                member.node,
                member.host,
                _NOWHERE,
                _NOWHERE,
                ports=member.ports,
                password=password,
                database=DATABASE,
                sslmode="prefer",
                through=through[number % len(through)] if through else None,
            )

    @property
    def watch(self) -> Watcher:
        if self._watcher is None:
            self._watcher = Watcher(self.endpoints, self.cluster, env=self._etcdctl_env(), whole=False)
            until = time.monotonic() + 10
            while self._watcher.view is None and time.monotonic() < until:
                time.sleep(0.05)
        return self._watcher

    def _etcdctl_env(self) -> dict[str, str]:
        o = self._options
        wanted = {"CACERT": o.ca_file, "CERT": o.cert_file, "KEY": o.key_file, "USER": o.user, "PASSWORD": o.password}
        return environment({f"ETCDCTL_{name}": value for name, value in wanted.items() if value})

    def flypg(self, *arguments: str, timeout_s: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        o = self._options
        wanted = {
            "FLYPG_ETCD_ENDPOINTS": ",".join(map(str, o.endpoints)),
            "FLYPG_CLUSTER": self.cluster,
            "FLYPG_ETCD_CA_FILE": o.ca_file,
            "FLYPG_ETCD_CERT_FILE": o.cert_file,
            "FLYPG_ETCD_KEY_FILE": o.key_file,
            "FLYPG_ETCD_USER": o.user,
            "FLYPG_ETCD_PASSWORD": o.password,
        }
        env = environment({key: value for key, value in wanted.items() if value})
        done = subprocess.run(
            [sys.executable, "-m", "flypg", *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            raise TestbedError(f"flypg {' '.join(arguments)}: exit {done.returncode}: {done.stderr}{done.stdout}")
        return done

    # --- what is there already --------------------------------------------------------------------------------------

    def _wire(self, database: str = "postgres") -> Wire:
        """To the primary. Raises WireError."""
        node = self.primary
        return connect(node.conninfo(node.ports.postgres, database=database), timeout_s=5)

    def others(self) -> list[str]:
        """Databases that somebody uses, and "postgres" when somebody has tables there. Raises WireError."""
        wire = self._wire()
        try:
            rows = wire.execute("SELECT datname FROM pg_database ORDER BY 1", timeout_s=SQL_S)
            found = [name for (name,) in rows if name not in OF_THE_SERVER]
            mine = "SELECT 1 FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') LIMIT 1"
            return found + (["postgres"] if wire.execute(mine, timeout_s=SQL_S) else [])
        finally:
            wire.close()

    @contextmanager
    def database(self) -> Iterator[None]:
        """The clients' database, empty; removed afterwards. Raises TestbedError when there is one of somebody else."""
        until = time.monotonic() + SQL_S
        while True:
            try:
                self._make_database()
                break
            except WireError as error:
                if time.monotonic() > until:
                    raise TestbedError(f"the database {DATABASE} cannot be made: {error}") from error
                time.sleep(0.5)
        try:
            yield
        finally:
            with held():
                self._drop_database()

    def _make_database(self) -> None:
        wire = self._wire()
        try:
            asked = "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = $1"
            there = wire.execute(asked, [DATABASE], timeout_s=SQL_S)
            if there and there[0][0] != REMARK:
                raise TestbedError(f"there is a database {DATABASE} already that no drill has made: rename or drop it")
            wire.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", timeout_s=SQL_S)
            wire.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0", timeout_s=SQL_S)
            wire.execute(f"COMMENT ON DATABASE {DATABASE} IS '{REMARK}'", timeout_s=SQL_S)
            pooled = wire.execute(POOLED, timeout_s=SQL_S)[0][0] == "t"
        finally:
            wire.close()
        if pooled:
            self._wait_pooled()

    def _wait_pooled(self) -> None:
        """The pooler lets nobody into a new database before the primary's agent has been there."""
        self._say("waiting: the pooler lets clients into a new database within a minute")
        wire = self._wire(DATABASE)
        try:
            until = time.monotonic() + POOLED_S
            while wire.execute(POOLED, timeout_s=SQL_S)[0][0] != "t" and time.monotonic() < until:
                time.sleep(0.2)
        finally:
            wire.close()

    def _drop_database(self) -> None:
        until = time.monotonic() + SQL_S
        while True:
            try:
                wire = self._wire()
                try:
                    wire.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", timeout_s=SQL_S)
                    return
                finally:
                    wire.close()
            except (WireError, TestbedError) as error:
                if time.monotonic() > until:
                    self._say(f"the database {DATABASE} is left: {error}; the next drill removes it")
                    return
                time.sleep(0.5)


def fault_of(drill: Drill) -> str:
    """What an agent is asked for in this drill; "" when nothing."""
    name = ELSEWHERE.get(drill.name, drill.name)
    return name if name in FAULTS else ""


def why_not(drill: Drill) -> str:
    """Why a drill cannot be run against a live cluster; "" when it can."""
    if drill.name == "switchover" or fault_of(drill):
        return ""
    if drill.etcd:
        return "etcd has no agent of ours that could break it"
    if drill.needs.wal_mb or drill.needs.data_mb:
        return "a volume of a live node is never filled"
    if drill.name == "lose-machine":
        return "no agent can take its own machine away; isolate and kill-node are the nearest"
    return "only in a testbed"


def longest_s(drill: Drill) -> float:
    """When the node undoes it by itself at the latest."""
    return min(LONGEST_S, max(drill.hold_s, drill.limit_s + 20) + SPARE_S)


def adapted(drill: Drill) -> Drill:
    """The drill, with its fault injected by the victim's agent."""
    fault = fault_of(drill)
    if not fault:
        return drill

    def begin(target: Target, node: Node) -> Undo:
        assert isinstance(target, LiveCluster), "it was adapted for one"
        asked = time.monotonic()
        held = target.remotes[node.name].begin(fault, longest_s(drill))
        killed = fault in ("kill-agent", "kill-node")
        if killed:
            node.started_at = asked  # healthy again only once it has reported since

        def undo() -> None:
            word, _, pid = held.end().partition(" ")
            if word == "agent" and pid.isdigit():
                target.on_restarted(node.name, int(pid))

        return undo

    def restart(target: Target, node: Node) -> Undo:
        """The agent is killed and started again: nobody may notice, least of all PostgreSQL."""
        before = _started(node)
        begin(target, node)()
        target.wait_healthy(60)
        after = _started(node)
        if before != after:
            raise TestbedError(f"PostgreSQL on {node.name} was started again with its agent, at {after}")
        return nothing

    return dataclasses.replace(drill, begin=restart if drill.name == "restart-agent" else begin, needs=Needs())


def _started(node: Node) -> str:
    wire = patiently(node)
    try:
        ((at,),) = wire.execute("SELECT pg_postmaster_start_time()", timeout_s=SQL_S)
        return at
    finally:
        wire.close()
