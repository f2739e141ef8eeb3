"""A repository: paths, snapshots and WAL on top of an object store. Knows names and encodings, decides nothing."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path as FilePath

from backups import layout
from backups.catalog import (
    Part,
    SnapshotRecord,
    Verification,
    decode_record,
    decode_verification,
    encode_record,
    encode_verification,
    parse_json,
)
from backups.codec import Codec, sha256
from backups.directory import DirectoryStore
from backups.errors import DifferentContent, ObjectDamaged, ObjectMissing
from backups.layout import FORMAT_VERSION, PathName
from backups.objects import ObjectInfo, ObjectStore
from cluster.errors import StoredFormatError

log = logging.getLogger("flypg.backups")
UNMOUNTED = ": is its file system mounted? If it is to begin anew: flypg snapshots create"
MEND = 'if it is one of flypg, put {"format_version": 1} there'


@dataclass(frozen=True, slots=True)
class PathInfo:
    """What is written down when a path begins."""

    cluster: str
    system_id: str
    incarnation: str
    created_at: float  # seconds since 1970
    parent: str = ""  # "PATH SNAPSHOT" that it was restored from; "" for a cluster that began empty

    @property
    def name(self) -> PathName:
        return PathName(self.cluster, self.system_id, self.incarnation)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a path lists. One damaged record does not hide the others, nor its own parts."""

    snapshots: tuple[SnapshotRecord, ...]  # oldest first
    damaged: tuple[tuple[str, str], ...] = ()  # (id, why its record cannot be read)


class Repository:
    """All paths under one prefix."""

    def __init__(self, store: ObjectStore, codec: Codec) -> None:
        self.store = store
        self.codec = codec

    def open(self, *, create: bool = True) -> None:
        """Check that the format is ours, and mark a new repository. Raises StoredFormatError."""
        if create:
            self.store.put(layout.MARKER, json.dumps({"format_version": FORMAT_VERSION}).encode())
        try:
            parse_json(self.store.get(layout.MARKER), f"{self.store.describe()}: {layout.MARKER}")
        except ObjectMissing:
            where = self.store.describe()
            if any(True for _ in self.store.list("_paths/")):
                raise ObjectDamaged(f"{where}: {layout.MARKER} is missing, though there is data: {MEND}") from None
            hint = UNMOUNTED if isinstance(self.store, DirectoryStore) and not create else ""
            raise ObjectMissing(f"{where}: no repository of flypg is here{hint}") from None
        except ObjectDamaged as error:
            raise ObjectDamaged(f"{error}; {MEND}") from None

    def paths(self, cluster: str = "") -> list[PathInfo]:
        """The paths (of `cluster`, or all), oldest first."""
        found = []
        for info in self.store.list(f"_paths/{cluster}/" if cluster else "_paths/"):
            try:
                found.append(PathInfo(**parse_json(self.store.get(info.key), info.key)))
            except (ObjectDamaged, TypeError) as error:  # its name says all that a restore needs
                log.warning("path_record_damaged", extra={"key": info.key, "error": str(error)})
                with contextlib.suppress(ValueError):
                    name = layout.parse_path(info.key.removeprefix("_paths/").removesuffix(".json"))
                    found.append(PathInfo(name.cluster, name.system_id, name.incarnation, info.modified))
        return sorted(found, key=lambda p: p.created_at)

    def unlisted(self) -> list[PathName]:
        """The paths with snapshots, whose records may be lost; reads the names of all objects."""
        found = set()
        for info in self.store.list(""):
            name, catalog, _ = info.key.partition("/catalog/")
            with contextlib.suppress(ValueError):
                if catalog:
                    found.add(layout.parse_path(name))
        return sorted(found, key=str)

    def begin_path(self, info: PathInfo) -> Path:
        """The path of this name; written down if it is new."""
        path = Path(self, info.name)
        body = json.dumps({"format_version": FORMAT_VERSION, **asdict(info)}, indent=1).encode()
        self.store.put(f"_paths/{info.name}.json", body)
        return path

    def path(self, name: PathName) -> Path:
        return Path(self, name)


