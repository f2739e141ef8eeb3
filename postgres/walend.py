"""Where the last record of a server that was shut down in order ends.

The control file says where the shutdown checkpoint's record begins. Its length is the first thing in the record; each
page that it crosses adds a page header (access/xlogrecord.h and access/xlog_internal.h in PostgreSQL's source; the same
from 13 to 18).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

PAGE = 8192
SHORT_HEADER, LONG_HEADER = 24, 40  # bytes; the long one begins each segment
ALIGNMENT = 8
LONGEST = 1 << 16  # a checkpoint record is about a hundred bytes


def record_end(start: int, length: int, segment: int) -> int:
    """The LSN after a record of `length` bytes that begins at `start`, where the next one could begin."""
    at, left = start, length
    while left > 0:
        if at % PAGE == 0:
            at += LONG_HEADER if at % segment == 0 else SHORT_HEADER
        room = PAGE - at % PAGE
        step = min(room, left)
        at += step
        left -= step
    return (at + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def segment_name(timeline: int, lsn: int, segment: int) -> str:
    """The file in pg_wal that holds the byte at `lsn`."""
    number = lsn // segment
    per_id = (1 << 32) // segment
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def end_of_checkpoint(pgdata: Path, timeline: int, checkpoint: int, segment: int) -> int | None:
    """The end of the checkpoint record at `checkpoint`, read from pg_wal; None when it cannot be read there."""
    path = pgdata / "pg_wal" / segment_name(timeline, checkpoint, segment)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        head = os.pread(descriptor, 4, checkpoint % segment)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if len(head) < 4:
        return None
    (length,) = struct.unpack("<I", head)
    return record_end(checkpoint, length, segment) if 24 <= length <= LONGEST else None
