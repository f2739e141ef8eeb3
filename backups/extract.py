"""Unpacks a snapshot into a directory: parts are fetched ahead, checked, and poured through tar with bounded memory."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path as FilePath
from typing import IO, cast

from backups.catalog import Archive, Part, SnapshotRecord
from backups.errors import ObjectDamaged, RestoreRefused
from backups.repository import Path
from postgres.command import Account

AHEAD = 2  # parts fetched while one is unpacked
PIECE_BYTES = 1 << 20


class _Frames(io.RawIOBase):
    """The plain bytes of a sequence of zstd frames, as a file to read."""

    def __init__(self, frames: Iterator[bytes], read: Callable[[int], None]) -> None:
        self._frames = frames
        self._told = read
        self._reader: io.RawIOBase | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        import zstandard

        while True:
            if self._reader is None:
                frame = next(self._frames, None)
                if frame is None:
                    return 0
                self._reader = zstandard.ZstdDecompressor().stream_reader(frame, read_across_frames=True)  # type: ignore[assignment]
            assert self._reader is not None
            try:
                got = self._reader.read(min(len(buffer), PIECE_BYTES))
            except zstandard.ZstdError as error:
                raise ObjectDamaged(f"a part does not unpack: {error}") from None
            if got:
                buffer[: len(got)] = got
                self._told(len(got))
                return len(got)
            self._reader = None


def _fetched(path: Path, parts: tuple[Part, ...], pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """The frames of `parts` in order, the next ones on their way meanwhile."""
    waiting: list[Future[bytes]] = []
    rest = list(reversed(parts))
    while rest or waiting:
        while rest and len(waiting) <= AHEAD:
            waiting.append(pool.submit(path.get_part, rest.pop()))
        yield waiting.pop(0).result()


def unpack(
    path: Path,
    record: SnapshotRecord,
    directory: FilePath,
    *,
    owner: Account | None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Unpack `record` into the empty `directory`, tablespaces into `<directory>.tablespaces`; blocks.

    PostgreSQL sends its control file last, so a directory that was left half unpacked cannot be started. Raises
    RestoreRefused, RepositoryError.
    """
    _prepare(directory, owner)
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done)

    # tablespaces first: the data directory, and with it the control file, is complete last
    for archive in sorted(record.archives, key=lambda a: a.name == "base.tar"):
        target = directory if archive.name == "base.tar" else _tablespace(directory, archive, owner)
        with ThreadPoolExecutor(AHEAD + 1, thread_name_prefix="fetch") as pool:
            source = io.BufferedReader(_Frames(_fetched(path, archive.parts, pool), tell), PIECE_BYTES)
            _untar(cast(IO[bytes], source), target, owner, archive.name)
    for archive in record.archives:
        if archive.name != "base.tar":
            oid = archive.name.removesuffix(".tar")
            link = directory / "pg_tblspc" / oid
            link.unlink(missing_ok=True)
            link.symlink_to(_tablespaces(directory) / oid)
    _write(directory / "backup_manifest", path.get_manifest(record), owner)


def make_our_own(directory: FilePath, record: SnapshotRecord, owner: Account | None) -> None:
    """Take away what belongs to the cluster it came from: a standby's signal file, the places of tablespaces."""
    for signal in ("standby.signal", "recovery.signal"):  # a snapshot of a standby has it, and would wait for ever
        (directory / signal).unlink(missing_ok=True)
    oids = [a.name.removesuffix(".tar") for a in record.archives if a.name != "base.tar"]
    if oids:
        lines = "".join(f"{oid} {_tablespaces(directory) / oid}\n" for oid in oids)
        _write(directory / "tablespace_map", lines.encode(), owner)


def _tablespaces(directory: FilePath) -> FilePath:
    return directory.with_name(directory.name + ".tablespaces")


def _tablespace(directory: FilePath, archive: Archive, owner: Account | None) -> FilePath:
    for made in (_tablespaces(directory), _tablespaces(directory) / archive.name.removesuffix(".tar")):
        made.mkdir(mode=0o700, exist_ok=True)
        if owner is not None:
            os.chown(made, owner.uid, owner.gid)
    return made


def _prepare(directory: FilePath, owner: Account | None) -> None:
    for place in (directory, _tablespaces(directory)):
        if place.exists() and any(place.iterdir()):
            raise RestoreRefused(f"{place} is not empty; nothing was changed")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    if owner is not None:
        os.chown(directory, owner.uid, owner.gid)


def _untar(source: IO[bytes], target: FilePath, owner: Account | None, name: str) -> None:
    def ours(member: tarfile.TarInfo, place: str) -> tarfile.TarInfo:
        member = tarfile.tar_filter(member, place)  # refuses what would leave the directory
        if owner is None:
            return member
        return member.replace(uid=owner.uid, gid=owner.gid, uname="", gname="", deep=False)

    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=PIECE_BYTES) as tar:
            tar.extractall(target, filter=ours, numeric_owner=True)
    except tarfile.TarError as error:
        raise ObjectDamaged(f"{name} is no tar archive: {error}") from None


def _write(file: FilePath, data: bytes, owner: Account | None) -> None:
    file.write_bytes(data)
    file.chmod(0o600)
    if owner is not None:
        os.chown(file, owner.uid, owner.gid)
