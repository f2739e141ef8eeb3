"""What a commit waits for: changed without a gap, proven by a barrier, never released by accident."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cluster.errors import InstanceError
from cluster.model import NodeId, Rule, lone_rule
from postgres.process import processes_of
from tests.support.postgres import Node, Servers, binaries_missing, eventually, servers

pytestmark = pytest.mark.skipif(binaries_missing() != "", reason=binaries_missing())


def run(story: Callable[[Servers], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with servers() as made:
            await story(made)

    asyncio.run(inside())


class Writers:
    """Clients that insert numbers one by one and remember which were acknowledged."""

    def __init__(self, node: Node, count: int) -> None:
        self.acknowledged: list[int] = []
        self._next = iter(range(1, 10_000_000))
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(node,)) for _ in range(count)]

    def _write(self, node: Node) -> None:
        with contextlib.suppress(psycopg.OperationalError), node.connect() as connection:
            while not self._stopping.is_set():
                with self._lock:
                    number = next(self._next)
                connection.execute("INSERT INTO t VALUES (%s)", (number,))
                with self._lock:
                    self.acknowledged.append(number)

    @contextlib.contextmanager
    def running(self) -> Iterator[Writers]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    async def more(self, than: int) -> bool:
        return len(self.acknowledged) > than


def named(node: Node, what: bytes) -> int:
    """The process of a server with this title."""
    for pid in processes_of(node.config.pgdata):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"postgres: " + what):
            return pid
    raise AssertionError(f"{node.name} has no {what.decode()}")


def test_from_lone_to_quorum_no_commit_slips_through() -> None:
    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n1.sql("CREATE TABLE t (n int)")
        n2 = await made.standby(n1)
        rule = Rule(1, n1.name, frozenset({n2.name}), 1)
        with Writers(n1, 6).running() as writers:
            await eventually(lambda: writers.more(20), "nobody writes")
            await n1.instance.apply_rule(rule)
            before = len(writers.acknowledged)
            await eventually(lambda: writers.more(before + 20), "nobody writes under the rule")
            await n2.instance.detach()
            stalled = len(writers.acknowledged) + 6  # answers that were on their way
            await asyncio.sleep(1.0)  # the time in which a commit would slip through
            assert len(writers.acknowledged) <= stalled
            await n1.instance.stop(fast=False)
        await asyncio.to_thread(writers.join)
        have = {int(str(row[0])) for row in n2.sql("SELECT n FROM t")}
        assert set(writers.acknowledged[before:]) <= have

    run(story)


def test_a_rule_is_not_taken_for_applied_while_backends_would_not_wait() -> None:
    """The checkpointer sets the flag that makes backends wait; stalled, commits would be acknowledged alone."""

    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n1.sql("CREATE TABLE t (n int)")
        n2 = await made.standby(n1)
        rule = Rule(1, n1.name, frozenset({n2.name}), 1)
        checkpointer = named(n1, b"checkpointer")
        os.kill(checkpointer, signal.SIGSTOP)
        try:
            with pytest.raises(InstanceError, match="commits do not wait"):
                await n1.instance.apply_rule(rule)
        finally:
            os.kill(checkpointer, signal.SIGCONT)
        await n1.instance.apply_rule(rule)
        await n1.instance.barrier(rule)
        assert (await n1.instance.observe()).names == "ANY 1 (n2_t1)"

    run(story)


def test_a_commit_waits_for_the_names_of_its_term_only() -> None:
    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n2, n3 = await made.standby(n1), await made.standby(n1, term=2)
        one = Rule(1, n1.name, frozenset({n2.name}), 1)
        await n1.instance.apply_rule(one)
        await n1.instance.barrier(one)
        state = await n1.until(lambda s: len(s.walsenders) == 2)
        assert {w.name: w.sync_state for w in state.walsenders} == {"n2_t1": "quorum", "n3_t2": "async"}
        with pytest.raises(InstanceError, match="apply the rule first"):
            await n1.instance.barrier(Rule(2, n1.name, frozenset({n3.name}), 1))

        both = Rule(1, n1.name, frozenset({n2.name, n3.name}), 2)
        await n1.instance.apply_rule(both)  # n3 does not count under its name of term 2
        with pytest.raises(InstanceError, match="not acknowledged"):
            await n1.instance.barrier(both)
        await n3.instance.follow(n1.upstream(1))
        await n3.until(lambda s: s.streaming)
        await n1.instance.barrier(both)
        await n1.instance.apply_rule(one)
        await n1.instance.barrier(one)

        # A restarted agent need not disturb anybody to know that backends wait.
        await n1.instance.close()
        other = made.adopt(n1)
        await other.apply_rule(one)
        await other.barrier(one)

    run(story)


def test_from_quorum_to_lone_releases_who_waits() -> None:
    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n1.sql("CREATE TABLE t (n int)")
        rule = Rule(1, n1.name, frozenset({NodeId("n2")}), 1)
        n2 = await made.standby(n1)
        await n1.instance.apply_rule(rule)
        await n2.instance.stop(fast=True)
        with Writers(n1, 2).running() as writers:
            started = time.monotonic()
            with pytest.raises(InstanceError, match="not acknowledged"):
                await n1.instance.barrier(rule)
            assert time.monotonic() - started < 60
            assert writers.acknowledged == []
            await n1.instance.apply_rule(lone_rule(1, n1.name))
            await eventually(lambda: writers.more(5), "commits still wait")
        await asyncio.to_thread(writers.join)
        await n1.instance.barrier(lone_rule(1, n1.name))

    run(story)


def test_a_standby_has_no_rule_to_apply() -> None:
    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n2 = await made.standby(n1)
        rule = lone_rule(1, n2.name)
        with pytest.raises(InstanceError, match="only a primary"):
            await n2.instance.apply_rule(rule)
        with pytest.raises(InstanceError, match="no primary"):
            await n2.instance.barrier(rule)
        with pytest.raises(InstanceError, match="primary"):
            await n1.instance.detach()

    run(story)
