"""Takes a snapshot: a base backup streamed into the repository, committed by one small object written last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from backups import layout
from backups.catalog import Archive, Part, SnapshotRecord
from backups.codec import Codec
from backups.errors import ObjectDamaged, SnapshotFailed
from backups.pipeline import PartWriter
from backups.repository import Path
from postgres.basebackup import BackupBegun, BackupEnded, server_facts, stream_base_backup

log = logging.getLogger("flypg.backups")


@dataclass(frozen=True, slots=True)
class SnapshotOptions:
    part_bytes: int = 8 << 20
    uploaders: int = 2
    max_rate_kib: int = 0  # KiB per second of plain data, 0 means no limit
    fast_checkpoint: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a snapshot or restore has come."""

    done_bytes: int  # of the plain tars
    total_bytes: int  # as the server guesses; 0 means unknown
    stored_bytes: int  # in the repository so far


class _Sink:
    """Pours the stream of a base backup into parts."""

    def __init__(self, path: Path, snapshot: str, writer: PartWriter) -> None:
        self._path = path
        self._snapshot = snapshot
        self._writer = writer
        self.begun: BackupBegun | None = None
        self.archives: list[tuple[str, str]] = []
        self.raw: dict[str, int] = {}  # bytes of the plain tars
        self.manifest_pieces: list[bytes] = []
        self._current: str | None = None

    def begin(self, backup: BackupBegun) -> None:
        self.begun = backup

    @property
    def start(self) -> BackupBegun:
        """Where the backup begins; once it has ended, that is known."""
        assert self.begun is not None, "the server says so first"
        return self.begun

    def archive(self, name: str, location: str) -> None:
        self._current = name
        self.archives.append((name, location))
        self.raw[name] = 0
        packed = self.begun is not None and self.begun.compressed
        self._writer.begin(name, lambda number: layout.part_key(self._snapshot, name, number), packed=packed)

    def manifest(self) -> None:
        self._current = None

    def data(self, chunk: bytes | memoryview) -> None:
        if self._current is None:
            self.manifest_pieces.append(bytes(chunk))
            return
        if self.begun is not None and not self.begun.compressed:
            self.raw[self._current] += len(chunk)
        self._writer.write(chunk)

    def told(self, plain_bytes: int) -> None:
        if self._current is not None and self.begun is not None and self.begun.compressed:
            before = sum(size for name, size in self.raw.items() if name != self._current)
            self.raw[self._current] = plain_bytes - before


def take_snapshot(
    path: Path,
    codec: Codec,
    conninfo: str,
    *,
    snapshot: str,
    node: str,
    options: SnapshotOptions = SnapshotOptions(),
    progress: Callable[[Progress], None] | None = None,
    wall: Callable[[], float] = time.time,
    still_ours: Callable[[], bool] = lambda: True,
    flypg_version: str = "",
) -> SnapshotRecord:
    """Back up the server at `conninfo` (a replication connection) as `snapshot`; blocks until it is committed.

    `still_ours` is asked just before the commit: a run that has lost its lease must not commit. Raises SnapshotFailed,
    PostgresUnavailable or a RepositoryError; then nothing is listed, and the parts are garbage for retention.
    """
    facts = server_facts(conninfo)
    if facts.system_id != path.name.system_id:
        raise SnapshotFailed(
            f"the server is system {facts.system_id}, but the repository's path is {path.name}: not the same cluster"
        )
    started_at = wall()
    part_bytes = options.part_bytes * 3 // 4 if codec.key else options.part_bytes  # sealing has each in memory twice
    uploaders = options.uploaders
    writer = PartWriter(codec, path.put_sealed, seal=path.seal_part, part_bytes=part_bytes, uploaders=uploaders)
    sink = _Sink(path, snapshot, writer)
    ended, parts = _pour(conninfo, snapshot, sink, writer, codec, options, progress)
    manifest = path.put_manifest(snapshot, b"".join(sink.manifest_pieces))
    record = SnapshotRecord(
        id=snapshot,
        cluster=path.name.cluster,
        system_id=facts.system_id,
        server_version=facts.version,
        node=node,
        role="standby" if facts.in_recovery else "primary",
        started_at=started_at,
        finished_at=wall(),
        timeline=ended.timeline,
        start_lsn=sink.start.lsn,
        stop_lsn=ended.lsn,
        segment_bytes=facts.segment_bytes,
        archives=tuple(Archive(name, location, sink.raw[name], parts[name]) for name, location in sink.archives),
        manifest=manifest,
        encrypted_with=codec.key.key_id.hex() if codec.key else "",
        data_checksums=facts.data_checksums,
        damaged_pages=ended.damaged_pages,
        flypg_version=flypg_version,
    )
    _commit(path, record, still_ours)
    return record


def _pour(
    conninfo: str,
    snapshot: str,
    sink: _Sink,
    writer: PartWriter,
    codec: Codec,
    options: SnapshotOptions,
    progress: Callable[[Progress], None] | None,
) -> tuple[BackupEnded, dict[str, tuple[Part, ...]]]:
    """Stream the backup into parts; blocks until all of them are stored. Raises SnapshotFailed when the server's
    timeline changed meanwhile."""

    def tell(plain: int) -> None:
        if progress is not None and sink.begun is not None:
            progress(Progress(plain, sink.begun.estimated_bytes, writer.stored_bytes))

    limited = options.max_rate_kib > 0  # a limit is meant for what is read, not for what is sent
    try:
        begun, ended = stream_base_backup(
            conninfo,
            snapshot,
            sink,
            max_rate_kib=options.max_rate_kib,
            fast=options.fast_checkpoint,
            zstd_level=0 if limited else codec.level,
            progress=tell,
        )
        parts = writer.finish()
    finally:
        writer.abandon()
    if begun.timeline != ended.timeline:
        raise SnapshotFailed(f"the server went from timeline {begun.timeline} to {ended.timeline} meanwhile; try again")
    return ended, parts


def _commit(path: Path, record: SnapshotRecord, still_ours: Callable[[], bool]) -> None:
    """Make the snapshot exist, once all of it is seen in the repository. Raises ObjectDamaged, SnapshotFailed."""
    check_parts(path, record)
    if not still_ours():
        raise SnapshotFailed("another node has taken over; this snapshot was not committed")
    path.commit(record)
    log.info("snapshot", extra={"snapshot": record.id, "stored_bytes": record.stored_bytes, "role": record.role})


def check_parts(path: Path, record: SnapshotRecord) -> None:
    """Are all parts in the repository, with the size they were stored with? Raises ObjectDamaged."""
    sizes = {info.key: info.size for info in path.stored(f"snapshots/{record.id}/")}
    bad: list[Part] = [p for p in record.parts if sizes.get(p.key) != p.size]
    if bad:
        raise ObjectDamaged(
            f"{path.describe()}: {record.id}: {len(bad)} of {len(record.parts)} parts are missing or cut short; "
            f"{bad[0].key}: {sizes.get(bad[0].key, 'missing')}, {bad[0].size} bytes were stored"
        )
