"""The operator's wishes: how they are written, checked and shown. Pure.

Every refusal is a SettingsError that names the key and says what is allowed. Nothing here looks at the cluster: whether
there are enough standbys for a wish is told by `flypg status`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from cluster.amounts import parse_bytes, parse_seconds
from cluster.errors import SettingsError
from cluster.model import Durability, Spec
from cluster.pool import PLANS, PoolMode, parse_modes, render_modes

PARAMETERS = "parameters"
PARAMETER = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?\Z")
REGION = re.compile(r"[a-z0-9_-]{0,32}\Z")
HBA_TYPES = ("local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")


@dataclass(frozen=True, slots=True)
class Wish:
    """One key of the spec: how its text is read, and what it means, for people."""

    read: Callable[[str], Any]  # raises ValueError, saying what is allowed
    about: str


def _word(text: str) -> Durability:
    try:
        return Durability(text)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(Durability)}") from None


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def _region(text: str) -> str:
    if not REGION.match(text):
        raise ValueError("must be the name of a region, like ams, or empty for every region")
    return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return read


def _duration(least: float, most: float, *, or_zero: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = parse_seconds(text)
        if value is not None and (least <= value <= most or (or_zero and value == 0)):
            return value
        zero = "0, or " if or_zero else ""
        raise ValueError(
            f"must be {zero}from {least:g} to {most:g} seconds, like {max(least, 1):g} or {max(least, 1):g}s"
        )

    return read


def _bytes(text: str) -> int:
    value = parse_bytes(text)
    if value is None or value >= 1 << 62:
        raise ValueError("must be a size in bytes, like 1048576, 64KB or 16MB")
    return value


def _choice(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(text)

    return read


def _modes(text: str) -> str:
    return render_modes(parse_modes(text))


def _reserve(text: str) -> int:
    return -1 if text == "-1" else _whole(0, 10_000)(text)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


WISHES: Mapping[str, Wish] = {
    "durability": Wish(
        _word,
        "when a commit is acknowledged: quorum (k standbys have it; fewer when they are gone), strict (never fewer),"
        " async (at once: a failover may lose up to max_lag_bytes)",
    ),
    "k": Wish(_whole(1, 10), "how many standbys must have a commit"),
    "paused": Wish(_flag, "true: flypg changes nothing, not even when the primary fails"),
    "primary_region": Wish(_region, "only nodes of this region become primary; empty: all do"),
    "max_lag_bytes": Wish(_bytes, "async only: what a failover may lose"),
    "suspect_after_s": Wish(_duration(0.2, 60), "a primary that answers nobody for so long is replaced"),
    "shrink_after_s": Wish(_duration(0.2, 3600), "a standby that has not streamed for so long is not waited for"),
    "cooldown_s": Wish(_duration(0, 3600), "pause after a failover for which nobody had first-hand evidence"),
    "hold_max_s": Wish(_duration(0.5, 60), "a switchover that is not done by then is called off"),
    "restart_within_s": Wish(_duration(1, 3600), "an announced restart that takes longer is a failure"),
    "remove_dead_after_s": Wish(
        _duration(60, 366 * 86400, or_zero=True), "a node that is gone for so long is removed; 0: never"
    ),
    "read_max_lag_bytes": Wish(_bytes, "standbys further behind get no connections from the read port"),
    "pool_mode": Wish(
        _choice(*PoolMode), "pooled clients keep a connection for a session (everything works) or a transaction"
    ),
    "pool_modes": Wish(_modes, "databases with another mode, like shop=transaction,etl=session"),
    "pool_plan": Wish(_choice(*PLANS), "sizes of the pools by plan: " + ", ".join(PLANS)),
    "pool_clients": Wish(_whole(0, 100_000), "client connections to each node's pooler; 0: as the plan says"),
    "pool_connections": Wish(
        _whole(0, 10_000), "connections of all poolers together to one database; 0: as the plan says"
    ),
    "pool_reserve": Wish(_reserve, "of these, kept for clients that have waited 3 s; -1: as the plan says"),
    "hba": Wish(_lines, "pg_hba.conf lines for clients, first match wins; none: the default"),
}
DEFAULT = Spec()


def assign(spec: Spec, assignments: Iterable[str], owned: frozenset[str]) -> Spec:
    """The spec with `key=value` texts applied, e.g. `k=2`, `parameters.work_mem=16MB`; `key=` is back to the default.

    `owned`: PostgreSQL parameters that are not the operator's.
    """
    for text in assignments:
        key, equals, value = text.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            raise SettingsError(key, "", "expected key=value")
        if key.startswith(PARAMETERS + "."):
            name = key.removeprefix(PARAMETERS + ".").lower()
            kept = {n: v for n, v in spec.parameters if n != name}
            if value:
                kept[name] = value
            elif not PARAMETER.match(name):
                raise SettingsError(key, value, "is not the name of a PostgreSQL parameter")
            spec = replace(spec, parameters=tuple(sorted(kept.items())))
        else:
            spec = replace(spec, **{_known(key): _read(key, value) if value else getattr(DEFAULT, key)})
    return checked(spec, owned)


def from_toml(text: str, owned: frozenset[str]) -> Spec:
    """The spec that a TOML document describes; keys it does not mention are at their default."""
    try:
        return from_document(tomllib.loads(text), owned)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError("spec", "…", f"is not TOML: {error}") from error


def from_json(text: str, owned: frozenset[str]) -> Spec:
    """The spec that a JSON document describes; keys it does not mention are at their default."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError("spec", "…", f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise SettingsError("spec", "…", "must be an object")
    return from_document(found, owned)


