"""PostgreSQL's own list of what is in a base backup: files are compared with it while they are written.

That saves reading everything a second time, as `pg_verifybackup` does; it finds the same: a file that is missing, that
nobody knows of, that is longer, shorter or other than it was, and a list that was altered. A list of a kind that is not
known here is left to `pg_verifybackup`, and so are checksums that nothing on this machine computes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from backups.errors import ObjectDamaged

VERSIONS = (1, 2)  # of the list's format; 2 is PostgreSQL 17
# what pg_verifybackup leaves out too: WAL, and what a server or a restore writes itself
UNLISTED = ("pg_wal", "backup_manifest", "postgresql.auto.conf", "standby.signal", "recovery.signal")


class Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Crc32c:
    """In the order of bytes in which PostgreSQL writes it down: the machine's."""

    def __init__(self, crc32c: Callable[[memoryview, int], int]) -> None:
        self._crc32c = crc32c
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._crc32c(data, self._value)

    def hexdigest(self) -> str:
        return self._value.to_bytes(4, sys.byteorder).hex()


class _Nothing:
    """A backup that was taken without checksums: sizes are all there is to compare."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str:
        return ""


def digest_maker(algorithm: str) -> Callable[[], Digest] | None:
    """What computes a checksum of PostgreSQL's; None: nothing here does."""
    if algorithm == "":
        return _Nothing
    if algorithm == "CRC32C":
        try:
            from crc32c import crc32c
        except ImportError:
            return None
        return lambda: _Crc32c(crc32c)
    if algorithm in ("SHA224", "SHA256", "SHA384", "SHA512"):
        return lambda: hashlib.new(algorithm.lower())
    return None


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of a base backup, as it was sent."""

    size: int
    algorithm: str  # "" means without a checksum
    checksum: str  # hexadecimal


class FileCheck:
    """Compares one file with what is listed."""

    def __init__(self, name: str, listed: Listed, digest: Digest) -> None:
        self._name = name
        self._listed = listed
        self._digest = digest
        self._size = 0

    def update(self, data: memoryview) -> None:
        self._size += len(data)
        self._digest.update(data)

    def finish(self) -> None:
        if self._size != self._listed.size:
            raise ObjectDamaged(
                f"{self._name} has {self._size} bytes, but {self._listed.size} according to backup_manifest"
            )
        if self._digest.hexdigest() != self._listed.checksum:
            raise ObjectDamaged(f"{self._name} is not what it was: its checksum is another one in backup_manifest")


class Manifest:
    """What is listed and was not seen yet."""

    def __init__(self, files: dict[str, Listed], digests: dict[str, Callable[[], Digest]]) -> None:
        self._files = files
        self._digests = digests

    def check(self, name: str) -> FileCheck | None:
        """Begin with the file `name`; None: nobody lists such files. Raises ObjectDamaged for one too many."""
        listed = self._files.pop(name, None)
        if listed is not None:
            return FileCheck(name, listed, self._digests[listed.algorithm]())
        if name.partition("/")[0] not in UNLISTED:
            raise ObjectDamaged(f"{name} is not in backup_manifest")
        return None

    def finish(self) -> None:
        """Raises ObjectDamaged when files are missing."""
        missing = [name for name in self._files if name.partition("/")[0] not in UNLISTED]
        if missing:
            raise ObjectDamaged(f"{len(missing)} files of backup_manifest are missing, such as {min(missing)}")


def read_manifest(data: bytes) -> Manifest | None:
    """The list in a `backup_manifest`; None: only `pg_verifybackup` can tell. Raises ObjectDamaged."""
    last = data.rfind(b"\n", 0, -1) + 1  # the checksum of all the lines before stands in the last one
    try:
        body = json.loads(data, object_hook=_listed)
        version, told, files = body["PostgreSQL-Backup-Manifest-Version"], body["Manifest-Checksum"], body["Files"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ObjectDamaged(f"backup_manifest cannot be read: {error!r}") from None
    if version not in VERSIONS:
        return None
    if hashlib.sha256(data[:last]).hexdigest() != told:
        raise ObjectDamaged("backup_manifest is not what it was: its own checksum does not fit")
    digests = {}
    for algorithm in {listed.algorithm for _, listed in files}:
        made = digest_maker(algorithm)
        if made is None:
            return None
        digests[algorithm] = made
    found = dict(files)
    if len(found) != len(files):
        raise ObjectDamaged("backup_manifest lists a file twice")
    return Manifest(found, digests)


def _listed(entry: dict[str, Any]) -> Any:
    """A file's entry, made small while the rest is read; anything else as it is."""
    if "Path" in entry:
        name = entry["Path"].encode()
    elif "Encoded-Path" in entry:  # hexadecimal: a name that is not UTF-8
        name = bytes.fromhex(entry["Encoded-Path"])
    else:
        return entry
    algorithm = sys.intern(entry.get("Checksum-Algorithm", ""))
    return os.fsdecode(name), Listed(int(entry["Size"]), algorithm, entry.get("Checksum", "").lower())
