"""Real PostgreSQL servers for tests, made quickly and cleaned up by process id."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from cluster.clock import SystemClock
from cluster.model import NodeId, Rule, Upstream, lone_rule
from postgres.config import InstanceConfig, Passwords
from postgres.files import free_bytes
from postgres.instance import InstanceState, Run
from postgres.process import processes_of
from postgres.server import LocalInstance
from tests.support.ports import free_ports

BINARIES = Path(os.environ.get("FLYPG_TEST_PG_BIN_DIR", "/usr/lib/postgresql/15/bin"))
PASSWORDS = Passwords(superuser="super word", operator="operator:word", replicator="re\\pl'word")
PATIENCE_S = 30.0


def binaries_missing() -> str:
    """Why tests with a real PostgreSQL cannot run here; "" when they can."""
    return "" if (BINARIES / "postgres").exists() else f"no PostgreSQL 15 in {BINARIES}"


_template: Path | None = None


def short_directory(prefix: str = "fp") -> Path:
    """A directory with a short path, for the sockets, that the server's user can enter; in memory if there is room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and free_bytes(memory) > 2 << 30
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=memory if roomy else "/tmp"))
    directory.chmod(0o755)
    return directory


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a data directory with its owner."""
    shutil.copytree(source, target, symlinks=True)
    for path in (source, *source.rglob("*")):
        stat = path.lstat()
        os.chown(target / path.relative_to(source), stat.st_uid, stat.st_gid, follow_symlinks=False)
    target.chmod(0o700)


@dataclass
class Node:
    """One server and how to reach it."""

    name: NodeId
    config: InstanceConfig
    instance: LocalInstance

    def upstream(self, term: int = 1) -> Upstream:
        return Upstream(self.name, "127.0.0.1", self.config.port, term)

    def sql(self, statement: str, *, user: str = "flypgadmin", **parameters: object) -> list[tuple[object, ...]]:
        """Run one statement over TCP as a client would."""
        with self.connect(user=user, **parameters) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type,unused-ignore]
            return cursor.fetchall() if cursor.description else []

    def connect(self, *, user: str = "flypgadmin", **parameters: object) -> psycopg.Connection[tuple[object, ...]]:
        password = {"flypgadmin": PASSWORDS.operator, "postgres": PASSWORDS.superuser}.get(user, "client")
        return psycopg.connect(
            host="127.0.0.1",
            port=self.config.port,
            user=user,
            password=password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=10,
            **parameters,  # type: ignore[arg-type]
        )

    async def until(self, condition: Callable[[InstanceState], bool], what: str = "") -> InstanceState:
        """Observe until `condition` holds; fails with the last state seen."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            state = await self.instance.observe()
            if condition(state):
                return state
            assert time.monotonic() < deadline, f"{self.name}: {what or 'never became so'}: {state}"
            await asyncio.sleep(0.02)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


def up(state: InstanceState) -> bool:
    return state.run is Run.UP and state.in_recovery is not None


class Servers:
    """Makes nodes n1, n2, … in one short directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: list[Node] = []
        self._extra: list[LocalInstance] = []

    def add(self, **changes: object) -> Node:
        """A node without data."""
        name = NodeId(f"n{len(self.nodes) + 1}")
        home = self.directory / name
        home.mkdir(mode=0o755)
        settings: dict[str, object] = {
            "pgdata": home / "pgdata",
            "conf": home / "conf",
            "run": home / "run",
            "log": home / "log",
            "binaries": BINARIES,
            "port": free_ports(1)[0],
            "passwords": PASSWORDS,
            "listen": ("127.0.0.1",),
            "memory_mb": 256,
        }
        config = InstanceConfig(**(settings | changes))  # type: ignore[arg-type]
        node = Node(name, config, LocalInstance(config, SystemClock(), name))
        self.nodes.append(node)
        return node

    def adopt(self, node: Node) -> LocalInstance:
        """A second object for the same server, as a restarted agent would make."""
        other = LocalInstance(node.config, SystemClock(), node.name)
        self._extra.append(other)
        return other

    async def found(self, node: Node) -> None:
        """Data with users in it: made by initdb once per process, copied after that."""
        global _template
        if _template is None:
            await node.instance.begin_initdb()
            state = await node.until(lambda s: s.job is not None and not s.job.running)
            assert state.job is not None and not state.job.error, state.job
            await node.instance.start_primary(lone_rule(1, node.name))
            await node.until(up, "never came up")
            await node.instance.ensure_roles()
            await node.instance.stop(fast=True)
            await node.until(lambda s: s.run is Run.DOWN)
            _template = short_directory("fpt")
            atexit.register(shutil.rmtree, _template, ignore_errors=True)
            await asyncio.to_thread(_copy_tree, node.config.pgdata, _template / "pgdata")
        else:
            await asyncio.to_thread(_copy_tree, _template / "pgdata", node.config.pgdata)

    async def primary(self, rule: Rule | None = None, **changes: object) -> Node:
        """A new primary, by default alone in term 1, with its gate open and the users created."""
        node = self.add(**changes)
        await self.found(node)
        await node.instance.start_primary(rule or lone_rule(1, node.name))
        await node.until(up, "never came up")
        await node.instance.set_gate(open=True)
        return node

    async def standby(self, source: Node, term: int = 1, *, copy: bool = False, **changes: object) -> Node:
        """A standby that streams from `source`: made of the same beginning, or a real copy."""
        node = self.add(**changes)
        await source.instance.keep_slots(frozenset(n.name for n in self.nodes))
        if copy:
            await node.instance.begin_copy(source.upstream(term))
            state = await node.until(lambda s: s.job is not None and not s.job.running)
            assert state.job is not None and not state.job.error, state.job
        else:
            await self.found(node)
        await node.instance.start_standby(source.upstream(term))
        await node.until(lambda s: s.streaming, "never streamed")
        return node

    async def close(self) -> None:
        for instance in [*(n.instance for n in self.nodes), *self._extra]:
            await instance.close()
        for node in self.nodes:
            for _ in range(200):
                if not (left := processes_of(node.config.pgdata)):
                    break
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.05)
            await node.instance.observe()  # reaps
            await node.instance.close()
        shutil.rmtree(self.directory)


@contextlib.asynccontextmanager
async def servers() -> AsyncIterator[Servers]:
    """Servers for one test; none of their processes and files is left behind."""
    directory = short_directory()
    made = Servers(directory)
    try:
        yield made
    finally:
        await made.close()
