"""What an idle agent does not do: look before anything can have changed, and ask what it has been told already."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from agent.loops import Wake
from agent.slots import AT_LEAST_EVERY_S, SEGMENT_BYTES, worth_asking
from cluster.etcd import Etcd
from cluster.etcd_values import Found, Get
from cluster.model import Answer, Handover, HandoverStage, Request, RequestKind, Snapshot
from cluster.trust import TrustStore
from sentinel.observe import Observations, observe
from tests.unit.stories import A, B, C, lost, primary, promise, promoting, revoking, rule, snap, standby, view

ASKED = Request("r1", RequestKind.SWITCHOVER, B, "ann")
HANDING_OVER = Handover(B, "r1", HandoverStage.PREPARE)

CALM = [
    ("all is well", snap(), True),
    ("a request is not answered yet", snap(view(), primary(), standby(B), standby(C), ASKED), False),
    ("a node is away: it may be removed after a while", snap(view(), primary(), standby(B)), False),
    ("a standby does not stream", snap(view(), primary(standbys=()), standby(B), standby(C)), False),
    ("the primary restarts", snap(view(), primary(restarting=True), standby(B), standby(C)), False),
    ("it has given a later term its word", snap(view(), primary(), standby(B), standby(C), promise(A, 900)), False),
    ("one gets no answer", snap(view(), primary(), lost(B, Answer.SILENT), standby(C)), False),
    ("a switchover", snap(view(handover=HANDING_OVER), primary(), standby(B), standby(C)), False),
    ("the rule changes", snap(view(rules=(rule(), rule(voters="b"))), primary(), standby(B), standby(C)), False),
    ("nobody is primary", snap(revoking(), standby(B), standby(C)), False),
    ("one is being promoted", snap(promoting(), standby(B), standby(C)), False),
    ("there is no cluster yet", snap(None, standby(B)), False),
]


@pytest.mark.parametrize(("story", "seen", "calm"), CALM, ids=[s[0] for s in CALM])
def test_a_leader_looks_seldom_only_where_waiting_changes_nothing(story: str, seen: Snapshot, calm: bool) -> None:
    assert observe(Observations(since=0.0), seen, 100.0).calm(seen) is calm


@pytest.mark.parametrize(
    ("more_bytes", "ago_s", "asks"),
    [
        (SEGMENT_BYTES - 1, 60.0, False),
        (SEGMENT_BYTES, 60.0, True),
        (-SEGMENT_BYTES, 60.0, True),
        (0, AT_LEAST_EVERY_S, True),
    ],
)
def test_slots_are_advanced_by_whole_files_of_wal(more_bytes: int, ago_s: float, asks: bool) -> None:
    assert worth_asking(more_bytes, ago_s) is asks


class Counting:
    """Stands for etcd: counts the reads, and tells a revision with each answer."""

    def __init__(self) -> None:
        self.revision = 0
        self.written = 7
        self.asked = 0

    async def find(self, wanted: Get) -> Found:
        self.asked += 1
        self.revision = self.written
        return Found(self.written, ())


async def test_trust_is_read_again_when_anything_was_written() -> None:
    etcd = Counting()
    store = TrustStore(cast(Etcd, etcd), "main")
    first = await store.follow()
    assert await store.follow() is first
    assert etcd.asked == 1
    etcd.revision = etcd.written = 8  # as another answer has told
    await store.follow()
    assert etcd.asked == 2
    await store.read()
    assert etcd.asked == 3, "who asks for it as it is now is not put off"


async def test_a_wait_ends_with_a_ring_or_with_its_time() -> None:
    wake = Wake()
    async with asyncio.timeout(10):
        await wake.wait(0.01)
        wake.ring()
        wake.ring()
        await wake.wait(60.0)
        asyncio.get_running_loop().call_soon(wake.ring)
        await wake.wait(60.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await wake.wait(60.0)
