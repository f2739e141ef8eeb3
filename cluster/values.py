"""Settings as they are written, and how to read one: every error names the key and what it may be.

Values come from the environment over a TOML file. In the file, tables and names are joined with `_`:
`[lease]` `ttl_s = 10` is FLYPG_LEASE_TTL_S. An empty value counts as not set.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from cluster.amounts import parse_bytes, parse_seconds
from cluster.errors import SettingsError

PREFIX = "FLYPG_"
FILE_SUFFIX = "_FILE"  # KEY_FILE: a file that holds the value of a secret

YES, NO = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
Values = Mapping[str, str]


def merge(environment: Values, file: Values, known: Collection[str], foreign: tuple[str, ...]) -> Values:
    """The values in force: environment over file, unknown keys refused.

    `known`: every key of ours, also those without our prefix. `foreign`: beginnings of keys that others read.
    """
    found = {key: value for key, value in file.items() if value}
    for key, value in environment.items():
        if key.startswith(PREFIX) and key not in known and not key.startswith(foreign):
            # Its value is not shown: it may be a password under a misspelled name.
            raise SettingsError(key, "…", f"is not a setting{nearest(key, known)}")
        if value and (key in known or key.startswith(foreign)):
            found[key] = value
            other = key.removesuffix(FILE_SUFFIX) if key.endswith(FILE_SUFFIX) else key + FILE_SUFFIX
            if not environment.get(other):
                found.pop(other, None)  # a secret in the environment replaces the file's, however each is given
    return MappingProxyType(found)


def from_toml(path: Path, known: Collection[str], foreign: tuple[str, ...], secret: Collection[str]) -> Values:
    """What a settings file says, under the names of the environment. Raises SettingsError."""
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
            mode = path.stat().st_mode
    except OSError as error:
        raise SettingsError("FLYPG_CONFIG", str(path), f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError("FLYPG_CONFIG", str(path), f"is not TOML: {error}") from error
    found: dict[str, str] = {}
    for place, value in _flat(tables, path.name):
        name = re.sub(r"[^A-Z0-9]", "_", place.upper())
        key = name if name in known else PREFIX + name
        if key not in known and not key.startswith(foreign):
            raise SettingsError(place, "…", f"is not a setting (in {path}){nearest(key, known)}")
        if key in secret and mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise SettingsError(place, "…", f"is a secret, and others may read {path}: chmod 0600 it")
        found[key] = value
    return found


def _flat(table: Mapping[str, object], file: str, place: str = "") -> Iterable[tuple[str, str]]:
    for name, value in table.items():
        path = f"{place}.{name}" if place else name
        if isinstance(value, dict):
            yield from _flat(value, file, path)
        elif isinstance(value, bool):
            yield path, "true" if value else "false"
        elif isinstance(value, str | int | float):
            yield path, str(value)
        elif isinstance(value, list) and all(isinstance(item, str | int) for item in value):
            yield path, ",".join(str(item) for item in value)
        else:
            raise SettingsError(path, value, f"must be a text, a number, true, false or a list of texts (in {file})")


def nearest(key: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing when no known key is similar."""
    close = get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def text(values: Values, key: str, default: str = "") -> str:
    return values.get(key) or default


def choice(values: Values, key: str, allowed: Collection[str], default: str) -> str:
    found = values.get(key) or default
    if found not in allowed:
        raise SettingsError(key, found, f"must be one of {', '.join(allowed)}")
    return found


def flag(values: Values, key: str, default: bool = False) -> bool:
    found = values.get(key)
    if not found:
        return default
    if found.lower() in YES:
        return True
    if found.lower() in NO:
        return False
    raise SettingsError(key, found, "must be true or false")


def integer(values: Values, key: str, default: int, *, at_least: int | None = None, at_most: int | None = None) -> int:
    found = values.get(key)
    if not found:
        return default
    try:
        number = int(found)
    except ValueError:
        raise SettingsError(key, found, "must be a whole number") from None
    _bounded(key, found, number, at_least, at_most)
    return number


def port(values: Values, key: str, default: int) -> int:
    return integer(values, key, default, at_least=1, at_most=65535)


def number(
    values: Values, key: str, default: float, *, at_least: float | None = None, at_most: float | None = None
) -> float:
    found = values.get(key)
    if not found:
        return default
    try:
        value = float(found)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise SettingsError(key, found, "must be a number")
    _bounded(key, found, value, at_least, at_most)
    return value


def seconds(
    values: Values, key: str, default: float, *, at_least: float | None = None, at_most: float | None = None
) -> float:
    """A duration in seconds; written as `10`, `0.5`, `500ms`, `10s`, `5m`, `1h` or `2d`."""
    found = values.get(key)
    if not found:
        return default
    value = parse_seconds(found)
    if value is None:
        raise SettingsError(key, found, "must be a duration in seconds, like 10, 0.5, 500ms, 5m, 1h or 2d")
    _bounded(key, found, value, at_least, at_most)
    return value


def size(values: Values, key: str, default: int, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """A number of bytes; written as `1048576`, `16MB` or `1.5GB` (powers of 1024)."""
    found = values.get(key)
    if not found:
        return default
    value = parse_bytes(found)
    if value is None:
        raise SettingsError(key, found, "must be a size in bytes, like 1048576, 64KB, 16MB or 1.5GB")
    _bounded(key, found, value, at_least, at_most)
    return value


def secret(values: Values, key: str) -> str:
    """A password or token, from KEY or from the file named by KEY_FILE (without its last newline); "" when not set."""
    file = values.get(key + FILE_SUFFIX)
    if not file:
        return values.get(key, "")
    if values.get(key):
        raise SettingsError(key + FILE_SUFFIX, file, f"{key} is set too: keep one of them")
    try:
        found = Path(file).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(key + FILE_SUFFIX, file, f"cannot be read: {error}") from error
    if not found:
        raise SettingsError(key + FILE_SUFFIX, file, "is empty")
    return found


def _bounded(key: str, found: str, value: float, at_least: float | None, at_most: float | None) -> None:
    if at_least is not None and value < at_least:
        raise SettingsError(key, found, f"must be at least {at_least:g}")
    if at_most is not None and value > at_most:
        raise SettingsError(key, found, f"must be at most {at_most:g}")