def from_document(document: Mapping[str, object], owned: frozenset[str]) -> Spec:
    """The spec behind a parsed document."""
    changes: dict[str, Any] = {}
    for key, value in document.items():
        if key == PARAMETERS:
            changes[key] = tuple(sorted(_parameters(value)))
        elif key == "hba" and isinstance(value, list) and all(isinstance(line, str) for line in value):
            changes[key] = _lines("\n".join(value))
        elif isinstance(value, dict | list) or value is None:
            raise SettingsError(_known(key), value, "must be a single value")
        else:
            changes[_known(key)] = _read(key, _plain(value))
    return checked(replace(DEFAULT, **changes), owned)


def checked(spec: Spec, owned: frozenset[str]) -> Spec:
    """The same spec, if it is possible; else SettingsError."""
    for name, value in spec.parameters:
        key = f"{PARAMETERS}.{name}"
        if not PARAMETER.match(name):
            raise SettingsError(key, value, "is not the name of a PostgreSQL parameter")
        if name in owned:
            raise SettingsError(key, value, "belongs to flypg and cannot be set")
        if not value.isprintable():
            raise SettingsError(key, value, "must be one line of text")
        if name == "wal_level" and value not in ("replica", "logical"):
            raise SettingsError(key, value, "must be replica or logical: standbys need it")
    for line in spec.hba:
        words = line.split()
        if not line.isprintable() or words[0] not in HBA_TYPES or len(words) < (4 if words[0] == "local" else 5):
            raise SettingsError("hba", line, "is not a pg_hba.conf line, like: hostssl all all 0.0.0.0/0 scram-sha-256")
    if spec.durability is Durability.ASYNC and spec.k != DEFAULT.k:
        raise SettingsError(
            "k", spec.k, "means nothing with durability=async, which waits for no standby: leave it at 1"
        )
    return spec


def diff(old: Spec, new: Spec) -> list[str]:
    """What changes, one line a key: `k: 1 -> 2`. Empty when nothing does."""
    lines = []
    for field in fields(Spec):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name == PARAMETERS:
            lines += _parameter_diff(dict(before), dict(after))
        elif field.name == "hba":
            lines += [f"hba: - {line}" for line in before if line not in after]
            lines += [f"hba: + {line}" for line in after if line not in before]
            if before != after and set(before) == set(after):
                lines.append("hba: the order of the lines")
        elif before != after:
            lines.append(f"{field.name}: {shown(before)} -> {shown(after)}")
    return lines


def to_toml(spec: Spec) -> str:
    """The spec as a TOML document for editing; keys at their default are comments."""
    lines = ["# What is commented out is at its default.", ""]
    for name, wish in WISHES.items():
        value = getattr(spec, name)
        lines.append(f"# {wish.about}")
        if name == "hba" and value:
            lines += ["hba = [", *(f"  {json.dumps(line, ensure_ascii=False)}," for line in value), "]", ""]
        else:
            lines += [("# " if value == getattr(DEFAULT, name) else "") + f"{name} = {_toml(value)}", ""]
    lines += ['# PostgreSQL\'s own parameters, e.g. work_mem = "16MB"', f"[{PARAMETERS}]"]
    lines += [f"{json.dumps(n) if '.' in n else n} = {json.dumps(v, ensure_ascii=False)}" for n, v in spec.parameters]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """A value of the spec for people."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) or "(none)"


def _known(key: str) -> str:
    if key in WISHES:
        return key
    close = get_close_matches(key, [*WISHES, f"{PARAMETERS}.NAME"], n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(WISHES)} and {PARAMETERS}.NAME"
    raise SettingsError(key, "…", f"is not a key of the spec; {hint}")


def _read(key: str, text: str) -> Any:
    try:
        return WISHES[_known(key)].read(text)
    except ValueError as error:
        raise SettingsError(key, text, str(error)) from None


def _plain(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _parameters(found: object, place: str = "") -> Iterable[tuple[str, str]]:
    if not isinstance(found, Mapping):
        raise SettingsError(PARAMETERS, found, "must be a table of names and values")
    for name, value in found.items():
        full = f"{place}.{name}".lower() if place else str(name).lower()
        if isinstance(value, Mapping) and not place:
            yield from _parameters(value, full)  # pg_stat_statements.max without quotes
        elif isinstance(value, bool):
            yield full, "on" if value else "off"
        elif isinstance(value, str | int | float):
            yield full, str(value)
        else:
            raise SettingsError(f"{PARAMETERS}.{full}", value, "must be a text, a number, true or false")


def _parameter_diff(before: dict[str, str], after: dict[str, str]) -> list[str]:
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [f"{PARAMETERS}.{n}: {before.get(n, '(default)')} -> {after.get(n, '(default)')}" for n in names]


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[]"
    return json.dumps(str(value), ensure_ascii=False) if isinstance(value, str) else shown(value)
