"""The logs of a local cluster's processes, made readable: an agent writes JSON, so that every line has its time."""

from __future__ import annotations

import json
import os
from pathlib import Path

LONGEST_LINE = 600  # bytes, about; where reading for the last lines begins


def tail(file: Path, lines: int) -> str:
    """The last lines of a log; a sentence when there is none."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LONGEST_LINE * lines))
            found = log.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return f"(nothing logged yet in {file})"
    return "\n".join(readable(line) for line in found)


def readable(line: str) -> str:
    """A line of an agent's log for people: time, level if it matters, name, event, fields. Any other line as it is."""
    line = line.rstrip("\n")
    try:
        data = json.loads(line)
        at, level, name, event = (str(data.pop(key)) for key in ("at", "level", "name", "event"))
    except (ValueError, KeyError, AttributeError, TypeError):
        return line
    mark = f"{level.upper()} " if level in ("warning", "error", "critical") else ""
    fields = "".join(f" {key}={_shown(value)}" for key, value in data.items())
    return f"{at[11:23]} {mark}{name.removeprefix('flypg.')} | {event}{fields}"


def _shown(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text else text
