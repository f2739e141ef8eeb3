"""The agent's HTTP server: checks, probes, commands and the page on one port, metrics on that and on another.

Handlers render what is known; they never wait for etcd or for another node. Only the pg check and a scrape talk to the
local PostgreSQL, each over one connection and with a deadline.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any

from cluster.errors import FlypgError
from healthchecks.commands.serve import add_commands, answer
from healthchecks.config import HttpConfig
from healthchecks.exposition import CONTENT_TYPE
from healthchecks.lines import Report
from healthchecks.node import cluster_json, event_json, node_json
from healthchecks.probes import PROBES, Asked, parse_lag, probe
from healthchecks.provider import Provider
from healthchecks.role import gather
from healthchecks.scrape import Metrics
from healthchecks.suite import Checks
from healthchecks.watch import Watch
from healthchecks.web import web
from postgres.check_queries import Vitals

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
COMPRESS_FROM = 4096
QUICK_S = 0.5
HISTORY_S = 3.0
NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def accepts_gzip(request: web.Request) -> bool:
    return "gzip" in request.headers.get("Accept-Encoding", "")


def plain(report: Report) -> web.Response:
    return web.Response(text=report.body, status=report.status, content_type="text/plain", charset="utf-8")


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """404 and 405 as Fly answers them; commands always answer in JSON."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status not in (404, 405):
            raise
        if request.path.startswith("/commands"):
            response = answer({"error": "404 page not found" if error.status == 404 else error.reason}, error.status)
        else:
            response = web.Response(text="404 page not found" if error.status == 404 else "", status=error.status)
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response


class HttpServer:
    """Everything a node serves over HTTP."""

    def __init__(self, config: HttpConfig, provider: Provider, version: str = "") -> None:
        self._config = config
        self._provider = provider
        self._version = version
        self.checks = Checks(config, provider)
        self.metrics = Metrics(config, provider, self.checks, version)
        self._watch = Watch(provider, self.node)
        self._runners: list[web.AppRunner] = []

    async def start(self) -> None:
        """Listen. Raises OSError when no address can be bound or a port is taken."""
        await self._serve(self.application(), self._config.http_port)
        scraped = web.Application()
        scraped.router.add_get("/metrics", self._metrics)
        await self._serve(scraped, self._config.metrics_port)

    async def stop(self) -> None:
        """Close every connection, to clients and to PostgreSQL."""
        await self._watch.close()
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()
        await self.metrics.close()
        await self.checks.close()

    def wake(self) -> None:
        """The agent has read something new: whoever watches is told. Cheap; call it from the event loop."""
        self.metrics.observe()
        self._watch.wake()

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_refusals])
        add = app.router.add_route
        add("*", "/flycheck/vm", self._vm)
        add("*", "/flycheck/pg", self._pg)
        add("*", "/flycheck/role", self._role)
        for path in PROBES:
            for method in ("GET", "HEAD", "OPTIONS"):
                add(method, path, self._probe)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/node", self._node)
        app.router.add_get("/patroni", self._node)
        app.router.add_get("/cluster", self._cluster)
        app.router.add_get("/history", self._history)
        app.router.add_get("/", self._watch.page)
        app.router.add_get("/events", self._watch.events)
        add_commands(app, self._config, self._provider, self._version)
        return app

    async def _serve(self, app: web.Application, port: int) -> None:
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        bound = 0
        refused: OSError | None = None
        for address in self._config.listen:
            try:
                await web.TCPSite(runner, address, port, backlog=1024).start()
                bound += 1
            except OSError as error:
                if error.errno not in NO_ADDRESS:
                    raise
                refused = error  # a machine without IPv6, or an address that is not up yet
        if not bound and refused is not None:
            raise refused

    async def _vm(self, request: web.Request) -> web.Response:
        return plain(await self.checks.vm.answer())

    async def _pg(self, request: web.Request) -> web.Response:
        return plain(await self.checks.pg.answer())

    async def _role(self, request: web.Request) -> web.Response:
        return plain(self.checks.role())

    async def _probe(self, request: web.Request) -> web.Response:
        try:
            limit = parse_lag(request.query.get("lag"))
        except ValueError as error:
            return answer({"error": str(error)}, 400)
        vitals = await self.checks.vitals() if limit is not None else None
        stale_after_s = self._config.thresholds.stale_after_s
        facts = gather(self._provider)
        found = self.checks.claim()
        behind = vitals.behind_bytes if vitals is not None else None
        status = probe(request.path, Asked(facts, found, limit, behind, stale_after_s))
        if request.method == "OPTIONS":
            return web.Response(status=status)
        return answer(node_json(facts, found, self._provider.member(), vitals), status)

    async def _node(self, request: web.Request) -> web.Response:
        return answer(self.node(await self._quick_vitals()))

    async def _quick_vitals(self) -> Vitals | None:
        """None when PostgreSQL does not answer at once: whoever asks how a node is must not wait for a hung one."""
        try:
            async with asyncio.timeout(QUICK_S):
                return await self.checks.vitals()
        except TimeoutError:
            return None

    def node(self, vitals: Vitals | None = None) -> dict[str, Any]:
        provider = self._provider
        return node_json(gather(provider), self.checks.claim(), provider.member(), vitals, provider.backup_stats())

    async def _cluster(self, request: web.Request) -> web.Response:
        snapshot = self._provider.snapshot()
        return answer(cluster_json(self._provider.cluster(), snapshot, self._provider.snapshot_age_s()))

    async def _metrics(self, request: web.Request) -> web.Response:
        text = await self.metrics.text()
        response = web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})
        if len(text) > COMPRESS_FROM and accepts_gzip(request):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def _history(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(HISTORY_S):
                events = await self._provider.store().read_events(200)
        except TimeoutError:
            return answer({"error": f"etcd did not answer within {HISTORY_S:g} s"}, 503)
        except FlypgError as error:
            return answer({"error": str(error)}, 503)
        return answer([event_json(event) for event in events])
