"""The description of the commands as OpenAPI 3.1, made from the table that serves them. Pure."""

from __future__ import annotations

import re

from healthchecks.commands.route import NAME, Json, Route

ALWAYS = {400: "The request is not understood", 401: "A token is needed", 403: "Not from a private network"}
MORE = {
    404: "There is no such thing",
    409: "It exists already, or is still needed",
    500: "It was refused or failed",
    503: "The primary or etcd cannot be reached",
}
ERROR: Json = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _envelope(schema: Json) -> Json:
    return {"type": "object", "required": ["result"], "properties": {"result": schema}}


def _success(route: Route) -> Json:
    if route.result is None:
        return {"description": "Done"}
    return {"description": "Done", "content": _content(route.result if route.bare else _envelope(route.result))}


def operation(route: Route) -> Json:
    """What one command takes and answers."""
    codes = {**ALWAYS, **{code: MORE[code] for code in (*route.may_fail, 500, 503)}}
    found: Json = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path.removeprefix('/commands')}").strip("_"),
        "security": [{"token": []}, {}],
        "responses": {
            "200": _success(route),
            **{str(code): {"description": text, "content": _content(ERROR)} for code, text in sorted(codes.items())},
        },
    }
    if "{name}" in route.path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": NAME}]
    if route.body is not None:
        found["requestBody"] = {"required": route.method != "GET", "content": _content(route.body)}
    return found


def description(routes: tuple[Route, ...], version: str) -> Json:
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flypg commands",
            "version": version or "0",
            "description": "What flyctl and operators ask a node of the cluster. Any node answers for all.",
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": paths,
    }
