"""Finds the tablespaces that WAL creates: replayed, they lie where the first ones were made.

PostgreSQL replays CREATE TABLESPACE at the same location, and all that follows into the same files. Where the cluster
that the WAL came from still lives on the machine, that is its data: such WAL is not given to PostgreSQL here.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from backups.errors import RestorePrevented
from backups.layout import SEGMENT

PAGE = struct.Struct("<HHIQ")  # how a page begins: magic, info, timeline, address
PAGE_BYTES = 8192
PIECE_BYTES = 32 * PAGE_BYTES
LONG, LONG_BYTES, SHORT_BYTES = 0x0002, 40, 24  # the bit in a page's info, and how long its header is then; else
RECORD = struct.Struct("<IIQBBHI")  # length, transaction, place of the one before, info, resource manager, -, CRC
CREATES = re.compile(rb"\x00\x05\x00\x00(?=[\x00-\xff]{4}[\xfc-\xff])")  # info, resource manager, CRC, what follows
UNIT = b"\x00\x05\x00\x00"  # how it begins
CREATES_AT = 16  # where that is in a record, which begins at a multiple of 8
ORIGIN, TOP, SHORT, WIDE = 0xFD, 0xFC, 0xFF, 0xFE  # what may come before a record's data
LONGEST = RECORD.size + 3 + 5 + 5 + 4 + 1024  # of such a record
TAIL = LONGEST // 8 * 8


def payload(pages: bytes, begin: int) -> bytes:
    """The records without the headers of their pages, of which the first has the address `begin`. Pure.

    It ends where pages are empty, or old ones of a file that was used again.
    """
    found, view = [], memoryview(pages)
    for at in range(0, len(pages) - LONG_BYTES, PAGE_BYTES):
        magic, info, _, address = PAGE.unpack_from(pages, at)
        if not magic or address != begin + at:
            break
        found.append(view[at + (LONG_BYTES if info & LONG else SHORT_BYTES) : at + PAGE_BYTES])
    return b"".join(found)


def suspect(pages: bytes) -> bool:
    """May a record that creates a tablespace begin in these pages, or go on in them? Pure, and a tenth of the work of
    knowing: WAL without any is let through by this alone."""
    fives = pages[1::8]  # of info, resource manager, padding, CRC: records are aligned, and a page's header is a unit
    unit = fives.find(5)
    while unit >= 0:
        at = unit * 8
        if not pages[at] and not pages[at + 2] and not pages[at + 3]:
            in_page, ends = at % PAGE_BYTES, (at + 8) % PAGE_BYTES == 0
            if (
                (ends or pages[at + 8] >= TOP)
                and (
                    in_page < LONG_BYTES + CREATES_AT  # its beginning is elsewhere
                    or RECORD.size < int.from_bytes(pages[at - CREATES_AT : at - CREATES_AT + 4], "little") <= LONGEST
                )
            ):
                return True
        unit = fives.find(5, unit + 1)
    return False


def suspect_file(file: Path) -> bool:
    with file.open("rb") as segment:
        return any(suspect(pages) for pages in iter(lambda: segment.read(PIECE_BYTES), b""))


def created(records: bytes) -> Iterator[str]:
    """The locations of the tablespaces that `records` create; in-place ones have none. Pure."""
    for found in CREATES.finditer(records):
        at = found.start() - CREATES_AT
        if at % 8 == 0 and at >= 0 and (location := _location(records, at)):
            yield location


def _location(records: bytes, at: int) -> str:
    """Where the record at `at` makes its tablespace; "" when it is no such record, or not all there."""
    length = int.from_bytes(records[at : at + 4], "little")
    record = records[at + RECORD.size : at + length]
    if not RECORD.size < length <= LONGEST or len(record) != length - RECORD.size:
        return ""
    while record and record[0] in (ORIGIN, TOP):
        record = record[3 if record[0] == ORIGIN else 5 :]
    if len(record) < 2 or record[0] not in (SHORT, WIDE):
        return ""
    width = 1 if record[0] == SHORT else 4
    size, data = int.from_bytes(record[1 : 1 + width], "little"), record[1 + width :]
    if size != len(data) or data[4:5] != b"/" or not data.endswith(b"\0"):
        return ""
    return os.fsdecode(data[4:-1])


class Guard:
    """Looks at segments in the order in which they are replayed."""

    def __init__(self) -> None:
        self._tail = b""  # a record may end in what comes next
        self._free: set[str] = set()  # what is there later has been made by the replay

    def look(self, file: Path, name: str, *, suspected: bool) -> None:
        """Raises RestorePrevented when replaying it would change data that is there already. Not all of it is held.

        `suspected`: what `suspect_file` says of it; may be asked in another thread, and out of order.
        """
        begin: int | None = None
        with file.open("rb") as segment:
            if not suspected and UNIT not in self._tail:
                segment.seek(-PAGE_BYTES, os.SEEK_END)
                page = segment.read()
                self._tail = payload(page, int.from_bytes(page[8:16], "little"))[-TAIL:]
                return
            while pages := segment.read(PIECE_BYTES):
                begin = int.from_bytes(pages[8:16], "little") if begin is None else begin
                self._judge(payload(pages, begin), name)
                begin += len(pages)

    def _judge(self, more: bytes, name: str) -> None:
        records = self._tail + more
        self._tail = records[-TAIL:]
        for location in created(records):
            if location in self._free:
                continue
            if _used(location):
                raise RestorePrevented(
                    f"{name} creates a tablespace in {location}, where data is on this machine: replaying it would"
                    " write into that; restore on another machine, or from a snapshot that has the tablespace, or up to"
                    " before it was created; or move that directory away if nobody needs it"
                )
            self._free.add(location)


def _used(location: str) -> bool:
    """Is there data of a tablespace?"""
    try:
        return any(any(place.iterdir()) for place in Path(location).glob("PG_*") if place.is_dir())
    except OSError:
        return True  # not to be seen is not empty


def look_through(pg_wal: Path) -> None:
    """The same for all that lies in a data directory. Raises RestorePrevented."""
    guard = Guard()
    for file in sorted(f for f in pg_wal.iterdir() if SEGMENT.match(f.name)):
        guard.look(file, file.name, suspected=suspect_file(file))
