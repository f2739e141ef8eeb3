"""The last words of a PostgreSQL that did not start or died: its own log says why, better than any guess."""

from __future__ import annotations

import os
import re
from pathlib import Path

TAIL_BYTES = 16384
GRAVE = re.compile(r"^.*\b(FATAL|PANIC):\s+(.*)$", re.MULTILINE)
WARNED = re.compile(r"^.*\b(ERROR|WARNING|LOG):\s+((?:could not|terminating|startup process|invalid).*)$", re.MULTILINE)
NO_SPACE = "No space left on device"
REMOVED = re.compile(r"requested WAL segment \w+ has already been removed")  # PostgreSQL's walsender.c, xlogutils.c


def newest(log: Path) -> Path | None:
    """The log file that is being written; None when there is none."""
    return max(log.glob("postgresql-*.log"), key=lambda p: p.stat().st_mtime, default=None)


def mark(log: Path) -> tuple[Path | None, int]:
    """Where the log ends now."""
    path = newest(log)
    return path, path.stat().st_size if path else 0


def since(log: Path, marked: tuple[Path | None, int]) -> str:
    """What was logged after `mark`, the end of it when that is long."""
    path = newest(log)
    if path is None:
        return ""
    start = marked[1] if path == marked[0] else 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - TAIL_BYTES))
        return file.read().decode(errors="replace")


def reason(text: str) -> str:
    """The gravest of what was logged, without its prefix; "" when nothing was grave."""
    found = GRAVE.findall(text) or WARNED.findall(text)
    said = [words for _level, words in found if not words.startswith("the database system is")]
    return "; ".join(dict.fromkeys(said[-3:]))
