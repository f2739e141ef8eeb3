"""The watch over a real PostgreSQL: killed, frozen, restarted, and its new connections frozen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cluster.model import Answer, NodeId, Verdict
from postgres.watch import PrimaryWatch, Target
from tests.support.pgserver import BIN, PgServer
from tests.support.ports import free_ports

N1 = NodeId("n1")


@pytest.fixture(scope="module")
def initialised() -> Iterator[PgServer]:
    if not (BIN / "postgres").exists():
        pytest.skip(f"PostgreSQL is not installed in {BIN}")
    server = PgServer()
    server.initdb()
    yield server
    server.remove()


@pytest.fixture
def postgres(initialised: PgServer) -> Iterator[PgServer]:
    initialised.start()
    yield initialised
    freeze(initialised, signal.SIGCONT)
    initialised.stop()


def family(server: PgServer) -> list[int]:
    pid = server.process.pid
    with contextlib.suppress(FileNotFoundError):
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return []


def freeze(server: PgServer, number: int = signal.SIGSTOP) -> None:
    for pid in family(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Witness:
    """Remembers the verdicts, and when they came."""

    def __init__(self, age: float | None = None) -> None:
        self.verdicts: list[Verdict] = []
        self.age = age
        self._news = asyncio.Event()

    def heard(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self._news.set()

    async def stream_age(self) -> float | None:
        return self.age

    async def until(self, answer: Answer, within_s: float = 30.0) -> float:
        """Seconds until the last verdict is this."""
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(within_s):
            while not self.verdicts or self.verdicts[-1].answer is not answer:
                self._news.clear()
                await self._news.wait()
        return asyncio.get_running_loop().time() - began


@contextlib.asynccontextmanager
async def watching(witness: Witness, port: int, suspect_after_s: float = 1.0) -> AsyncIterator[PrimaryWatch]:
    watch = PrimaryWatch(
        {"user": "postgres"}, stream_age=witness.stream_age, on_change=witness.heard, suspect_after_s=suspect_after_s
    )
    watch.watch(Target(5, N1, "127.0.0.1", port))
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


MINE = "SELECT pid FROM pg_stat_activity WHERE application_name = 'flypg watch'"


async def connected(postgres: PgServer, count: int = 1) -> int:
    """Wait until the watch has (so many) open connections; the backend of the first."""
    async with asyncio.timeout(30):
        while True:
            rows = await asyncio.to_thread(postgres.sql, MINE + " ORDER BY backend_start")
            if len(rows) >= count:
                return int(rows[0][0])
            await asyncio.sleep(0.05)


async def test_killed_is_refused_at_once_and_ok_when_it_is_back(postgres: PgServer) -> None:
    witness = Witness()
    async with watching(witness, postgres.port) as watch:
        await witness.until(Answer.OK)
        assert watch.verdict == Verdict(5, N1, Answer.OK)
        await connected(postgres)
        postgres.send(signal.SIGKILL)
        assert await witness.until(Answer.REFUSED) < 10.0, "the end of its connection says so"
        await asyncio.to_thread(postgres.process.wait, 30)
        await asyncio.to_thread(postgres.start)
        await witness.until(Answer.OK)
    assert [v.answer for v in witness.verdicts] == [Answer.OK, Answer.REFUSED, Answer.OK]


async def test_frozen_is_silent_and_ok_when_it_wakes(postgres: PgServer) -> None:
    witness = Witness()
    async with watching(witness, postgres.port):
        await witness.until(Answer.OK)
        await connected(postgres)
        freeze(postgres)
        took = await witness.until(Answer.SILENT)
        assert 0.3 < took < 20.0
        freeze(postgres, signal.SIGCONT)
        await witness.until(Answer.OK)


async def test_it_is_not_silent_while_wal_comes(postgres: PgServer) -> None:
    witness = Witness(age=0.1)
    async with watching(witness, postgres.port):
        await witness.until(Answer.OK)
        await connected(postgres)
        freeze(postgres)
        with pytest.raises(TimeoutError):
            await witness.until(Answer.SILENT, within_s=2.5)
        witness.age = 5.0
        await witness.until(Answer.SILENT)


async def test_a_frozen_postmaster_with_live_connections_is_ok(postgres: PgServer) -> None:
    witness = Witness()
    async with watching(witness, postgres.port, suspect_after_s=3.0):
        await witness.until(Answer.OK)
        await connected(postgres)
        postgres.send(signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await witness.until(Answer.SILENT, within_s=6.0)


async def test_a_hung_connection_beside_a_live_server_is_ok(postgres: PgServer) -> None:
    witness = Witness()
    async with watching(witness, postgres.port, suspect_after_s=5.0):
        await witness.until(Answer.OK)
        backend = await connected(postgres)
        os.kill(backend, signal.SIGSTOP)
        await connected(postgres, 2)  # it makes itself a new one
        os.kill(backend, signal.SIGKILL)
    assert Answer.SILENT not in [v.answer for v in witness.verdicts]


async def test_a_host_with_nothing_listening_and_a_change_of_target(postgres: PgServer) -> None:
    witness = Witness()
    async with watching(witness, free_ports(1)[0]) as watch:
        await witness.until(Answer.REFUSED)
        watch.watch(Target(6, NodeId("n2"), "localhost", postgres.port))
        await witness.until(Answer.OK)
        assert witness.verdicts[-1] == Verdict(6, NodeId("n2"), Answer.OK)
        watch.watch(None)
        assert watch.verdict is None


async def test_a_server_that_does_not_let_us_in_lives(postgres: PgServer) -> None:
    witness = Witness()
    async with watching(witness, postgres.port) as watch:
        watch.credentials["user"] = "nobody_of_that_name"
        await witness.until(Answer.OK)
        await asyncio.sleep(1.0)
        postgres.send(signal.SIGKILL)
        await witness.until(Answer.REFUSED)
