"""A node's part of an order to restore in place: withdrawn while it waits, and while it unpacks."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent import in_place
from agent.in_place import _Part
from agent.wiring import Parts
from backups.orders import Orders, Progress, RestoreOrder, Stage
from cluster.errors import InstanceError

ORDER = RestoreOrder("0a", "n1", "demo/1-a", "vs_x", "latest", "", 0.0, 0, 1, True, True, "me", 0.0)
SOON_S = 0.01


class Notebook:
    """etcd's two values, in memory."""

    def __init__(self) -> None:
        self.order: RestoreOrder | None = ORDER
        self.told: list[tuple[Stage, str]] = []
        self.failed = asyncio.Event()

    async def read(self) -> RestoreOrder | None:
        return self.order

    async def progress(self, order: RestoreOrder) -> Progress:
        return Progress(order.id, Stage.ASKED)

    async def tell(self, order: RestoreOrder, stage: Stage, text: str) -> None:
        self.told.append((stage, text))
        if stage is Stage.FAILED:
            self.failed.set()


def part(tmp_path: Path, notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> _Part:
    async def stopped(_: _Part) -> None:
        return

    monkeypatch.setattr(in_place, "SOON_S", SOON_S)
    monkeypatch.setattr(in_place, "RETRY_S", 3600.0)
    monkeypatch.setattr(in_place, "RETRY_MAX_S", 3600.0)
    monkeypatch.setattr(_Part, "_stop_postgres", stopped)
    parts = SimpleNamespace(
        member=SimpleNamespace(node="n1"),
        instance=SimpleNamespace(pgdata=tmp_path / "pgdata"),
        state_file=tmp_path / "state.json",
    )
    return _Part(cast(Parts, parts), cast(Orders, notebook), ORDER, logging.getLogger("test"))


async def test_an_order_that_is_withdrawn_ends_the_wait_for_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = Notebook()
    ours = part(tmp_path, notebook, monkeypatch)

    async def fails(_: _Part) -> dict[str, Any]:
        raise InstanceError("the repository is away")

    monkeypatch.setattr(_Part, "_unpack", fails)
    running = asyncio.create_task(ours.carry_out())
    await notebook.failed.wait()
    assert notebook.told[-1] == (Stage.FAILED, "n1: the repository is away")
    await asyncio.sleep(10 * SOON_S)
    assert not running.done(), "it waits to try again"
    notebook.order = None
    await asyncio.wait_for(running, 10)


async def test_an_order_that_is_withdrawn_ends_the_unpacking_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = Notebook()
    ours = part(tmp_path, notebook, monkeypatch)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def takes_hours(_: _Part) -> dict[str, Any]:
        (tmp_path / "pgdata.restoring").mkdir()
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        raise AssertionError("cancelled before")

    monkeypatch.setattr(_Part, "_unpack", takes_hours)
    running = asyncio.create_task(ours.carry_out())
    await begun.wait()
    notebook.order = None
    await asyncio.wait_for(running, 10)
    assert ended.is_set()
    assert not (tmp_path / "pgdata.restoring").exists()
