"""What a snapshot is: the record that is written last and makes it exist. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from backups.errors import ObjectDamaged
from backups.layout import FORMAT_VERSION, SNAPSHOT_ID
from cluster.errors import StoredFormatError


@dataclass(frozen=True, slots=True)
class Part:
    """One object of a snapshot, as it is stored."""

    key: str  # below the path, with the suffix of encryption
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Archive:
    """One tar: the data directory, or a tablespace."""

    name: str  # `base.tar`, or `<oid>.tar`
    location: str  # of the tablespace; "" for the data directory
    raw_bytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """The last time a snapshot was restored to see whether it can be."""

    at: float  # seconds since 1970
    ok: bool
    restore_s: float  # from nothing to a server that answers
    total_s: float  # with all checks
    text: str  # what was found
    node: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A complete physical backup. Times are seconds since 1970 by the clock of the node that took it."""

    id: str
    cluster: str
    system_id: str
    server_version: int  # e.g. 150018
    node: str  # where it was taken
    role: str  # "standby" or "primary"
    started_at: float
    finished_at: float
    timeline: int
    start_lsn: int
    stop_lsn: int  # consistent from here on
    segment_bytes: int
    archives: tuple[Archive, ...]
    manifest: Part
    encrypted_with: str = ""  # key id; "" means not encrypted
    data_checksums: bool = False
    damaged_pages: bool = False  # the server found page checksums that do not fit while it was taken
    pinned: bool = False  # retention leaves it alone
    flypg_version: str = ""
    verification: Verification | None = field(default=None, compare=False)  # kept in an object of its own

    @property
    def stored_bytes(self) -> int:
        return self.manifest.size + sum(p.size for a in self.archives for p in a.parts)

    @property
    def raw_bytes(self) -> int:
        return sum(a.raw_bytes for a in self.archives)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*(p for a in self.archives for p in a.parts), self.manifest)

    @property
    def major(self) -> int:
        return self.server_version // 10000

    def verified(self, result: Verification | None) -> SnapshotRecord:
        return replace(self, verification=result)


def encode_record(record: SnapshotRecord) -> bytes:
    body = asdict(record)
    del body["verification"]
    return json.dumps({"format_version": FORMAT_VERSION, **body}, indent=1).encode()


def decode_record(data: bytes, name: str) -> SnapshotRecord:
    """The record in `data`. Raises StoredFormatError for a newer format, ObjectDamaged for what is no record."""
    body = parse_json(data, name)
    try:
        archives = tuple(Archive(**{**a, "parts": tuple(Part(**p) for p in a["parts"])}) for a in body.pop("archives"))
        record = SnapshotRecord(archives=archives, manifest=Part(**body.pop("manifest")), **body)
    except (KeyError, TypeError) as error:
        raise ObjectDamaged(f"{name}: not a record of a snapshot: {error}") from None
    if not SNAPSHOT_ID.match(record.id):
        raise ObjectDamaged(f"{name}: {record.id!r} is no id of a snapshot")
    return record


def encode_verification(result: Verification) -> bytes:
    return json.dumps({"format_version": FORMAT_VERSION, **asdict(result)}).encode()


def decode_verification(data: bytes, name: str) -> Verification:
    try:
        return Verification(**parse_json(data, name))
    except TypeError as error:
        raise ObjectDamaged(f"{name}: not the result of a restore test: {error}") from None


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """The fields of a stored value of our format. Raises StoredFormatError when the format is not known."""
    try:
        body = json.loads(data)
    except ValueError as error:
        raise ObjectDamaged(f"{name}: not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ObjectDamaged(f"{name}: not a JSON object")
    version = body.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise StoredFormatError(f"{name}: format {version!r}; this flypg knows {FORMAT_VERSION}")
    return body
