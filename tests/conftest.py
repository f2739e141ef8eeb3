"""Tests may be coroutines: each runs in an event loop of its own, which must end with no task left behind.

What they write is in memory where there is plenty: a hundred clusters and their fsyncs would have one disk to share.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from backups.repository import Path as RepositoryPath
    from tests.support.etcd import TestEtcd
    from tests.support.pgserver import PgServer

MEMORY = Path("/dev/shm")
ROOM_BYTES = 6 << 30  # what must be free, of the volume and of the machine


def in_memory(memory: Path = MEMORY, meminfo: Path = Path("/proc/meminfo")) -> bool:
    """Is there a volume in memory that the tests may fill?"""
    try:
        volume = os.statvfs(memory)
        available = next(int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line)
    except (OSError, StopIteration):
        return False
    free = min(volume.f_bavail * volume.f_frsize, available << 10)
    return os.access(memory, os.W_OK) and not volume.f_flag & os.ST_NOEXEC and free > ROOM_BYTES


if "TMPDIR" not in os.environ and in_memory():
    os.environ["TMPDIR"] = str(MEMORY)  # read by tempfile, here and in the programs that are started


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def test_…`; leave every other test to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEtcd]:
    """An etcd of one member."""
    from tests.support.etcd import start_etcd  # not needed by tests without one

    made = start_etcd(tmp_path_factory.mktemp("etcd"))
    yield made
    made.stop()


@pytest.fixture
def server() -> Iterator[PgServer]:
    """A PostgreSQL with small segments that archives, for tests of backups."""
    from tests.support.archive import new_server

    made = new_server()
    made.start()
    yield made
    made.remove()


@pytest.fixture
def path(server: PgServer) -> RepositoryPath:
    """Of a repository in a directory, for what `server` writes."""
    from backups.codec import Codec
    from tests.support.archive import directory, path_for

    return path_for(server, directory(server.root), Codec())
