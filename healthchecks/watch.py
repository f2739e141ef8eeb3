"""The page and its stream of changes: gathered once for all who watch, and only while somebody does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable
from typing import Any

from cluster.errors import FlypgError
from cluster.model import Event, NodeId
from healthchecks.page import Seen, document, parts
from healthchecks.peers import ask_all
from healthchecks.provider import Provider
from healthchecks.web import web

EVERY_S = 2.0  # lag moves without anybody telling
AT_MOST_EVERY_S = 0.25
EVENTS_EVERY_S = 10.0
EVENTS = 20
EVENTS_TIMEOUT_S = 1.0
MAX_WATCHERS = 50


class Watch:
    """Answers GET / and GET /events."""

    def __init__(self, provider: Provider, node: Callable[[], dict[str, Any]]) -> None:
        self._provider = provider
        self._node = node
        self._changed = asyncio.Event()
        self._gathering: asyncio.Task[Seen] | None = None
        self._seen: Seen | None = None
        self._seen_at = float("-inf")
        self._events: tuple[Event, ...] = ()
        self._events_key: tuple[int, float] = (-1, float("-inf"))
        self._watchers: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Something has changed: tell everyone who watches."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def page(self, request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(12)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self';"
            " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return web.Response(text=document(await self.seen(), nonce), content_type="text/html", headers=headers)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the parts of the page that have changed, as JSON by their ids."""
        task = asyncio.current_task()
        if task is None or len(self._watchers) >= MAX_WATCHERS:
            return web.Response(status=503, text="too many watch this node's page already")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._watchers.add(task)
        try:
            await response.prepare(request)
            await self._stream(response)
        except (ConnectionResetError, asyncio.CancelledError):
            pass  # the reader has gone, or we stop
        finally:
            self._watchers.discard(task)
        return response

    async def _stream(self, response: web.StreamResponse) -> None:
        shown: dict[str, str] = {}
        while True:
            changed = self._changed
            now = parts(await self.seen())
            news = {name: html for name, html in now.items() if shown.get(name) != html}
            await response.write(f"data: {json.dumps(news)}\n\n".encode() if news else b": still here\n\n")
            shown = now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await changed.wait()
            await asyncio.sleep(AT_MOST_EVERY_S)

    async def seen(self) -> Seen:
        """What there is to show, at most a moment old; gathered once for all who ask at the same time."""
        if self._seen is not None and time.monotonic() < self._seen_at + AT_MOST_EVERY_S:
            return self._seen
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._gather(), name="page")
        return await asyncio.shield(self._gathering)

    async def _gather(self) -> Seen:
        provider = self._provider
        try:
            snapshot, me = provider.snapshot(), provider.node()
            looks: dict[NodeId, dict[str, Any] | None]
            looks, _ = await asyncio.gather(ask_all(snapshot, me), self._read_events())
            snapshot = provider.snapshot()
            looks[me] = self._node()
            age = provider.snapshot_age_s()
            self._seen = Seen(provider.cluster(), me, provider.clock.wall(), snapshot, age, looks, self._events)
            self._seen_at = time.monotonic()
            return self._seen
        finally:
            self._gathering = None

    async def _read_events(self) -> None:
        """When the view has changed, and every ten seconds. What was read before stays when etcd is silent."""
        snapshot = self._provider.snapshot()
        revision = snapshot.view_revision if snapshot is not None else 0
        if revision == self._events_key[0] and time.monotonic() < self._events_key[1] + EVENTS_EVERY_S:
            return
        self._events_key = (revision, time.monotonic())
        try:
            async with asyncio.timeout(EVENTS_TIMEOUT_S):
                self._events = tuple(await self._provider.store().read_events(EVENTS))
        except (FlypgError, TimeoutError):
            return

    async def close(self) -> None:
        watching = [*self._watchers, *((self._gathering,) if self._gathering is not None else ())]
        for task in watching:
            task.cancel()
        if watching:
            await asyncio.wait(watching)
