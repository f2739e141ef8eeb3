"""What a command is: one row of a table from which requests are served and the API is described."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from healthchecks.provider import Provider

Json = dict[str, Any]
NAME = {"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[^\\x00\\ud800-\\udfff]+$"}
MAX_NAME_BYTES = 63  # PostgreSQL would cut a longer name off, silently


class CommandError(Exception):
    """An answer other than success: the status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Bare:
    """An answer without the envelope `{"result": …}`; None is an empty body."""

    value: object


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a command."""

    provider: Provider
    who: str  # for the cluster's history
    names: Mapping[str, str] = field(default_factory=dict)  # from the path
    body: bytes = b""

    def name(self) -> str:
        return checked_name(self.names["name"])

    def json(self) -> Any:
        """The body. Raises CommandError 400 when it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise CommandError(400, f"the body is not JSON: {error}") from None

    def fields(self, **types: type) -> Json:
        """The body as an object with values of these types; what is missing is the type's empty value.

        Raises CommandError 400."""
        value = self.json()
        if not isinstance(value, dict):
            raise CommandError(400, "the body must be a JSON object")
        found: Json = {}
        for name, kind in types.items():
            given = value.get(name, kind())
            if not isinstance(given, kind):
                raise CommandError(400, f"{name} must be a {'string' if kind is str else kind.__name__}")
            found[name] = given
        return found


def checked_name(name: object) -> str:
    """A name that PostgreSQL takes as it is. Raises CommandError 400."""
    if not isinstance(name, str) or not name:
        raise CommandError(400, "a name is needed")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise CommandError(400, "the name is not valid Unicode") from None
    if length > MAX_NAME_BYTES:
        raise CommandError(400, f"the name is longer than {MAX_NAME_BYTES} bytes")
    if "\0" in name:
        raise CommandError(400, "the name contains a NUL")
    return name


Handler = Callable[[Call], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Route:
    """A command. `body` and `result` are JSON schemas; a result of None means an empty body."""

    method: str
    path: str
    handler: Handler
    summary: str
    result: Json | None
    body: Json | None = None
    bare: bool = False  # the result comes without an envelope
    may_fail: tuple[int, ...] = ()  # statuses beyond 400, 401, 403, 500, 503
