"""Records of snapshots for tables of stories."""

from __future__ import annotations

from backups.catalog import Archive, Part, SnapshotRecord, Verification
from backups.segments import LONG, LONG_HEADER

SEGMENT = 16 << 20
DAY = 86400.0


def wal_segment(number: int, *, system: int = 7301, timeline: int = 1) -> bytes:
    """A segment that says of itself what its name says; nothing is written in it."""
    head = LONG_HEADER.pack(0xD110, LONG, timeline, number * SEGMENT, 0, system, SEGMENT, 8192)
    return head.ljust(SEGMENT, b"\0")


def record(
    letter: str,
    *,
    day: float = 0.0,
    segment: int = 1,
    timeline: int = 1,
    pinned: bool = False,
    damaged: bool = False,
    verified: bool | None = None,
) -> SnapshotRecord:
    """A snapshot taken at `day` whose WAL begins in `segment` and ends in the next."""
    part = Part(f"snapshots/{letter}/base.tar.zst.000000", 10, "ab" * 32)
    result = None if verified is None else Verification(day * DAY, verified, 1.0, 2.0, "")
    return SnapshotRecord(
        id="vs_" + letter * 16,
        cluster="c",
        system_id="7301",
        server_version=150018,
        node="n1",
        role="standby",
        started_at=day * DAY - 60,
        finished_at=day * DAY,
        timeline=timeline,
        start_lsn=segment * SEGMENT + 40,
        stop_lsn=(segment + 1) * SEGMENT + 300,
        segment_bytes=SEGMENT,
        archives=(Archive("base.tar", "", 100, (part,)),),
        manifest=Part(f"snapshots/{letter}/backup_manifest.zst", 5, "cd" * 32),
        damaged_pages=damaged,
        pinned=pinned,
        verification=result,
    )
