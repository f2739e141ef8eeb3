"""The open connection of the watch, when its server dies."""

from __future__ import annotations

import asyncio
import sys

from postgres.line import Line
from tests.support.pgserver import PgServer


async def test_a_line_that_has_ended_leaves_the_next_owner_of_its_socket_number_alone() -> None:
    server = PgServer()
    try:
        server.initdb()
        server.start()
        listener = await asyncio.start_server(lambda r, w: w.transport.abort(), "127.0.0.1", 0)
        line = await Line.open("127.0.0.1", server.port, {"user": "postgres"}, 10.0)
        assert line is not None
        descriptor = line._descriptor
        server.stop()
        assert await line.idle(10.0) is False
        port = listener.sockets[0].getsockname()[1]
        others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        taken = [writer.get_extra_info("socket").fileno() for _, writer in others]
        assert descriptor in taken, "the number was not given out again: this test proves nothing"
        line.close()
        for _, writer in others:
            writer.transport.abort()
        listener.close()
        await listener.wait_closed()
        await asyncio.sleep(0)  # the transports' ends are told in the next round of the loop
    finally:
        server.remove()


CHILD = """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: print("SIGUSR1", flush=True))
print("ready", flush=True)
while True: time.sleep(60)
"""


async def test_the_kernel_tells_a_process_of_the_end_and_of_nothing_else() -> None:
    """Answers to questions are no news; the end of the server is, also to who does not run our loop."""
    server = PgServer()
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None and await child.stdout.readline() == b"ready\n"
        server.initdb()
        server.start()
        line = await Line.open("127.0.0.1", server.port, {"user": "postgres"}, 10.0)
        assert line is not None
        said = asyncio.create_task(child.stdout.readline())
        for _ in range(20):
            line.ask()
            assert await line.answer(10.0) is True
            assert await line.idle(0.01, child.pid) is True
        line.ask()  # its answer comes while nobody is to be told
        await asyncio.sleep(0.2)
        assert await line.answer(10.0) is True
        assert not said.done()

        idle = asyncio.create_task(line.idle(30.0, child.pid))
        await asyncio.sleep(0.05)
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flypg watch'")
        assert await asyncio.wait_for(said, 10.0) == b"SIGUSR1\n"
        assert await idle is False
        async with asyncio.timeout(10):
            while not line.ended:  # what the server said last has come before the end of the connection
                assert await line.idle(10.0) is False
        line.close()
    finally:
        child.kill()
        await child.wait()
        server.remove()


async def test_an_alarm_for_a_process_that_has_ended_goes_to_nobody() -> None:
    server = PgServer()
    child = await asyncio.create_subprocess_exec("true")
    await child.wait()
    try:
        server.initdb()
        server.start()
        line = await Line.open("127.0.0.1", server.port, {"user": "postgres"}, 10.0)
        assert line is not None
        assert await line.idle(0.05, child.pid) is True
        line.ask()
        assert await line.answer(10.0) is True
        line.close()
    finally:
        server.remove()
