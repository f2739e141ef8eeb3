"""Copying, following, detaching for real, promoting to an allocated timeline, and coming back after a fork."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest

import postgres.observer
from cluster.errors import InstanceError
from cluster.model import NodeId, Position, Rule, lone_rule
from postgres.config import NOBODY_NAMES
from postgres.instance import Data, Run
from postgres.parts import Parts
from postgres.process import processes_of
from tests.support.postgres import Node, Servers, binaries_missing, eventually, servers, up

pytestmark = pytest.mark.skipif(binaries_missing() != "", reason=binaries_missing())


def run(story: Callable[[Servers], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with servers() as made:
            await story(made)

    asyncio.run(inside())


def lsn(node: Node) -> str:
    return str(node.sql("SELECT pg_current_wal_flush_lsn()")[0][0])


async def has_row(node: Node, number: int) -> bool:
    return node.sql(f"SELECT count(*) FROM t WHERE n = {number}") == [(1,)]


async def job_done(node: Node) -> str:
    state = await node.until(lambda s: s.job is not None and not s.job.running)
    assert state.job is not None
    return state.job.error


def test_copy_and_follow() -> None:
    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n1.sql("CREATE TABLE t (n int)")
        n2 = await made.standby(n1, copy=True)
        n1.sql("INSERT INTO t VALUES (1)")
        await eventually(lambda: has_row(n2, 1), "the row never came")
        state = await n2.instance.observe()
        assert state.in_recovery and state.streaming and state.receiver and not state.gate_open
        assert state.upstream == n1.upstream() and state.names == NOBODY_NAMES
        assert state.position is not None and state.position.timeline == 1
        primary = await n1.until(lambda s: any(w.reply_seen_at is not None for w in s.walsenders))
        (sender,) = primary.walsenders
        assert (sender.name, sender.state, sender.sync_state) == ("n2_t1", "streaming", "async")
        assert sender.flushed is not None and primary.slots == {"flypg_n2"}
        assert await n2.instance.ask_position(n1.upstream()) >= state.position
        n1.sql("ALTER SYSTEM SET primary_conninfo = 'host=nowhere'")  # comes along with a base backup

        # A second copy moves the first aside, and only the last one aside is kept.
        for attempt in (1, 2):
            with pytest.raises(InstanceError, match="stopped first"):
                await n2.instance.begin_copy(n1.upstream())
            await n2.instance.stop(fast=True)
            stopped = await n2.until(lambda s: s.run is Run.DOWN)
            assert not stopped.fresh_copy
            await n2.instance.begin_copy(n1.upstream(2))
            assert await job_done(n2) == ""
            copied = await n2.instance.observe()
            assert copied.fresh_copy and copied.control is not None and copied.control.state == "in production"
            aside = [p.name for p in n2.config.pgdata.parent.iterdir() if ".old-" in p.name]
            assert aside == [f"pgdata.old-{attempt}"]
            await n2.instance.start_standby(n1.upstream(2))
            state = await n2.until(lambda s: s.streaming)
            assert state.data_generation == attempt + 1
        await n1.until(lambda s: [w.name for w in s.walsenders] == ["n2_t2"])

        # Slots for members only; a standby starts with what the control file demands.
        await n1.instance.keep_slots(frozenset({NodeId("n2"), NodeId("n9"), NodeId("n1")}))
        assert (await n1.instance.observe()).slots == {"flypg_n2", "flypg_n9"}
        await n1.instance.keep_slots(frozenset({NodeId("n2")}))
        assert (await n1.instance.observe()).slots == {"flypg_n2"}
        await n2.instance.keep_slots(frozenset({NodeId("n1"), NodeId("n3")}))
        kept = int(
            str(n2.sql("SELECT restart_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = 'flypg_n3'")[0][0])
        )
        n1.sql("INSERT INTO t SELECT generate_series(100, 20000)")
        await n2.until(lambda s: s.replayed is not None and s.replayed > kept + 100_000)
        await n2.instance.advance_slots({NodeId("n3"): kept + 100_000})
        moved = n2.sql("SELECT restart_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = 'flypg_n3'")[0][0]
        assert int(str(moved)) > kept

    run(story)


def test_a_copy_that_fails_changes_nothing_and_says_why() -> None:
    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n2 = made.add()
        await n1.instance.stop(fast=True)
        await n2.instance.begin_copy(n1.upstream())
        assert "refused" in await job_done(n2)
        assert (await n2.instance.observe()).data is Data.ABSENT

    run(story)


@asynccontextmanager
async def replay_waits(primary: Node, standby: Node) -> AsyncIterator[psycopg.Connection[tuple[object, ...]]]:
    """The standby's replay waits for a reader of the table t, for as long as the reader reads."""
    primary.sql("CREATE TABLE t AS SELECT 1 AS n")
    await standby.instance.set_parameters((("max_standby_streaming_delay", "-1"),), ())
    await eventually(lambda: has_row(standby, 1), "the row never came")
    with standby.connect() as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT * FROM t")
        primary.sql("DELETE FROM t")
        primary.sql("VACUUM t")
        waiting = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'"

        async def stuck() -> bool:
            return "Conflict" in str(standby.sql(waiting)[0][0])

        await eventually(stuck, "replay never ran into the reader")
        yield reader


