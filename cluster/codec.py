"""Values of cluster/model.py as JSON bytes and back. Pure.

Every value carries its `format_version`. Fields at their default are left out: that keeps values short, and it lets a
field be added without breaking an older reader until it is used. So a default is part of the format: to change one is a
new version. What a reader does not know (a version, a field, a word of an enumeration) is refused by name, not ignored.
Equal values have equal bytes: fields and sets are sorted.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, NewType, TypeVar

from cluster.errors import StoredFormatError
from cluster.model import Disk, Event, NodeReport, Promise, Request, Spec, View

FORMAT_VERSION = 1
VERSION_KEY = "format_version"

Stored = (
    View | Spec | NodeReport | Promise | Request | Event | Disk
)  # what is written under a key or in a file of its own
T = TypeVar("T", bound=Stored)


class _Unreadable(Exception):
    """A part of a value does not fit its type; the message starts with the place."""


@dataclass(frozen=True, slots=True)
class _Codec:
    """How values of one type are turned into plain JSON values and back."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]  # raises _Unreadable


def encode(value: Stored) -> bytes:
    """The bytes of `value`, the same for equal values."""
    kind: Any = type(value)
    plain = _codec_of(kind).encode(value)
    return json.dumps(
        {VERSION_KEY: FORMAT_VERSION, **plain}, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def decode(kind: type[T], data: bytes, key: str) -> T:
    """The value behind `data`, which was read from `key`. Raises StoredFormatError, naming the key."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoredFormatError(f"{key}: not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise StoredFormatError(f"{key}: not an object")
    version = plain.pop(VERSION_KEY, None)
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise StoredFormatError(
            f"{key}: format_version {version!r} is not known to this flypg, which reads {FORMAT_VERSION}; upgrade it"
        )
    try:
        wanted: Any = kind
        value: T = _codec_of(wanted).decode(plain)
    except _Unreadable as error:
        raise StoredFormatError(f"{key}: {kind.__name__}{error}") from error
    return value


@cache
def _codec_of(kind: Any) -> _Codec:
    """The codec of a type as it stands in an annotation."""
    if isinstance(kind, NewType):
        return _codec_of(kind.__supertype__)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _optional(kind, args)
    if origin is tuple:
        return _sequence(_codec_of(args[0])) if args[1:] == (Ellipsis,) else _record(tuple(map(_codec_of, args)))
    if origin is frozenset:
        return _set(_codec_of(args[0]))
    if kind in (str, int, float, bool):
        return _scalar(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _enumeration(kind)
    assert isinstance(kind, type) and is_dataclass(kind), f"no codec for {kind}"
    return _dataclass(kind)


def _same(value: Any) -> Any:
    return value


def _scalar(kind: Any) -> _Codec:
    def read(plain: Any) -> Any:
        if kind is float and type(plain) is int:
            return float(plain)
        if type(plain) is not kind or (kind is float and not math.isfinite(plain)):
            raise _Unreadable(f": {plain!r} is not of type {kind.__name__}")
        return plain

    return _Codec(_same, read)


def _enumeration(kind: type[StrEnum]) -> _Codec:
    words = {member.value: member for member in kind}

    def read(plain: Any) -> StrEnum:
        if not isinstance(plain, str) or plain not in words:
            raise _Unreadable(f": {plain!r} is not one of {', '.join(words)}")
        return words[plain]

    return _Codec(lambda member: member.value, read)


def _optional(kind: Any, args: tuple[Any, ...]) -> _Codec:
    inner = [arg for arg in args if arg is not types.NoneType]
    assert len(inner) == 1 and len(args) == 2, f"no codec for {kind}"
    item = _codec_of(inner[0])
    return _Codec(
        lambda value: None if value is None else item.encode(value),
        lambda plain: None if plain is None else item.decode(plain),
    )


def _items(plain: Any) -> list[Any]:
    if not isinstance(plain, list):
        raise _Unreadable(f": {plain!r} is not a list")
    return plain


def _within(item: _Codec, plain: list[Any]) -> list[Any]:
    found = []
    for place, entry in enumerate(plain):
        try:
            found.append(item.decode(entry))
        except _Unreadable as error:
            raise _Unreadable(f"[{place}]{error}") from None
    return found


def _sequence(item: _Codec) -> _Codec:
    return _Codec(
        lambda values: [item.encode(value) for value in values],
        lambda plain: tuple(_within(item, _items(plain))),
    )


def _set(item: _Codec) -> _Codec:
    return _Codec(
        lambda values: sorted(item.encode(value) for value in values),
        lambda plain: frozenset(_within(item, _items(plain))),
    )


def _record(parts: tuple[_Codec, ...]) -> _Codec:
    def read(plain: Any) -> tuple[Any, ...]:
        if len(_items(plain)) != len(parts):
            raise _Unreadable(f": {plain!r} does not have {len(parts)} parts")
        return tuple(part.decode(entry) for part, entry in zip(parts, plain, strict=True))

    return _Codec(lambda values: [p.encode(v) for p, v in zip(parts, values, strict=True)], read)


def _default(field: Field[Any]) -> Any:
    """The default of a field; MISSING when it has none."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _dataclass(kind: type) -> _Codec:
    hints = typing.get_type_hints(kind)
    parts = [(field.name, _codec_of(hints[field.name]), _default(field)) for field in fields(kind)]
    known = {name: codec for name, codec, _ in parts}
    required = [name for name, _, default in parts if default is MISSING]

    def write(value: Any) -> dict[str, Any]:
        plain = {}
        for name, codec, default in parts:
            item = getattr(value, name)
            if default is MISSING or item != default:
                plain[name] = codec.encode(item)
        return plain

    def read(plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise _Unreadable(f": {plain!r} is not an object")
        arguments = {}
        for name, item in plain.items():
            codec = known.get(name)
            if codec is None:
                raise _Unreadable(f".{name}: not known to this flypg")
            try:
                arguments[name] = codec.decode(item)
            except _Unreadable as error:
                raise _Unreadable(f".{name}{error}") from None
        for name in required:
            if name not in arguments:
                raise _Unreadable(f".{name}: missing")
        return kind(**arguments)

    return _Codec(write, read)
