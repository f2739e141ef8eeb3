"""How far the archive is behind what was written: what would be lost with every node. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from backups.walqueue import Queue

IDLE_S = 30.0  # PostgreSQL looks at archive_timeout only now and then


@dataclass(frozen=True, slots=True)
class ArchiveLag:
    """None: unknown, or nothing is archived here."""

    bytes: int | None = None
    s: float | None = None


def archive_lag(queue: Queue | None, written: int | None, *, now: float, timeout_s: float) -> ArchiveLag:
    """`written`: where this primary's WAL ends. `timeout_s`: after so long PostgreSQL ends a segment that has changes
    in it; 0 means never. A segment that stays open longer has none: an idle cluster is not behind.
    """
    if queue is None or written is None or queue.until is None:
        return ArchiveLag()
    behind = max(0, written - queue.until)
    if behind == 0:
        return ArchiveLag(0, 0.0)
    if queue.until_at is None:
        return ArchiveLag(behind, None)
    age_s = max(0.0, now - queue.until_at)
    idle = not queue.ready and not queue.streamed and timeout_s > 0 and age_s > timeout_s + IDLE_S
    return ArchiveLag(behind, 0.0 if idle else age_s)