class Path:
    """One history of one cluster."""

    def __init__(self, repository: Repository, name: PathName) -> None:
        self.name = name
        self._store = repository.store
        self._codec = repository.codec

    def describe(self) -> str:
        return f"{self._store.describe()}/{self.name}"

    def _full(self, key: str) -> str:
        return f"{self.name}/{key}"

    # parts of snapshots

    def put_part(self, key: str, frame: bytes) -> Part:
        """Store a piece of a zstd stream. `key` has no suffix of encryption."""
        return self.put_sealed(*self.seal_part(key, frame))

    def seal_part(self, key: str, frame: bytes) -> tuple[str, bytes]:
        """The first half of `put_part`, after which the frame may be let go: its key and what is to be stored."""
        key += self._codec.suffix
        return key, self._codec.seal(frame, key)

    def opens(self, record: SnapshotRecord) -> bool:
        """Is the key given that `record` was sealed with?"""
        return self._codec.opens(record.encrypted_with)

    def put_manifest(self, snapshot: str, manifest: bytes) -> Part:
        key = f"{layout.manifest_key(snapshot)}.zst{self._codec.suffix}"
        return self.put_sealed(key, self._codec.pack(manifest, key))

    def put_sealed(self, key: str, data: bytes) -> Part:
        """The second half of `put_part`. Raises DifferentContent when other content has the key."""
        if not self._store.put(self._full(key), data) and self._store.get(self._full(key)) != data:
            raise DifferentContent(f"{self.describe()}: {key} exists with other content")
        return Part(key, len(data), sha256(data))

    def get_part(self, part: Part) -> bytes:
        """The piece of a zstd stream that a part is, checked. Raises ObjectMissing, ObjectDamaged."""
        return self._codec.open(self.fetch_part(part), part.key)

    def opened(self, part: Part, stored: bytes) -> Iterator[bytes]:
        """The same of what `fetch_part` has brought, in pieces. Raises ObjectDamaged."""
        return self._codec.opened(stored, part.key)

    def fetch_part(self, part: Part) -> bytes:
        """A part as it is stored, maybe encrypted, checked. Raises ObjectMissing, ObjectDamaged."""
        data = self._store.get(self._full(part.key))
        if len(data) != part.size or sha256(data) != part.sha256:
            raise ObjectDamaged(
                f"{self.describe()}: {part.key}: {len(data)} bytes of SHA-256 {sha256(data)[:12]}…, "
                f"but {part.size} of {part.sha256[:12]}… were stored"
            )
        return data

    def get_manifest(self, record: SnapshotRecord) -> bytes:
        data = self._store.get(self._full(record.manifest.key))
        if sha256(data) != record.manifest.sha256:
            raise ObjectDamaged(f"{self.describe()}: {record.manifest.key}: the checksum does not fit")
        return self._codec.unpack(data, record.manifest.key)

    # the catalogue

    def commit(self, record: SnapshotRecord) -> None:
        """Make a snapshot exist."""
        body = encode_record(record)
        key = self._full(layout.catalog_key(record.id))
        if not self._store.put(key, body) and self._store.get(key) != body:
            raise DifferentContent(f"{self.describe()}: snapshot {record.id} is committed already")

    def snapshot(self, snapshot: str) -> SnapshotRecord:
        """Raises ObjectMissing when there is no such snapshot, ObjectDamaged or StoredFormatError for its record."""
        key = layout.catalog_key(snapshot)
        record = decode_record(self._store.get(self._full(key)), key)
        if record.id != snapshot:
            raise ObjectDamaged(f"{key}: is the record of {record.id}")
        try:
            return record.verified(self.verification(snapshot))
        except ObjectDamaged as error:  # as good as never tested
            log.warning("verification_damaged", extra={"error": str(error)})
            return record

    def verification(self, snapshot: str) -> Verification | None:
        """The last restore test; None: there was none. Raises ObjectDamaged."""
        key = layout.verified_key(snapshot)
        try:
            return decode_verification(self._store.get(self._full(key)), key)
        except ObjectMissing:
            return None

    def recorded(self, snapshot: str) -> bool:
        """Is there a record of it? Asked by its name: a listing may have left it out."""
        try:
            self._store.get(self._full(layout.catalog_key(snapshot)))
        except ObjectMissing:
            return False
        return True

    def snapshots(self) -> list[SnapshotRecord]:
        """All snapshots whose record can be read, oldest first."""
        return list(self.catalogue().snapshots)

    def catalogue(self) -> Catalogue:
        """All snapshots that exist, and the records that cannot be read."""
        found, damaged = [], []
        for info in self._store.list(self._full("catalog/")):
            name = info.key.rpartition("/")[2].removesuffix(".json")
            if not layout.SNAPSHOT_ID.match(name):
                continue
            try:
                found.append(self.snapshot(name))
            except ObjectMissing:
                continue  # deleted since the listing
            except (ObjectDamaged, StoredFormatError) as error:
                damaged.append((name, str(error)))
        return Catalogue(tuple(sorted(found, key=lambda s: (s.finished_at, s.id))), tuple(damaged))

    def pin(self, record: SnapshotRecord, pinned: bool) -> None:
        self._store.put(
            self._full(layout.catalog_key(record.id)), encode_record(replace(record, pinned=pinned)), if_absent=False
        )

    def record_verification(self, snapshot: str, result: Verification) -> None:
        self._store.put(self._full(layout.verified_key(snapshot)), encode_verification(result), if_absent=False)

    def remove_snapshot(self, snapshot: str) -> None:
        """Unlist it first, then remove its parts: a crash in between leaves garbage, never a snapshot without parts."""
        self._store.delete([self._full(layout.catalog_key(snapshot))])
        self.remove_parts(snapshot)
        self._store.delete([self._full(layout.verified_key(snapshot))])

    def remove_parts(self, snapshot: str) -> None:
        self._store.delete([info.key for info in self._store.list(self._full(f"snapshots/{snapshot}/"))])

    def stored(self, prefix: str) -> Iterator[ObjectInfo]:
        """What lies below `prefix`, with keys below this path."""
        for info in self._store.list(self._full(prefix)):
            yield replace(info, key=info.key[len(str(self.name)) + 1 :])

    def tidy(self, before: float) -> None:
        """Remove what interrupted writes have left in the whole repository."""
        self._store.tidy(before)

    # WAL

    def _wal_key(self, name: str) -> str:
        return f"{layout.wal_key(name)}.zst{self._codec.suffix}"

    def put_wal(self, name: str, content: bytes | FilePath) -> int:
        """Store a WAL file once; the same content again is fine. Returns the bytes written, 0 when it was there.

        A file is read piece by piece: several are stored at once, and the archiver's memory is not to grow by each.

        Raises DifferentContent, after other content was put aside under `conflict/`.
        """
        key = self._wal_key(name)
        data = self._codec.pack_file(content, key) if isinstance(content, FilePath) else self._codec.pack(content, key)
        if self._store.put(self._full(key), data):
            return len(data)
        del data
        content = content.read_bytes() if isinstance(content, FilePath) else content
        if self.get_wal(name) == content:
            return 0
        aside = f"conflict/{name}.{sha256(content)[:16]}.zst{self._codec.suffix}"
        self._store.put(self._full(aside), self._codec.pack(content, aside))
        raise DifferentContent(f"{self.describe()}: {name} is archived with other content; the new one is in {aside}")

    def get_wal(self, name: str) -> bytes:
        """Raises ObjectMissing, ObjectDamaged."""
        return b"".join(self.wal_pieces(name))

    def wal_pieces(self, name: str) -> Iterator[bytes]:
        """The same piece by piece: a segment as it is stored is in memory, and some of what it unpacks to."""
        return self._unpacked(f"{layout.wal_key(name)}.zst")

    def _unpacked(self, key: str) -> Iterator[bytes]:
        """What is stored under `key` and the suffix of encryption, or without: from before there was a key."""
        now, before = (f"{key}{suffix}" for suffix in self._codec.suffixes)
        found = now
        try:
            stored = self._store.get(self._full(now))
        except ObjectMissing as missing:
            found = before
            try:
                stored = self._store.get(self._full(before))
            except ObjectMissing:
                raise missing from None
        yield from self._codec.unpacked(stored, found)

    def wal_names(self, timeline: int | None = None) -> Iterator[str]:
        """The names of the archived files (of one timeline, or all), in order."""
        prefix = "wal/" if timeline is None else f"wal/{timeline:08X}/"
        for info in self.stored(prefix):
            yield wal_name(info.key)

    def put_piece(self, piece: layout.Piece, content: bytes) -> None:
        """Store bytes of a segment that is not full yet. The same piece has the same bytes: it is stored once."""
        key = f"{layout.piece_key(piece)}.zst{self._codec.suffix}"
        self._store.put(self._full(key), self._codec.pack(content, key))

    def get_piece(self, piece: layout.Piece) -> bytes:
        """Raises ObjectMissing, ObjectDamaged."""
        return b"".join(self._unpacked(f"{layout.piece_key(piece)}.zst"))

    def remove_wal(self, keys: Iterable[str]) -> None:
        self._store.delete(self._full(k) for k in keys)

    def histories(self, names: Iterable[str]) -> tuple[dict[int, tuple[layout.Fork, ...]], tuple[str, ...]]:
        """The ancestors of each timeline whose history file is among `names`; and what is wrong with those that are
        damaged, which count as missing."""
        found, damaged = {}, []
        for name in names:
            if layout.HISTORY.match(name):
                try:
                    found[int(name[:8], 16)] = layout.parse_history(self.get_wal(name).decode())
                except (ObjectDamaged, ValueError) as error:
                    damaged.append(str(error) if name in str(error) else f"{name}: {error}")
        return found, tuple(damaged)


def wal_name(key: str) -> str:
    """The name of the file behind a key such as `wal/00000001/000000010000000000000003.zst.enc`."""
    return key.rpartition("/")[2].removesuffix(".enc").removesuffix(".zst")
