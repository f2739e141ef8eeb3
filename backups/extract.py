"""Unpacks a snapshot into a directory, and compares every file with PostgreSQL's manifest on the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path as FilePath

from backups.ahead import plain
from backups.catalog import Archive, SnapshotRecord
from backups.errors import ObjectDamaged, RestoreRefused
from backups.manifest import FileCheck, read_manifest
from backups.repository import Path
from backups.untar import Untar
from backups.writeback import WriteBack
from postgres.command import Account


def unpack(
    path: Path,
    record: SnapshotRecord,
    directory: FilePath,
    *,
    owner: Account | None,
    progress: Callable[[int], None] | None = None,
) -> bool:
    """Unpack `record` into the empty `directory`, tablespaces into `<directory>.tablespaces`; blocks.

    True: every file is what it was when the snapshot was taken. False: that is left to `pg_verifybackup`, since this
    machine does not compute the checksums of the manifest. PostgreSQL sends its control file last, so a directory that
    was left half unpacked cannot be started. Raises RestoreRefused, RepositoryError.
    """
    _prepare(directory, owner)
    listed = path.get_manifest(record)
    manifest = read_manifest(listed)
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done)

    # tablespaces first: the data directory, and with it the control file, is complete last
    for archive in sorted(record.archives, key=lambda a: a.name == "base.tar"):
        base = archive.name == "base.tar"
        target = directory if base else _tablespace(directory, archive, owner)
        prefix = "" if base else f"pg_tblspc/{archive.name.removesuffix('.tar')}/"

        def check(name: str, prefix: str = prefix) -> FileCheck | None:
            return manifest.check(prefix + name) if manifest is not None else None

        try:
            with plain(path, archive.parts, tell) as pieces, WriteBack() as disk:
                Untar(target, owner, disk, check).all(pieces)
        except ObjectDamaged as error:
            raise ObjectDamaged(f"{record.id}: {archive.name}: {error}") from None
    if manifest is not None:
        manifest.finish()
    for archive in record.archives:
        if archive.name != "base.tar":
            oid = archive.name.removesuffix(".tar")
            link = directory / "pg_tblspc" / oid
            link.unlink(missing_ok=True)
            link.symlink_to(tablespaces(directory) / oid)
    _write(directory / "backup_manifest", listed, owner)
    return manifest is not None


def make_our_own(directory: FilePath, record: SnapshotRecord, owner: Account | None) -> None:
    """Take away what belongs to the cluster it came from: a standby's signal file, the places of tablespaces."""
    for signal in ("standby.signal", "recovery.signal"):  # a snapshot of a standby has it, and would wait for ever
        (directory / signal).unlink(missing_ok=True)
    oids = [a.name.removesuffix(".tar") for a in record.archives if a.name != "base.tar"]
    if oids:
        lines = "".join(f"{oid} {tablespaces(directory) / oid}\n" for oid in oids)
        _write(directory / "tablespace_map", lines.encode(), owner)


def tablespaces(directory: FilePath) -> FilePath:
    return directory.with_name(directory.name + ".tablespaces")


def _tablespace(directory: FilePath, archive: Archive, owner: Account | None) -> FilePath:
    for made in (tablespaces(directory), tablespaces(directory) / archive.name.removesuffix(".tar")):
        made.mkdir(mode=0o700, exist_ok=True)
        if owner is not None:
            os.chown(made, owner.uid, owner.gid)
    return made


def _prepare(directory: FilePath, owner: Account | None) -> None:
    for place in (directory, tablespaces(directory)):
        if place.exists() and any(place.iterdir()):
            raise RestoreRefused(f"{place} is not empty; nothing was changed")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    if owner is not None:
        os.chown(directory, owner.uid, owner.gid)


def _write(file: FilePath, data: bytes, owner: Account | None) -> None:
    file.write_bytes(data)
    file.chmod(0o600)
    if owner is not None:
        os.chown(file, owner.uid, owner.gid)
