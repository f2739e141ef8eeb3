"""Serving the table of commands over aiohttp: who may ask, the envelope, and the status of every failure."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable

from healthchecks.commands.openapi import description
from healthchecks.commands.route import Bare, Call, CommandError, Route
from healthchecks.commands.routes import ROUTES
from healthchecks.config import HttpConfig
from healthchecks.provider import Provider
from healthchecks.web import web

MAX_BODY = 64 * 1024


def answer(value: object, status: int = 200) -> web.Response:
    """`Content-Type: application/json` exactly: flyctl does not understand a charset behind it."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json"})


def private(address: str | None) -> bool:
    """Is this an address of a private network (Fly's 6PN, a LAN, this machine)?"""
    if not address:
        return False
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_private or (mapped or found).is_link_local


def check_allowed(config: HttpConfig, request: web.Request) -> None:
    """Raises CommandError 401 or 403. With a token set, every command needs it, wherever it comes from."""
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise CommandError(403, "commands are not taken from other web pages")  # a browser was talked into asking
    if not config.token:
        if not private(request.remote):
            raise CommandError(403, "commands are only taken from a private network, or with FLYPG_API_TOKEN set")
        return
    given = request.headers.get("Authorization", "")
    scheme, _, token = given.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), config.token.encode()):
        raise CommandError(401, "a token is needed: Authorization: Bearer …")


def _handler(
    route: Route, config: HttpConfig, provider: Provider
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            check_allowed(config, request)
            body = await request.content.read(MAX_BODY + 1) if request.can_read_body else b""
            while len(body) <= MAX_BODY and not request.content.at_eof():
                body += await request.content.read(MAX_BODY + 1 - len(body))
            if len(body) > MAX_BODY:
                raise CommandError(400, f"the body is longer than {MAX_BODY} bytes")
            call = Call(provider, f"http {request.remote or 'unknown'}", dict(request.match_info), body)
            result = await route.handler(call)
        except CommandError as error:
            response = answer({"error": str(error)}, error.status)
            if error.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if isinstance(result, Bare):
            return web.Response() if result.value is None else answer(result.value)
        return answer(result if route.bare else {"result": result})

    return handle


def add_commands(app: web.Application, config: HttpConfig, provider: Provider, version: str) -> None:
    """Every command of the table, and their description at /openapi.json."""
    by_path: dict[str, list[Route]] = {}
    for route in ROUTES:
        by_path.setdefault(route.path, []).append(route)
    for path in sorted(by_path, key=lambda p: "{" in p):  # /users/list before /users/{name}
        resource = app.router.add_resource(path)
        for route in by_path[path]:
            resource.add_route(route.method, _handler(route, config, provider))
    described = description(ROUTES, version)

    async def openapi(request: web.Request) -> web.Response:
        return answer(described)

    app.router.add_get("/openapi.json", openapi)
