"""The agent's shared reads: nobody waits for an etcd that is known to be silent, and everybody hears of its return."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import cast

import pytest

from agent.reader import AsItIs, SharedStore
from cluster.clock import SystemClock
from cluster.errors import ClusterForgotten, StoreUnavailable
from cluster.etcd_store import EtcdStore
from cluster.model import NodeReport, Snapshot
from tests.unit.stories import VIEW, primary, snap


class Silent:
    """A store that answers only when it is told to, and counts how often it was asked."""

    behind = False

    def __init__(self) -> None:
        self.asked = 0
        self.answers = False

    async def read(self) -> Snapshot:
        self.asked += 1
        if not self.answers:
            raise StoreUnavailable("no answer")
        return snap()


async def test_a_silent_etcd_is_waited_for_once() -> None:
    store, woken = Silent(), asyncio.Event()
    shared = SharedStore(cast(EtcdStore, store), SystemClock(), woken.set)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await shared.read()
    with pytest.raises(StoreUnavailable):
        await shared.report(primary())
    assert store.asked == 1
    recovering = asyncio.create_task(shared.recover())
    store.answers = True
    async with asyncio.timeout(10):
        await woken.wait()
    assert (await shared.read()).view is not None
    recovering.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await recovering


async def test_an_unchanged_etcd_is_read_once() -> None:
    store = Silent()
    store.answers = True
    shared = SharedStore(cast(EtcdStore, store), SystemClock(), lambda: None)
    for _ in range(3):
        await shared.read()
    assert store.asked == 1
    shared.told(None)
    await shared.read()
    assert store.asked == 2


class Changing(Silent):
    """A store that brings another snapshot when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = snap()

    async def read(self) -> Snapshot:
        self.asked += 1
        return replace(self.holds, revision=self.asked)

    async def report(self, report: NodeReport) -> None:
        self.reported = report


async def test_news_that_a_read_brings_wakes_everybody() -> None:
    store, woken = Changing(), []
    shared = SharedStore(cast(EtcdStore, store), SystemClock(), lambda: woken.append(store.asked))
    await shared.read()
    shared.told(None)
    await shared.read()
    assert woken == [1], "by the watch; the revision alone is no news"
    store.holds = snap(leader=None)
    shared.told(None)
    await shared.read()
    assert woken == [1, 2, 3]


async def test_an_etcd_that_has_lost_the_cluster_is_silent_to_all_but_the_sentinel() -> None:
    store = Changing()
    shared = SharedStore(cast(EtcdStore, store), SystemClock(), lambda: None)
    known = await shared.read()
    for empty in (snap(None, primary(term=0)), snap(None)):
        store.holds = empty
        shared.told(None)
        with pytest.raises(ClusterForgotten):
            await shared.read()
        shared.told(empty)
        assert shared.snapshot == known, "what was known last"
        assert (await AsItIs(shared).read()).view is None
    await shared.report(primary())  # it answers, and is to be told
    store.holds = snap(VIEW)
    shared.told(None)
    assert (await shared.read()).view == VIEW


@pytest.mark.parametrize("served", [True, False])
async def test_a_node_that_starts_knows_by_its_data_that_there_was_a_cluster(served: bool) -> None:
    store = Changing()
    store.holds = snap(None)
    shared = SharedStore(cast(EtcdStore, store), SystemClock(), lambda: None)
    shared.served = lambda: served
    if served:
        with pytest.raises(ClusterForgotten):
            await shared.read()
        assert shared.snapshot is None
    else:
        assert (await shared.read()).view is None


class Slow:
    """A store whose answer is on its way until it is let go."""

    behind = False

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()

    async def read(self) -> Snapshot:
        self.asked += 1
        number = self.asked
        if number > 1:
            await self.go.wait()
        return replace(snap(), revision=number)


async def test_whoever_comes_while_a_read_is_under_way_gets_its_answer_not_the_one_before() -> None:
    """It had rung the bell already: a keeper that took the old answer slept on, for up to a second of a failover."""
    store = Slow()
    shared = SharedStore(cast(EtcdStore, store), SystemClock(), lambda: None)
    assert (await shared.read()).revision == 1
    shared.told(None)
    router = asyncio.create_task(shared.read())
    await asyncio.sleep(0)
    keeper = asyncio.create_task(shared.read())
    await asyncio.sleep(0)
    store.go.set()
    async with asyncio.timeout(10):
        assert [(await router).revision, (await keeper).revision] == [2, 2]
    assert store.asked == 2
