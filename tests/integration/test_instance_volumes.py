"""Volumes without room, and a disk that does not answer: seen as faults, never a reason not to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cluster.errors import InstanceError
from cluster.model import lone_rule
from postgres.instance import Run
from tests.support.postgres import Node, Servers, binaries_missing, servers, up

pytestmark = [
    pytest.mark.skipif(binaries_missing() != "", reason=binaries_missing()),
    pytest.mark.skipif(os.geteuid() != 0, reason="small volumes are mounted, which needs root"),
]


@contextlib.contextmanager
def volume(at: Path, mb: int) -> Iterator[Path]:
    """A small volume in memory; skips the test where nothing may be mounted."""
    at.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mb}m,mode=0755", "none", str(at)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def fill(directory: Path, leave: int) -> Path:
    """Use up the volume but for `leave` bytes."""
    stat = os.statvfs(directory)
    filler = directory / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - leave)
    return filler


@contextlib.asynccontextmanager
async def small(made: Servers, mb: int) -> AsyncIterator[Node]:
    """A primary whose whole directory is on a small volume."""
    node = made.add(memory_mb=256)
    home = node.config.pgdata.parent
    shutil.rmtree(home)
    with volume(home, mb):
        node.instance = made.adopt(node)
        await made.found(node)
        await node.instance.start_primary(lone_rule(1, node.name))
        await node.until(up)
        try:
            yield node
        finally:
            await node.instance.stop(fast=False)
            await node.until(lambda s: s.run is Run.DOWN)


def run(story: Callable[[Servers], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with servers() as made:
            await story(made)

    asyncio.run(inside())


def test_wal_without_room_is_named_as_the_cause_of_death() -> None:
    async def story(made: Servers) -> None:
        async with small(made, 160) as node:
            node.sql("CREATE TABLE t (n int, filler text)")
            filler = fill(node.config.pgdata.parent, 12 << 20)
            with contextlib.suppress(psycopg.Error):
                for _ in range(40):
                    node.sql("INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 4000) AS n")
                    node.sql("TRUNCATE t")
            state = await node.until(lambda s: s.run is Run.DOWN and s.fault != "")  # the first look tells of its death
            assert state.died and state.fault == "WAL volume full"
            with contextlib.suppress(InstanceError):
                await node.instance.start_primary(lone_rule(1, node.name))
            filler.unlink()
            await node.until(lambda s: s.run is not Run.STARTING)
            await node.instance.start_primary(lone_rule(1, node.name))
            state = await node.until(up)
            assert state.fault == "" and not state.died

    run(story)


def test_data_without_room_is_a_fault_of_a_running_server() -> None:
    async def story(made: Servers) -> None:
        async with small(made, 160) as node:
            assert (await node.until(up)).fault == ""
            filler = fill(node.config.pgdata.parent, 0)
            state = await node.until(lambda s: s.fault != "")
            assert state.fault == "data volume full" and state.run is Run.UP
            await node.instance.stop(fast=False)  # although not even a mark can be written
            await node.until(lambda s: s.run is Run.DOWN)
            filler.unlink()
            await node.instance.start_standby(None)
            assert (await node.until(up)).fault == ""

    run(story)
