"""What may be deleted: never a snapshot that is still wanted, never WAL that a kept one needs. Pure.

Replay from a snapshot reads WAL from its start on, upwards, on whatever timeline. So a segment is needless exactly when
its number is below the start of every kept snapshot: an argument that needs no knowledge of timelines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backups.catalog import SnapshotRecord
from backups.layout import segment_of

GRACE_S = 24 * 3600.0  # garbage younger than this may belong to a snapshot that is being taken


@dataclass(frozen=True, slots=True)
class Keep:
    """How long snapshots are kept."""

    days: float = 5.0
    at_least: int = 2  # never fewer than so many good ones, however old
    window: bool = True  # keep one snapshot more, so that every moment of the last `days` can be restored


@dataclass(frozen=True, slots=True)
class Retention:
    """Which snapshots stay, which go, and why."""

    keep: tuple[SnapshotRecord, ...]
    delete: tuple[SnapshotRecord, ...]
    reasons: tuple[tuple[str, str], ...]  # (id, why it is kept although it is old)


def good(record: SnapshotRecord) -> bool:
    """Is there no reason to doubt that it restores?"""
    return not record.damaged_pages and (record.verification is None or record.verification.ok)


def retain(snapshots: Sequence[SnapshotRecord], keep: Keep, now: float) -> Retention:
    """Choose what stays. `now`: seconds since 1970; a snapshot from the future (a clock was wrong) stays."""
    by_age = sorted(snapshots, key=lambda s: (s.finished_at, s.id))
    oldest_wanted = now - keep.days * 86400
    reasons: dict[str, str] = {}
    for record in by_age:
        if record.finished_at >= oldest_wanted:
            reasons[record.id] = ""
        elif record.pinned:
            reasons[record.id] = "pinned"
    trusted = [s for s in by_age if good(s)]
    for record in trusted[-keep.at_least :] if keep.at_least else []:
        reasons.setdefault(record.id, f"one of the newest {keep.at_least} good ones")
    proven = [s for s in trusted if s.verification is not None]
    if proven:
        reasons.setdefault(proven[-1].id, "the newest that was restored in a test")
    before = [s for s in trusted if s.finished_at < oldest_wanted]
    if keep.window and before:
        reasons.setdefault(before[-1].id, f"every moment of the last {keep.days:g} days needs a snapshot before it")
    return Retention(
        tuple(s for s in by_age if s.id in reasons),
        tuple(s for s in by_age if s.id not in reasons),
        tuple((i, why) for i, why in reasons.items() if why),
    )


def needless_wal(names: Iterable[str], kept: Sequence[SnapshotRecord]) -> list[str]:
    """The archived segments that no kept snapshot needs. History files stay for ever; without snapshots, all stays."""
    if not kept:
        return []
    size = kept[0].segment_bytes
    assert all(s.segment_bytes == size for s in kept), "a path is one system, and its segment size never changes"
    moving = [s for s in kept if not s.pinned] or list(kept)
    floor = min(s.start_lsn // size for s in moving)
    own = {n for s in kept if s.pinned for n in range(s.start_lsn // size, s.stop_lsn // size + 1)}
    found = []
    for name in names:
        base = name.partition(".")[0]  # .partial and .backup go with their segment
        segment = segment_of(base, size)
        if segment is not None and segment.number < floor and segment.number not in own:
            found.append(name)
    return found


def abandoned(parts: Iterable[tuple[str, float]], listed: Iterable[str], now: float) -> list[str]:
    """Ids with parts but no record, nothing newer than a day among them. `parts`: (id, time of an object)."""
    newest: dict[str, float] = {}
    for snapshot, modified in parts:
        newest[snapshot] = max(modified, newest.get(snapshot, 0.0))
    known = set(listed)
    return sorted(i for i, at in newest.items() if i not in known and at < now - GRACE_S)