def test_detach_with_a_receiver_that_a_stuck_replay_would_keep() -> None:
    """Startup sits in a recovery conflict: clearing primary_conninfo alone leaves the receiver acknowledging."""

    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n2 = await made.standby(n1)
        rule = Rule(1, n1.name, frozenset({n2.name}), 1)
        await n1.instance.apply_rule(rule)
        async with replay_waits(n1, n2):
            n1.sql("INSERT INTO t VALUES (2)")  # received and acknowledged, not replayed
            acknowledged = lsn(n1)
            position = await n2.instance.detach()
            assert not await has_row(n2, 2)
            assert str(position) >= f"{acknowledged} on timeline 1", "it reports what it has acknowledged"
            with pytest.raises(InstanceError, match="not acknowledged"):
                await n1.instance.barrier(rule)
            received = n2.sql("SELECT pg_last_wal_receive_lsn() - '0/0'")[0][0]
            assert Position(1, int(str(received))) == position, "nothing came after that"
            state = await n2.instance.observe()
            assert state.upstream is None and not state.receiver and state.position == position
            assert await n2.instance.detach() == position
        await n2.instance.follow(n1.upstream())
        await n2.until(lambda s: s.streaming)
        await n1.instance.barrier(rule)

    run(story)


def test_promotion_does_not_wait_for_readers() -> None:
    """Replay waits for a reader's snapshot as long as it may; a failover would wait with it."""

    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n2 = await made.standby(n1)
        async with replay_waits(n1, n2) as reader:
            await n2.instance.detach()
            await n2.instance.promote(2, lone_rule(2, n2.name))
            await n2.until(lambda s: s.in_recovery is False)
            with pytest.raises(psycopg.OperationalError):
                reader.execute("SELECT * FROM t")
        assert n2.sql("SELECT count(*) FROM t") == [(0,)]

    run(story)


def test_a_standby_comes_to_its_new_primary_though_replay_waits_for_readers() -> None:
    """A startup process that waits for a reader starts no receiver: the new primary's first commit waited with it."""

    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n2 = await made.standby(n1)
        async with replay_waits(n1, n2) as reader:
            await n2.instance.detach()
            began = time.monotonic()
            await n2.instance.follow(n1.upstream(2))
            await n2.until(lambda s: s.streaming)
            assert time.monotonic() - began < 3.0, "it waited for as long as replay may wait for a reader"
            with pytest.raises(psycopg.OperationalError):
                reader.execute("SELECT * FROM t")

    run(story)


