"""An HttpServer on loopback for the length of a test, and a client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from healthchecks.config import HttpConfig
from healthchecks.server import HttpServer
from tests.support.http_node import TestNode
from tests.support.ports import free_ports


@dataclass
class Answer:
    status: int
    text: str
    content_type: str


@dataclass
class Serving:
    """What a test asks."""

    server: HttpServer
    node: TestNode
    session: aiohttp.ClientSession
    port: int
    metrics_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str, method: str = "GET", **more: Any) -> Answer:
        async with self.session.request(method, self.url + path, **more) as response:
            return Answer(response.status, await response.text(), response.headers.get("Content-Type", ""))

    async def metrics(self) -> str:
        async with self.session.get(f"http://127.0.0.1:{self.metrics_port}/metrics") as response:
            assert response.status == 200
            return await response.text()


@asynccontextmanager
async def serving(node: TestNode, directory: Path, **settings: Any) -> AsyncIterator[Serving]:
    """The server runs in this event loop, with `settings` of HttpConfig."""
    port, metrics_port = free_ports(2)
    config = HttpConfig(listen=("127.0.0.1",), http_port=port, metrics_port=metrics_port, data_dir=str(directory))
    server = HttpServer(replace(config, **settings), node, "1.2.3")
    await server.start()
    try:
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Serving(server, node, session, port, metrics_port)
    finally:
        await server.stop()
