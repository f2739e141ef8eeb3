"""The fence for real: a PostgreSQL is stopped in time, whatever happens to the agent that armed it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent import fence_process
from agent.fence import Fence
from agent.processes import start_time
from tests.support.pgserver import BIN, PgServer

ROOT = Path(__file__).resolve().parents[2]

AGENT = """
import asyncio, sys
from pathlib import Path
from agent.fence import Fence

async def main():
    fence = Fence(Path(sys.argv[1]), lambda pid: None)
    await fence.start()
    fence.arm(float(sys.argv[2]), int(sys.argv[3]))
    while not fence.confirmed:
        await asyncio.sleep(0.01)
    print("armed", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (a program changes it, not a task of ours)
            await asyncio.sleep(0.02)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="fp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def victim(run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Stands in for a postmaster where PostgreSQL is not the point, with a directory of its own like one."""
    process = subprocess.Popen(["sleep", "600"], cwd=run_dir)
    yield process
    process.kill()
    process.wait()


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
    with contextlib.suppress(ProcessLookupError):
        initialised.send(signal.SIGCONT)
    initialised.stop()


@contextlib.asynccontextmanager
async def fence_in(run_dir: Path) -> AsyncIterator[Fence]:
    fence = Fence(run_dir, lambda pid: None)
    await fence.start()
    try:
        yield fence
    finally:
        await fence.stop()


async def armed(fence: Fence, valid_until: float, pid: int) -> None:
    fence.arm(valid_until, pid)
    await eventually(lambda: fence.confirmed)


def launch(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)


def resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_stops_postgres_when_authority_runs_out(run_dir: Path, postgres: PgServer) -> None:
    async with fence_in(run_dir) as fence:
        deadline = now() + 1.0
        await armed(fence, deadline, postgres.process.pid)
        assert postgres.sql("SELECT 1") == [(1,)]
        await eventually(lambda: postgres.process.poll() is not None)
        assert now() >= deadline
        await eventually(lambda: fence.fired == 1)


async def test_a_renewal_and_a_disarm_keep_it_running(run_dir: Path, victim: subprocess.Popen[bytes]) -> None:
    async with fence_in(run_dir) as fence:
        await armed(fence, now() + 1.0, victim.pid)
        await armed(fence, now() + 60.0, victim.pid)
        await asyncio.sleep(1.2)
        assert victim.poll() is None
        await armed(fence, now() + 0.5, victim.pid)
        fence.disarm()
        await eventually(lambda: fence.confirmed)
        await asyncio.sleep(0.7)
        assert victim.poll() is None
        await armed(fence, float("inf"), victim.pid)
        await asyncio.sleep(0.3)
        assert victim.poll() is None
        assert fence.fired == 0


@contextlib.contextmanager
def pooler_stand_in() -> Iterator[tuple[int, Callable[[], str]]]:
    """Tells which signal it got; its pid."""
    script = "trap 'echo pause' USR1; trap 'echo resume' USR2; echo ready; while :; do sleep 0.02; done"
    with launch(["sh", "-c", script]) as process:
        output = process.stdout
        assert output is not None and output.readline() == b"ready\n"
        try:
            yield process.pid, lambda: output.readline().decode().strip()
        finally:
            process.kill()


async def test_a_pooler_is_paused_when_its_postmaster_dies(run_dir: Path, victim: subprocess.Popen[bytes]) -> None:
    """Not before, and with a RESUME to come. What dies is no PostgreSQL, so it is the fence that sees it."""
    paused = []
    with pooler_stand_in() as (pooler, told):
        async with fence_in(run_dir) as fence:
            fence.on_paused = lambda: paused.append(now())
            fence.pause_at_death(pooler)
            await armed(fence, float("inf"), victim.pid)
            assert not paused
            victim.kill()
            assert await asyncio.to_thread(told) == "pause"
            await eventually(lambda: len(paused) == 1)
            await fence.abandon()  # as if we had died: clients are not to wait for ever
            assert await asyncio.to_thread(told) == "resume"


async def test_a_pooler_that_nobody_knows_to_be_paused_is_let_go_when_its_agent_dies(run_dir: Path) -> None:
    """The kernel may pause it for an agent that dies in that very moment. To one that is not paused it does nothing."""
    with pooler_stand_in() as (pooler, told):
        async with fence_in(run_dir) as fence:
            fence.unpause(None, pooler)
            fence.disarm()
            await eventually(lambda: fence.confirmed)
            os.kill(pooler, signal.SIGUSR1)
            assert await asyncio.to_thread(told) == "pause", "nothing came before it"
            await fence.abandon()
            assert await asyncio.to_thread(told) == "resume"


@pytest.mark.parametrize("armed_first", [True, False])
async def test_the_kernel_pauses_it_at_the_death_of_a_real_one(
    run_dir: Path, postgres: PgServer, armed_first: bool
) -> None:
    """No program would be fast enough; the fence sleeps meanwhile."""
    with pooler_stand_in() as (pooler, told):
        async with fence_in(run_dir) as fence:
            if not armed_first:
                fence.pause_at_death(pooler)
            await armed(fence, float("inf"), postgres.process.pid)
            if armed_first:
                fence.pause_at_death(pooler)
                await armed(fence, now() + 600, postgres.process.pid)  # said after it, so it has heard both
            assert fence.pid is not None
            os.kill(fence.pid, signal.SIGSTOP)
            postgres.send(signal.SIGKILL)
            try:
                assert await asyncio.to_thread(told) == "pause"
            finally:
                os.kill(fence.pid, signal.SIGCONT)


async def test_nobody_is_paused_who_is_led_elsewhere(run_dir: Path, postgres: PgServer) -> None:
    with pooler_stand_in() as (pooler, told):
        async with fence_in(run_dir) as fence:
            fence.pause_at_death(pooler)
            await armed(fence, float("inf"), postgres.process.pid)
            fence.pause_at_death(0)
            await armed(fence, now() + 600, postgres.process.pid)
            postgres.send(signal.SIGKILL)
            await asyncio.to_thread(postgres.process.wait)
            os.kill(pooler, signal.SIGUSR2)
            assert await asyncio.to_thread(told) == "resume", "the first that it got"


async def test_frozen_postgres_is_killed_with_all_its_processes(run_dir: Path, postgres: PgServer) -> None:
    with postgres.connect() as connection:
        family = [postgres.process.pid, *children(postgres.process.pid)]
        assert connection.info.backend_pid in family
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        async with fence_in(run_dir) as fence:
            await armed(fence, now() + 0.2, postgres.process.pid)
            await eventually(lambda: postgres.process.poll() is not None)
            await eventually(lambda: all(start_time(pid) is None for pid in family))


async def test_backends_that_outlive_their_postmaster_are_killed(run_dir: Path, postgres: PgServer) -> None:
    with postgres.connect() as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # so that it does not notice the death of its postmaster
        async with fence_in(run_dir) as fence:
            await armed(fence, now() + 1.0, postgres.process.pid)
            postgres.send(signal.SIGKILL)
            postgres.process.wait(30)
            assert start_time(backend) is not None
            await eventually(lambda: start_time(backend) is None)


async def replaced(fence: Fence, old: int) -> None:
    await eventually(lambda: fence.pid not in (None, old) and fence.confirmed)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_it_stops_in_time_without_its_agent(
    number: signal.Signals, run_dir: Path, victim: subprocess.Popen[bytes]
) -> None:
    deadline = now() + 4.0
    agent = launch([sys.executable, "-c", AGENT, str(run_dir), repr(deadline), str(victim.pid)])
    try:
        assert agent.stdout is not None
        assert await asyncio.to_thread(agent.stdout.readline) == b"armed\n"
        agent.send_signal(number)
        await asyncio.sleep(0.3)
        assert victim.poll() is None or now() >= deadline, "the next agent has until the deadline to take over"
        await eventually(lambda: victim.poll() is not None)
        assert now() >= deadline
    finally:
        agent.kill()
        agent.wait()
        assert agent.stdout is not None and agent.stdin is not None
        agent.stdout.close()
        agent.stdin.close()
    pid = int((run_dir / "fence.pid").read_text().split()[0])
    await eventually(lambda: start_time(pid) is None)


async def test_the_next_agent_takes_over(run_dir: Path, victim: subprocess.Popen[bytes]) -> None:
    before = Fence(run_dir, lambda pid: None)
    await before.start()
    deadline = now() + 10.0
    await armed(before, deadline, victim.pid)
    old = before.pid
    assert old is not None
    await before.abandon()
    async with fence_in(run_dir) as after:
        assert after.inherited
        assert start_time(old) is not None, "it keeps its order until the new one has one"
        await armed(after, now() + 60, victim.pid)
        await eventually(lambda: start_time(old) is None)
        assert not after.inherited
        await asyncio.sleep(max(0.0, deadline - now()) + 0.3)
        assert victim.poll() is None


async def test_one_without_agent_and_postmaster_ends(run_dir: Path, victim: subprocess.Popen[bytes]) -> None:
    """Its order had no end, as in maintenance: nobody would ever come to put one to it."""
    alone = Fence(run_dir, lambda pid: None)
    await alone.start()
    await armed(alone, float("inf"), victim.pid)
    pid = alone.pid
    assert pid is not None
    await alone.abandon()
    await asyncio.sleep(0.3)
    assert start_time(pid) is not None, "the next agent may want to know of its order"
    victim.kill()
    await eventually(lambda: start_time(pid) is None)


async def test_an_agent_that_died_before_its_first_order_hides_no_fence(
    run_dir: Path, victim: subprocess.Popen[bytes]
) -> None:
    """An agent that was restarted twice within a second left a fence that nobody knew: it stopped a healthy primary."""
    first = Fence(run_dir, lambda pid: None)
    await first.start()
    await armed(first, now() + 60, victim.pid)
    old = first.pid
    assert old is not None
    await first.abandon()
    second = Fence(run_dir, lambda pid: None)
    await second.start()
    await second.abandon()
    async with fence_in(run_dir) as third:
        assert third.inherited
        await armed(third, now() + 60, victim.pid)
        await eventually(lambda: start_time(old) is None)
        assert not third.inherited


async def test_a_dead_or_stuck_fence_is_replaced_with_its_order(run_dir: Path, victim: subprocess.Popen[bytes]) -> None:
    async with fence_in(run_dir) as fence:
        await armed(fence, now() + 60, victim.pid)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            old = fence.pid
            assert old is not None
            os.kill(old, number)
            fence.arm(now() + 60, victim.pid)
            await replaced(fence, old)
        await armed(fence, now() + 0.1, victim.pid)
        await eventually(lambda: victim.poll() is not None)


async def test_a_recycled_pid_is_left_alone(run_dir: Path, victim: subprocess.Popen[bytes]) -> None:
    started = start_time(victim.pid)
    assert started is not None
    process = launch([sys.executable, "-I", "-S", fence_process.__file__, str(run_dir / "fence.pid")])
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        process.stdin.write(f"arm 0.0 {victim.pid} {started - 1}\n".encode())
        process.stdin.flush()
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        assert (await asyncio.to_thread(process.stdout.readline)).startswith(b"ok arm")
        assert resident_kb(process.pid) < 20_000, "it must fit beside everything"
    assert await asyncio.to_thread(process.wait, 30) == 0, "without an agent and without an order it leaves"
    assert victim.poll() is None