def test_promotion_takes_the_allocated_timeline_and_a_crashed_primary_is_rewound() -> None:
    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n1.sql("CREATE TABLE t (n int)")
        n2, n3 = await made.standby(n1), await made.standby(n1)
        await n1.instance.apply_rule(Rule(1, n1.name, frozenset({n2.name, n3.name}), 1))
        n1.sql("INSERT INTO t VALUES (1)")
        positions = [await n2.instance.detach(), await n3.instance.detach()]
        with n1.connect() as client:  # never acknowledged by anybody
            client.execute("SET synchronous_commit = local")
            client.execute("INSERT INTO t VALUES (2)")
        best, other = (n2, n3) if positions[0] >= positions[1] else (n3, n2)
        with pytest.raises(InstanceError, match="already on timeline 1"):
            await best.instance.promote(1, lone_rule(2, best.name))
        rule = Rule(2, best.name, frozenset({other.name}), 1)
        await best.instance.promote(4, rule)
        await other.instance.follow(best.upstream(2))
        state = await best.until(lambda s: s.in_recovery is False)
        assert state.position is not None and state.position.timeline == 4 and state.upstream is None
        await best.instance.promote(4, rule)  # done already
        with pytest.raises(InstanceError, match="timeline 4 instead of 5"):
            await best.instance.promote(5, rule)
        await best.instance.barrier(rule)
        await best.instance.apply_rule(rule)
        best.sql("INSERT INTO t VALUES (3)")
        await other.until(lambda s: s.position is not None and s.position.timeline == 4 and s.streaming)

        for pid in processes_of(n1.config.pgdata):
            os.kill(pid, signal.SIGKILL)
        assert (await n1.until(lambda s: s.run is Run.DOWN)).died
        await best.instance.checkpoint()
        await best.instance.keep_slots(frozenset(n.name for n in made.nodes))
        with pytest.raises(InstanceError, match="primary"):
            await n1.instance.ask_position(other.upstream(2))
        await n1.instance.begin_rewind(other.upstream(2))
        assert "not a primary" in await job_done(n1)
        await n1.instance.begin_rewind(best.upstream(2))
        assert await job_done(n1) == ""
        await n1.instance.start_standby(best.upstream(2))
        state = await n1.until(lambda s: s.streaming)
        assert state.in_recovery and state.data_generation == 1
        await eventually(lambda: has_row(n1, 3), "the new row never came")
        assert n1.sql("SELECT n FROM t ORDER BY n") == [(1,), (3,)]

    run(story)


def test_a_standby_that_is_promoted_while_it_is_looked_at_is_never_on_its_new_timeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was taken for one that had been promoted before and come back as a standby, and was stopped: a fresh primary
    died by its own agent's hand."""

    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n2 = await made.standby(n1)
        await n2.instance.detach()
        original = postgres.observer.identify

        async def promoted_first(parts: Parts) -> Position:
            n2.sql("SELECT pg_promote()")
            return await original(parts)

        monkeypatch.setattr(postgres.observer, "REIDENTIFY_S", 0.0)
        monkeypatch.setattr(postgres.observer, "identify", promoted_first)
        state = await n2.instance.observe()
        monkeypatch.undo()
        assert not (state.in_recovery and state.position and state.position.timeline > 1), state
        assert (await n2.until(lambda s: s.in_recovery is False)).position is not None

    run(story)


def test_two_candidates_never_share_a_timeline() -> None:
    """Both were promoted from timeline 1 in different terms; the dead branch is recognised and rewound."""

    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n1.sql("CREATE TABLE t (n int)")
        n2, n3 = await made.standby(n1), await made.standby(n1)
        for node in (n2, n3):
            await node.instance.detach()
        await n2.instance.promote(2, lone_rule(2, n2.name))
        await n2.until(lambda s: s.in_recovery is False)
        n2.sql("INSERT INTO t VALUES (2)")
        await n2.instance.stop(fast=True)
        await n2.until(lambda s: s.run is Run.DOWN)
        await n3.instance.promote(3, lone_rule(3, n3.name))
        state = await n3.until(lambda s: s.in_recovery is False)
        assert state.position is not None and state.position.timeline == 3
        n3.sql("INSERT INTO t VALUES (3)")
        await n3.instance.checkpoint()
        await n3.instance.keep_slots(frozenset({n2.name}))
        await n2.instance.begin_rewind(n3.upstream(3))
        assert await job_done(n2) == ""
        await n2.instance.start_standby(n3.upstream(3))
        await n2.until(lambda s: s.streaming)
        await eventually(lambda: has_row(n2, 3), "the new row never came")
        assert n2.sql("SELECT n FROM t") == [(3,)]

    run(story)


def test_a_rewind_that_was_cut_off_leaves_nothing_to_start() -> None:
    async def story(made: Servers) -> None:
        n1 = await made.primary()
        n2 = await made.standby(n1)
        await n2.instance.stop(fast=True)
        await n2.until(lambda s: s.run is Run.DOWN)
        n2.config.pgdata.with_name("pgdata.rewinding").touch()
        assert (await n2.instance.observe()).data is Data.INCOMPLETE
        with pytest.raises(InstanceError, match="no complete data directory"):
            await n2.instance.start_standby(None)
        await n2.instance.begin_copy(n1.upstream())
        assert await job_done(n2) == ""
        await n2.instance.start_standby(n1.upstream())
        assert (await n2.until(up)).in_recovery

    run(story)
