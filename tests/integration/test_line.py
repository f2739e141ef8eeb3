"""The open connection of the watch, when its server dies."""

from __future__ import annotations

import asyncio

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
