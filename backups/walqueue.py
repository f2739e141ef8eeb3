"""What waits to be archived, as PostgreSQL's archive_status directory has it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from backups import layout
from backups.layout import segment_of

FIRST = 16  # of those that wait, the oldest is among these: thousands may


@dataclass(frozen=True, slots=True)
class Queue:
    """Times are seconds since 1970; None means unknown."""

    ready: int = 0  # files that PostgreSQL wants archived, and that are not stored
    oldest_ready_at: float | None = None
    until: int | None = None  # LSN: everything before it, on this timeline, is in the repository
    until_at: float | None = None  # when the WAL got there
    streamed: bool = False  # `until` lies within a segment


def ready_names(pg_wal: Path) -> list[str]:
    """The files that PostgreSQL wants archived, in its order: history files first, then by name."""
    found = _names(pg_wal, ".ready")
    return sorted((n for n in found if layout.archivable(n)), key=lambda n: (not layout.HISTORY.match(n), n))


def look(pg_wal: Path, timeline: int | None, segment_bytes: int, stored: Set[str]) -> Queue:
    """`stored`: what is in the repository although PostgreSQL has not heard of it yet."""
    ready = [n for n in ready_names(pg_wal) if n not in stored]
    oldest = [at for n in ready[:FIRST] if (at := _at(pg_wal, n, ".ready")) is not None]
    whole = [n for n in ready if (s := segment_of(n, segment_bytes)) and s.timeline == timeline]
    done = [n for n in _names(pg_wal, ".done") if (s := segment_of(n, segment_bytes)) and s.timeline == timeline]
    before = max((n for n in done if not whole or n < whole[0]), default="")
    until = until_at = None
    if before:
        until, until_at = _number(before, segment_bytes) + 1, _at(pg_wal, before, ".done")
    if whole:  # a gap among the ones that are done makes no difference: what waits first is what is missing
        until = _number(whole[0], segment_bytes)
        until_at = until_at if until_at is not None else _at(pg_wal, whole[0], ".ready")
    end = until * segment_bytes if until is not None else None
    return Queue(len(ready), min(oldest, default=None), end, until_at)


def _names(pg_wal: Path, suffix: str) -> list[str]:
    try:
        return [n.removesuffix(suffix) for n in os.listdir(pg_wal / "archive_status") if n.endswith(suffix)]
    except FileNotFoundError:
        return []


def _number(name: str, segment_bytes: int) -> int:
    segment = segment_of(name, segment_bytes)
    assert segment is not None, "only names of segments come here"
    return segment.number


def _at(pg_wal: Path, name: str, suffix: str) -> float | None:
    """When PostgreSQL had finished the file: it renames its note when the file was archived, and touches it no more."""
    with contextlib.suppress(OSError):
        return (pg_wal / "archive_status" / f"{name}{suffix}").stat().st_mtime
    return None
