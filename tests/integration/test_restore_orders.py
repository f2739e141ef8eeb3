"""The order to restore in place, in a real etcd: one at a time, withdrawn until there is no way back, finished once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from backups.orders import Orders, RestoreOrder, Stage
from cluster.errors import StoredFormatError
from cluster.etcd import Etcd
from cluster.etcd_values import Get, Put
from cluster.keys import Keys
from cluster.model import Event
from tests.support.etcd import BIN as ETCD
from tests.support.etcd import TestEtcd, start_etcd

pytestmark = [
    pytest.mark.timeout(200),  # on a machine that is busy with other tests
    pytest.mark.skipif(ETCD is None, reason="there is no etcd on this machine"),
]
ORDER = RestoreOrder(
    "a1", "n1", "c/7-00000000", "vs_x", "lsn", "0/5000000", 0.0, 0x5000000, 1, True, True, "me@here", 1.0
)
OLD = ("view", "nodes/n1/promise", "nodes/n2/promise", "requests/r", "backups/path/7", "backups/history/")
KEPT = ("spec", "backups/path/8")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEtcd]:
    made = start_etcd(tmp_path_factory.mktemp("etcd"))
    yield made
    made.stop()


def test_an_order_from_the_first_word_to_the_last(etcd: TestEtcd) -> None:
    asyncio.run(an_order(etcd))


async def an_order(etcd: TestEtcd) -> None:
    client = Etcd(etcd.options())
    orders, prefix = Orders(client, "c"), Keys("c").prefix
    try:
        assert await orders.read() is None
        assert await orders.give(ORDER) is None
        assert await orders.read() == ORDER
        assert str(ORDER.target) == "lsn 0/5000000"
        other = replace(ORDER, id="b2", node="n2")
        assert await orders.give(other) == ORDER, "one at a time"
        assert (await orders.progress(ORDER)).stage is Stage.ASKED
        await orders.tell(ORDER, Stage.FAILED, "no room")
        told = await orders.progress(ORDER)
        await orders.tell(ORDER, Stage.FAILED, "no room")
        assert await orders.progress(ORDER) == told, "the same again is not written again"
        assert await orders.withdraw(ORDER)
        assert not await orders.begin_change(ORDER), "the node that restored meanwhile changes nothing"
        assert not await orders.finish(ORDER, "7", Event(1.0, 0, "restore", "x"))

        assert await orders.give(other) is None
        for key in (*OLD, *KEPT):
            await client.transaction((), (Put(prefix + key, b"x"),), ())
        assert await orders.begin_change(other)
        assert await orders.begin_change(other), "cut off here, it is found again"
        assert not await orders.withdraw(other), "there is no way back"
        await orders.tell(other, Stage.FAILED, "a late word")
        assert (await orders.progress(other)).stage is Stage.CHANGING
        assert await orders.finish(other, "7", Event(1.0, 0, "restore", "restored"))
        assert await orders.finish(other, "7", Event(1.0, 0, "restore", "restored")), "done is done"
        left = await client.find(Get(prefix, Keys("c").end))
        keys = {item.key.removeprefix(prefix) for item in left.items}
        assert keys.isdisjoint(OLD) and keys.issuperset(KEPT), keys
        assert len([k for k in keys if k.startswith("events/")]) == 1
        assert await orders.give(ORDER) is None, "the next may follow"
        await client.transaction((), (Put(f"{prefix}backups/order", b'{"format_version": 1, "new": 1}'),), ())
        with pytest.raises(StoredFormatError, match="upgrade"):
            await orders.read()
    finally:
        await client.close()
