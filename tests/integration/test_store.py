"""The store against a real etcd: conflicts, leases, watches, and what an idle cluster writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cluster.clock import SystemClock
from cluster.errors import StoreConflict, StoredFormatError
from cluster.etcd_store import HISTORY
from cluster.etcd_values import Get, Put
from cluster.keys import Keys
from cluster.model import (
    Event,
    Leadership,
    NodeId,
    Position,
    Promise,
    Request,
    RequestKind,
    Spec,
)
from tests.support.etcd import BIN, TestEtcd, start_etcd
from tests.support.stores import (
    VIEW,
    A,
    B,
    client,
    eventually,
    new_cluster,
    ready,
    report,
    store,
    watching,
)

pytestmark = pytest.mark.skipif(BIN is None, reason="there is no etcd on this machine")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEtcd]:
    etcd = start_etcd(tmp_path_factory.mktemp("etcd"))
    yield etcd
    etcd.stop()


def test_nothing_is_there_before_a_cluster_is_founded(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            seen = await store(etcd, new_cluster()).read()
            assert (seen.view, seen.view_revision, seen.spec, seen.spec_revision) == (None, 0, Spec(), 0)
            assert (seen.reports, seen.promises, seen.requests, seen.leader) == ({}, {}, (), None)
            assert seen.revision > 0

    asyncio.run(story())


def test_a_view_is_written_once_per_revision_and_only_by_the_leader(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd, client(single) as other:
            cluster = new_cluster()
            first, second = store(etcd, cluster, A), store(other, cluster, B)
            leader = await first.campaign()
            assert leader is not None and leader.sentinel == A
            assert await second.campaign() is None
            assert await first.campaign() == leader, "a leader that asks again still leads"

            await first.put_view(VIEW, read_at=0, leader=leader, events=(Event(1.0, 1, "phase", "founded"),))
            seen = await second.read()
            assert seen.view == VIEW and seen.leader == leader
            with pytest.raises(StoreConflict):
                await first.put_view(replace(VIEW, term=2), read_at=0, leader=leader)
            stranger = Leadership(B, leader.created_revision + 1)
            with pytest.raises(StoreConflict):
                await second.put_view(replace(VIEW, term=2), read_at=seen.view_revision, leader=stranger)

            await first.resign(leader)
            with pytest.raises(StoreConflict):
                await first.put_view(replace(VIEW, term=2), read_at=seen.view_revision, leader=leader)
            successor = await second.campaign()
            assert successor is not None and successor.created_revision > leader.created_revision
            await second.put_view(replace(VIEW, term=2), read_at=seen.view_revision, leader=successor)
            assert [e.text for e in await first.read_events(10)] == ["founded"]

    asyncio.run(story())


def test_leadership_ends_with_its_lease(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            cluster = new_cluster()
            first, second = store(etcd, cluster, A, sentinel_ttl_s=2), store(etcd, cluster, B)
            leader = await first.campaign()
            assert leader is not None

            async def replaced() -> bool:
                return await second.campaign() is not None

            await eventually("the silent leader is replaced", replaced)
            assert not await first.keep_leadership(), "it must learn that it leads no more"
            with pytest.raises(StoreConflict):
                await first.put_view(VIEW, read_at=0, leader=leader)
            assert await first.campaign() is None

    asyncio.run(story())


def test_a_restarted_sentinel_replaces_its_earlier_run_at_once(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            cluster = new_cluster()
            before, after = store(etcd, cluster, A, sentinel_ttl_s=60), store(etcd, cluster, A)
            old = await before.campaign()
            new = await after.campaign()
            assert old is not None and new is not None and new.created_revision > old.created_revision
            with pytest.raises(StoreConflict):
                await before.put_view(VIEW, read_at=0, leader=old)
            assert await before.campaign() is None, "and the earlier run does not fight back"
            assert not await before.keep_leadership() or (await after.read()).leader == new

    asyncio.run(story())


def test_a_report_lives_as_long_as_its_lease(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            cluster = new_cluster()
            node, other = store(etcd, cluster, A, ttl_s=2), store(etcd, cluster, B)
            assert (await node.keep_lease()).ttl_s == 0, "without a report nobody could see that the lease is held"
            before = SystemClock().boottime()
            await node.report(report(A))
            proof = await node.keep_lease()
            assert proof.ttl_s == 2 and before <= proof.asked_at <= SystemClock().boottime()

            async def renewed() -> bool:
                return (await node.keep_lease()).ttl_s == 2 and (await other.read()).reports == {A: report(A)}

            async def rewritten() -> bool:
                await node.report(report(A, "r2"))
                return (await other.read()).reports == {A: report(A, "r2")}

            async def gone() -> bool:
                return not (await other.read()).reports

            await eventually("everybody sees the report", renewed)
            await eventually("the report of a silent node is gone", gone)
            await eventually("a new lease has the last report under it", renewed)
            await eventually("silent again", gone)
            await eventually("a report takes a new lease too", rewritten)
            await node.withdraw()
            assert (await other.read()).reports == {}

    asyncio.run(story())


def test_a_promise_is_never_lowered(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            cluster = new_cluster()
            node, again = store(etcd, cluster, A), store(etcd, cluster, A)
            high, low = Promise(A, 3, Position(1, 30)), Promise(A, 2, Position(1, 20))
            await node.promise(low)
            await node.promise(high)
            await node.promise(high)
            await node.promise(low)
            await again.promise(low)
            assert (await again.read()).promises == {A: high}
            moved = Promise(A, 3, Position(1, 31))
            await again.promise(moved)
            assert (await node.read()).promises == {A: moved}

    asyncio.run(story())


def test_a_request_is_answered_once(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            cluster = new_cluster()
            operator, sentinel = store(etcd, cluster, NodeId("cli")), store(etcd, cluster, A)
            for name in ("r1", "r2", "r3"):
                await operator.add_request(Request(name, RequestKind.SWITCHOVER, B, "me"))
            with pytest.raises(StoreConflict):
                await operator.add_request(Request("r1", RequestKind.RESTART, B, "me"))
            seen = await sentinel.read()
            assert [r.id for r in seen.requests] == ["r1", "r2", "r3"], "oldest first"
            assert seen.requests[0].created_revision < seen.requests[1].created_revision

            leader = await sentinel.campaign()
            assert leader is not None
            answers = (("r1", "done: a"), ("nosuch", "x"))
            await sentinel.put_view(VIEW, read_at=0, leader=leader, outcomes=answers)
            await sentinel.close_request("r1", "done: again")
            await sentinel.close_request("nosuch", "x")
            await operator.close_request("r2", "refused: no")
            found = [await operator.read_request(name) for name in ("r1", "r2", "nosuch")]
            assert [r.outcome if r else None for r in found] == ["done: a", "refused: no", None]

            at = (await store(etcd, cluster).read()).view_revision
            with pytest.raises(StoreConflict):  # r2 was answered by somebody else after it was read here
                await sentinel.put_view(
                    VIEW, read_at=at, leader=leader, outcomes=(("r2", "done: b"), ("r3", "done: c"))
                )
            unanswered = await operator.read_request("r3")
            assert unanswered is not None and unanswered.outcome == "", "all or nothing"

    asyncio.run(story())


def test_a_spec_is_written_once_per_revision(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            operator = store(etcd, new_cluster(), NodeId("cli"))
            await operator.put_spec(Spec(k=2), read_at=0, events=(Event(1.0, 0, "spec", "k=2", by="me"),))
            seen = await operator.read()
            assert seen.spec == Spec(k=2) and seen.spec_revision > 0
            with pytest.raises(StoreConflict):
                await operator.put_spec(Spec(k=3), read_at=0)
            assert [e.by for e in await operator.read_events(1)] == ["me"]

    asyncio.run(story())


def test_the_history_is_bounded_and_in_order(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            cluster = new_cluster()
            sentinel, operator = store(etcd, cluster, A), store(etcd, cluster, NodeId("cli"))
            leader = await sentinel.campaign()
            assert leader is not None
            at = 0
            for turn in range(8):
                events = tuple(Event(0.0, 1, "phase", f"{turn * 100 + n}") for n in range(100))
                await sentinel.put_view(VIEW, read_at=at, leader=leader, events=events)
                at = (await sentinel.read()).view_revision
            texts = [int(e.text) for e in await operator.read_events(10_000)]
            assert texts == list(range(800 - len(texts), 800))
            assert HISTORY <= len(texts) <= HISTORY + 200
            assert [int(e.text) for e in await operator.read_events(2)] == [798, 799]
            seen = await operator.read()
            await operator.put_spec(Spec(k=2), read_at=seen.spec_revision, events=(Event(0.0, 1, "spec", "last"),))
            assert (await sentinel.read_events(1))[0].text == "last"

    asyncio.run(story())


def test_a_watch_wakes_for_the_state_but_not_for_the_history(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            cluster = new_cluster()
            node, other = store(etcd, cluster, A), store(etcd, cluster, B)
            async with watching(node) as woken:
                await eventually("the watch has begun", ready(woken))
                woken.clear()
                await etcd.transaction([], [Put(Keys(cluster).event(1, 0, "x"), b"{}")])
                await other.read()
                assert not woken.is_set()
                await other.report(report(B))
                await eventually("a report wakes", ready(woken))

    asyncio.run(story())


def test_a_value_of_a_later_version_is_refused_by_its_key(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            cluster = new_cluster()
            await etcd.transaction([], [Put(Keys(cluster).spec, b'{"format_version":99}')])
            with pytest.raises(StoredFormatError, match=f"/flypg/{cluster}/spec: format_version 99"):
                await store(etcd, cluster).read()

    asyncio.run(story())


def test_compaction_changes_nothing_for_us(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            node = store(etcd, new_cluster())
            await node.report(report(A))
            seen = await node.read()
            async with watching(node) as woken:
                await eventually("the watch has begun", ready(woken))
                await node.report(report(A, "r2"))
                await etcd.compact((await node.read()).revision)
                await eventually("awake", ready(woken))
                woken.clear()
                await node.report(report(A, "r3"))
                await eventually("still awake", ready(woken))
            assert (await node.read()).revision > seen.revision

    asyncio.run(story())


def test_an_idle_cluster_writes_nothing(single: TestEtcd) -> None:
    """Leases of other tests may run out meanwhile, which etcd does write: so one quiet window is enough."""

    async def story() -> None:
        async with client(single) as etcd:
            cluster = new_cluster()
            node, waiting = store(etcd, cluster, ttl_s=60, sentinel_ttl_s=60), store(etcd, cluster, B)
            await node.report(report(A))
            assert await node.campaign() is not None

            async def quiet() -> bool:
                before = await etcd.status(single.endpoints[0])
                for _ in range(20):
                    assert (await node.keep_lease()).ttl_s > 0
                    assert await node.keep_leadership()
                    assert await waiting.campaign() is None
                    await node.read()
                return (await etcd.status(single.endpoints[0])).raft_index == before.raft_index

            async with watching(node):
                await eventually("twenty turns without an entry in etcd's log", quiet)

    asyncio.run(story())


def test_everything_is_read_at_one_revision(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            keys = Keys(new_cluster())
            await etcd.transaction([], [Put(keys.view, b"1"), Put(keys.spec, b"2")])
            found = await etcd.find(Get(keys.state, keys.end))
            assert [item.key for item in found.items] == [keys.spec, keys.view]
            assert {item.modified for item in found.items} == {found.revision}

    asyncio.run(story())
