"""The page in a real browser: as it looks, live while the primary changes, and without JavaScript.

The pictures stay in build/screenshots for whoever wants to look.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.model import Branch, Event, NodeId, Phase, Ports, Snapshot
from tests.support.browser import PROGRAM, browser
from tests.support.http_node import (
    N1,
    N2,
    TestNode,
    eventually,
    open_snapshot,
    primary_instance,
    standby_instance,
    walsender,
)
from tests.support.serving import Serving, serving

PICTURES = Path(__file__).parents[2] / "build" / "screenshots"
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"),
]
NOWHERE = "host=/nonexistent port=1 user=postgres"
HISTORY = [
    Event(1795934000.0, 2, "failover", "postmaster of n2 died", "n2", "n3"),
    Event(1795934001.0, 3, "open", "served"),
]


def reached(snapshot: Snapshot, ports: dict[NodeId, int]) -> Snapshot:
    """The same cluster, with the ports on which its nodes really answer."""
    assert snapshot.view is not None
    members = tuple(replace(m, ports=Ports(http=ports[m.node])) for m in snapshot.view.members)
    branches = (Branch(1, 1, N2, 0, 0, True), Branch(3, 3, N1, 1, 0x2000000, True))
    return replace(snapshot, view=replace(snapshot.view, members=members, branches=branches))


def keep(picture: bytes, name: str) -> None:
    assert len(picture) > 20_000, "an empty page"
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / f"{name}.png").write_bytes(picture)


def fail_over(servers: tuple[Serving, Serving], phase: Phase) -> None:
    """As both nodes see it: n1 is revoked, then n2 is primary of term 4."""
    first, second = servers
    for server in servers:
        snapshot = server.node.current
        assert snapshot is not None and snapshot.view is not None
        primary = N2 if phase is Phase.OPEN else None
        view = replace(snapshot.view, term=4, phase=phase, primary=primary, cause="no answer from n1, say n2 and n3")
        server.node.current = replace(snapshot, view=view, view_revision=snapshot.view_revision + 1)
        server.node.memory.events.append(Event(1795934100.0, 4, "failover", "no answer from n1", "n1", "n2"))
    if phase is Phase.OPEN:
        first.node.local = standby_instance(N2)
        second.node.local = primary_instance(walsenders=(walsender("n1_t4"),))
    for server in servers:
        server.server.wake()


def test_the_page_in_a_browser_before_and_during_a_failover(tmp_path: Path) -> None:
    async def run() -> None:
        one, two = TestNode(NOWHERE), TestNode(NOWHERE)
        one.local, two.me, two.local = primary_instance(walsenders=(walsender(),)), N2, standby_instance()
        async with serving(one, tmp_path) as first, serving(two, tmp_path) as second:
            ports = {N1: first.port, N2: second.port}
            for server in (first, second):
                server.node.current = reached(open_snapshot(N1, (N2,)), ports)
                server.node.memory.events = list(HISTORY)
            async with browser() as page:
                await page.open(second.url, width=1100, height=1200)
                await page.shows('id="live">live<')
                await page.shows("n1 is primary (term 3)")
                assert await page.value("document.documentElement.scrollWidth <= innerWidth") is True
                keep(await page.picture(), "page-wide")
                fail_over((first, second), Phase.REVOKING)
                await page.shows("There is no primary (term 4, revoking)")
                keep(await page.picture(), "page-failover")
                fail_over((first, second), Phase.OPEN)
                await page.shows("n2 is primary (term 4)")
                await page.shows("no answer from n1")
                await page.open(first.url, width=400, height=1600, dark=True)
                await page.shows("n2 is primary (term 4)")
                assert await page.value("document.documentElement.scrollWidth <= innerWidth") is True
                keep(await page.picture(), "page-phone-dark")
                await page.open(first.url, width=800, height=1200, scripts=False)
                await page.shows("n2 is primary (term 4)")
                assert 'id="live"></span>' in await page.text(), "no script has run"

    asyncio.run(run())


def test_a_watcher_is_told_at_once_and_costs_nothing_when_gone(tmp_path: Path) -> None:
    async def run() -> None:
        node = TestNode(NOWHERE)
        async with serving(node, tmp_path) as server:
            node.current = reached(open_snapshot(N1, ()), {N1: server.port})
            async with server.session.get(f"{server.url}/events") as stream:
                assert stream.headers["Content-Type"] == "text/event-stream"
                assert "n1 is primary" in (await stream.content.readline()).decode()
                fail_over((server, server), Phase.REVOKING)

                async def told() -> bool:
                    return "There is no primary (term 4, revoking)" in (await stream.content.readline()).decode()

                await eventually(told)

            async def nobody() -> bool:
                server.server.wake()
                return not server.server._watch._watchers

            await eventually(nobody)
            assert (await server.get("/")).status == 200

    asyncio.run(run())
