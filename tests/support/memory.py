"""A repository in memory, and snapshots in it: for tests that write thousands of objects."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace

from backups.base import check_parts
from backups.catalog import Archive, SnapshotRecord
from backups.codec import Codec
from backups.errors import ObjectMissing
from backups.layout import PathName, manifest_key, part_key
from backups.objects import ObjectInfo
from backups.pipeline import PartWriter
from backups.repository import Path as RepositoryPath
from backups.repository import Repository
from tests.support.snapshots import DAY

NAME = PathName("c", "7301", "00000000")
NOW = 100 * DAY


class MemoryStore:
    """A store in memory: these tests write thousands of objects. Every object is as old as its last write."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.modified = NOW
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        with self._lock:
            if if_absent and key in self.objects:
                return False
            self.objects[key] = data
            return True

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(key)
        return self.objects[key]

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(
            [ObjectInfo(k, len(v), self.modified) for k, v in sorted(self.objects.items()) if k.startswith(prefix)]
        )

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def tidy(self, before: float) -> None:
        """Nothing is left by writes to memory."""

    def describe(self) -> str:
        return "memory"


def take(path: RepositoryPath, made: SnapshotRecord, piece_bytes: int = 1 << 20) -> None:
    """What take_snapshot does, without a PostgreSQL: parts, manifest, check, commit."""
    writer = PartWriter(Codec(), path.put_part, part_bytes=64 << 10)
    try:
        writer.begin("base.tar", lambda n: part_key(made.id, "base.tar", n))
        for _ in range(3):
            writer.write(os.urandom(piece_bytes))
        parts = writer.finish()["base.tar"]
    finally:
        writer.abandon()
    manifest = path.put_manifest(made.id, b"manifest")
    assert manifest.key.startswith(manifest_key(made.id))
    whole = replace(made, archives=(Archive("base.tar", "", 3 * piece_bytes, parts),), manifest=manifest)
    check_parts(path, whole)
    path.commit(whole)


def path_on(store: object) -> RepositoryPath:
    return Repository(store, Codec()).path(NAME)  # type: ignore[arg-type]
