"""Where everything lies in a repository, and the number of that format. Pure.

    <prefix>/flypg-repository.json                       format number, compression
    <prefix>/_paths/<cluster>/<system id>-<incarnation>.json   what this path is, written once
    <prefix>/<cluster>/<system id>-<incarnation>/         one *path*: one history of one cluster
        catalog/<id>.json                               COMMIT MARKER: a snapshot exists when, and only when, this does
        verified/<id>.json                               result of the last restore test
        snapshots/<id>/base.tar.zst.000000[.enc] …       PostgreSQL's tar as zstd, cut into parts
        snapshots/<id>/<oid>.tar.zst.000000[.enc] …      one tar more for each tablespace
        snapshots/<id>/backup_manifest.zst[.enc]         PostgreSQL's own manifest, unchanged
        wal/<timeline>/<file>.zst[.enc]                  segments, history files, …; timeline: 8 digits of the name
        stream/<timeline>/<segment>.<from>-<to>.zst[.enc]  bytes of a segment that is not full yet; hexadecimal
        conflict/<file>.<sha256>.zst[.enc]               WAL that was refused because other content has its name

A restored cluster archives into a new path (same system id, new incarnation): it can never damage what it came from.
Nothing but `verified/` is ever overwritten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FORMAT_VERSION = 1

MARKER = "flypg-repository.json"
SNAPSHOT_ID = re.compile(r"vs_[0-9A-Za-z]{16}\Z")
SEGMENT = re.compile(r"[0-9A-F]{24}\Z")
HISTORY = re.compile(r"[0-9A-F]{8}\.history\Z")
PARTIAL = re.compile(r"[0-9A-F]{24}\.partial\Z")
PIECE = re.compile(r"stream/[0-9A-F]{8}/([0-9A-F]{24})\.([0-9A-F]{8})-([0-9A-F]{8})(?:\.|\Z)")
BACKUP_LABEL = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup\Z")
SEGMENT_BYTES = 16 << 20  # PostgreSQL's default; the size of a cluster is passed where it matters
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class PathName:
    """One history of one cluster."""

    cluster: str
    system_id: str
    incarnation: str  # 8 hexadecimal digits, chosen once per cluster and per restore

    def __str__(self) -> str:
        return f"{self.cluster}/{self.system_id}-{self.incarnation}"


def parse_path(text: str) -> PathName:
    """The path behind `cluster/7301-0a1b2c3d`. Raises ValueError when `text` is none."""
    cluster, slash, rest = text.strip("/").partition("/")
    system_id, dash, incarnation = rest.partition("-")
    if not cluster or not slash or not dash or not system_id.isdigit() or not re.fullmatch("[0-9a-f]{8}", incarnation):
        raise ValueError(f"not a path of a repository: {text!r} (CLUSTER/SYSTEM_ID-INCARNATION)")
    return PathName(cluster, system_id, incarnation)


def snapshot_id(digits: list[int]) -> str:
    """`vs_` and 16 letters for 16 random numbers, the shape of Fly's ids."""
    assert len(digits) == 16
    return "vs_" + "".join(ALPHABET[d % len(ALPHABET)] for d in digits)


def archivable(name: str) -> bool:
    """Is `name` something that PostgreSQL archives?"""
    return any(pattern.match(name) for pattern in (SEGMENT, HISTORY, PARTIAL, BACKUP_LABEL))


def wal_key(name: str) -> str:
    """Where a WAL file lies, below its path and without the suffixes of its encoding."""
    return f"wal/{name[:8]}/{name}"


def catalog_key(snapshot: str) -> str:
    return f"catalog/{snapshot}.json"


def verified_key(snapshot: str) -> str:
    return f"verified/{snapshot}.json"


def part_key(snapshot: str, archive: str, number: int) -> str:
    """The name of a part, without the suffix of encryption."""
    return f"snapshots/{snapshot}/{archive}.zst.{number:06d}"


def manifest_key(snapshot: str) -> str:
    return f"snapshots/{snapshot}/backup_manifest"


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A WAL segment by its name: a number on a timeline."""

    timeline: int
    number: int

    def name(self, segment_bytes: int = SEGMENT_BYTES) -> str:
        per_log = (1 << 32) // segment_bytes
        return f"{self.timeline:08X}{self.number // per_log:08X}{self.number % per_log:08X}"


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Some bytes of a segment that is not full yet: from `start` up to before `stop`."""

    segment: str  # its name
    start: int
    stop: int


def pieces_prefix(segment: str) -> str:
    """What the keys of a segment's pieces begin with."""
    return f"stream/{segment[:8]}/{segment}."


def piece_key(piece: Piece) -> str:
    """Where a piece lies, without the suffixes of its encoding."""
    return f"{pieces_prefix(piece.segment)}{piece.start:08X}-{piece.stop:08X}"


def piece_of(key: str) -> Piece | None:
    """The piece behind a key; None when it is none."""
    match = PIECE.match(key)
    return Piece(match[1], int(match[2], 16), int(match[3], 16)) if match else None


def segment_of(name: str, segment_bytes: int = SEGMENT_BYTES) -> Segment | None:
    """The segment that a file name stands for; None when it is not the name of a (whole) segment."""
    if not SEGMENT.match(name):
        return None
    per_log = (1 << 32) // segment_bytes
    return Segment(int(name[:8], 16), int(name[8:16], 16) * per_log + int(name[16:], 16))


def segment_at(timeline: int, lsn: int, segment_bytes: int = SEGMENT_BYTES) -> Segment:
    """The segment that holds the byte at `lsn`."""
    return Segment(timeline, lsn // segment_bytes)


@dataclass(frozen=True, slots=True)
class Fork:
    """A line of a history file: `timeline` was left at `lsn`."""

    timeline: int
    lsn: int


def possible_segment_bytes(size: int) -> int | None:
    """`size` if PostgreSQL can have segments of it: a power of two from 1 MiB to 1 GiB (initdb --wal-segsize)."""
    return size if size.bit_count() == 1 and 1 << 20 <= size <= 1 << 30 else None


def parse_history(text: str) -> tuple[Fork, ...]:
    """The ancestors in a timeline history file, oldest first. Raises ValueError for a line that is none."""
    forks: list[Fork] = []
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        fields = line.split()
        if len(fields) < 2:
            raise ValueError(f"not a line of a history file: {line!r}")
        high, _, low = fields[1].partition("/")
        forks.append(Fork(int(fields[0]), (int(high, 16) << 32) | int(low, 16)))
    return tuple(forks)
