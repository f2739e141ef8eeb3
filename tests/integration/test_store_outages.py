"""The store while etcd is ill: members lost and frozen, all of them gone, answers that never come."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from cluster.endpoints import Endpoint, EtcdOptions
from cluster.errors import OutcomeUnknown, StoreUnavailable
from cluster.etcd import Etcd
from tests.support.etcd import BIN, TestEtcd, start_etcd
from tests.support.stores import (
    VIEW,
    A,
    B,
    client,
    eventually,
    holding,
    new_cluster,
    reading,
    ready,
    report,
    store,
    watching,
    writing,
)

pytestmark = pytest.mark.skipif(BIN is None, reason="there is no etcd on this machine")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEtcd]:
    etcd = start_etcd(tmp_path_factory.mktemp("etcd"))
    yield etcd
    etcd.stop()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEtcd]:
    etcd = start_etcd(tmp_path_factory.mktemp("etcd3"), 3)
    yield etcd
    etcd.stop()


def test_the_loss_of_any_member_goes_unnoticed(three: TestEtcd) -> None:
    async def story() -> None:
        async with client(three) as etcd, client(three) as writer:
            cluster = new_cluster()
            node, other = store(etcd, cluster, A), store(writer, cluster, B)
            async with watching(node) as woken:
                await eventually("the watch has begun", ready(woken))
                for turn in range(3):
                    await eventually("a report", writing(node, report(A, f"n{turn}")))
                    lost = three.member(etcd.endpoint)  # the one in use
                    lost.stop(signal.SIGKILL)
                    try:
                        await eventually("reading goes on", reading(node))
                        await eventually("the lease is held", holding(node))
                        await eventually("writing goes on", writing(other, report(B, f"w{turn}")))
                        woken.clear()
                        await eventually("writing goes on", writing(other, report(B, f"v{turn}")))
                        await eventually("the watch goes on", ready(woken))
                    finally:
                        lost.start()
                    await three.ready()

    asyncio.run(story())


def test_a_frozen_member_is_left_within_its_deadline(three: TestEtcd) -> None:
    async def story() -> None:
        async with client(three) as etcd, client(three) as writer:
            cluster = new_cluster()
            node, other = store(etcd, cluster, A), store(writer, cluster, B)
            await eventually("a report", writing(node, report(A)))
            async with watching(node) as woken:
                await eventually("the watch has begun", ready(woken))
                frozen = three.member(etcd.endpoint)
                frozen.freeze()
                try:
                    await eventually("reading goes on", reading(node))

                    async def moved() -> bool:
                        await node.read()
                        return three.member(etcd.endpoint) is not frozen

                    await eventually("through another member", moved)
                    await eventually("another's writing goes on", writing(other, report(B)))
                    woken.clear()
                    await eventually("another's writing goes on", writing(other, report(B, "again")))
                    await eventually("the watch has moved along", ready(woken))
                finally:
                    frozen.thaw()
            await three.ready()

    asyncio.run(story())


def test_an_outage_of_all_members_and_their_return(three: TestEtcd) -> None:
    async def story() -> None:
        async with client(three) as etcd:
            cluster = new_cluster()
            node, other = store(etcd, cluster, A, ttl_s=2), store(etcd, cluster, B)
            await node.report(report(A))
            leader = await node.campaign()
            assert leader is not None
            await node.put_view(VIEW, read_at=0, leader=leader)
            async with watching(node) as woken:
                await eventually("the watch has begun", ready(woken))
                for member in three.members:
                    member.stop()
                for call in (node.read, node.keep_lease, node.keep_leadership):
                    with pytest.raises(StoreUnavailable):
                        await call()
                with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                    await node.report(report(A, "unheard"))
                woken.clear()
                for member in three.members:
                    member.start()
                await eventually("the lease is held again", holding(node))
                await eventually("the watch has begun anew", ready(woken))
                assert (await other.read()).view == VIEW, "what was agreed survives"

                async def restored() -> bool:
                    await node.keep_lease()
                    return (await other.read()).reports == {A: report(A, "unheard")}

                await eventually("the last report is under the lease", restored)

    asyncio.run(story())


def test_a_write_without_an_answer_has_an_unknown_outcome(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single, attempt_s=0.3, total_s=0.6) as etcd:
            node = store(etcd, new_cluster())
            leader = await node.campaign()
            assert leader is not None
            single.members[0].freeze()
            try:
                with pytest.raises(OutcomeUnknown):
                    await node.put_view(VIEW, read_at=0, leader=leader)
                with pytest.raises(StoreUnavailable):
                    await node.read()
            finally:
                single.members[0].thaw()

            async def settled() -> bool:
                seen = await node.read()
                assert seen.view in (None, VIEW)
                return True

            await eventually("reading tells what became of it", settled)

    asyncio.run(story())


def test_an_etcd_that_never_answers_costs_no_more_than_the_deadline() -> None:
    async def story(port: int) -> None:
        etcd = Etcd(EtcdOptions((Endpoint("127.0.0.1", port, False),), attempt_s=0.2, total_s=0.5))
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store(etcd, new_cluster()).read()
        assert time.monotonic() - began < 10
        await etcd.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel accepts, nobody ever speaks
        asyncio.run(story(listener.getsockname()[1]))


def test_after_close_a_call_fails_instead_of_connecting_again(single: TestEtcd) -> None:
    async def story() -> None:
        async with client(single) as etcd:
            await etcd.get("x")
        with pytest.raises(StoreUnavailable, match="closed"):
            await etcd.get("x")

    asyncio.run(story())
