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


class _Joined(io.RawIOBase):
    """Parts one after the other, as a file to read."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = memoryview(part)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Plain(io.RawIOBase):
    """The plain bytes of a zstd stream, as a file to read. Memory is bounded: so much is unpacked as is asked for."""

    def __init__(self, packed: io.RawIOBase, read: Callable[[int], None]) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor().stream_reader(
            cast(IO[bytes], packed), read_size=PIECE_BYTES, read_across_frames=True
        )
        self._told = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            got = self._reader.readinto(buffer)
        except self._error as error:
            raise ObjectDamaged(f"a part does not unpack: {error}") from None
        self._told(got)
        return got


def _fetched(path: Path, parts: tuple[Part, ...], pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """The content of `parts` in order, the next ones on their way meanwhile."""
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
            plain = _Plain(_Joined(_fetched(path, archive.parts, pool)), tell)
            _untar(cast(IO[bytes], io.BufferedReader(plain, PIECE_BYTES)), target, owner, archive.name)
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
    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=PIECE_BYTES) as tar:
            tar.copybufsize = PIECE_BYTES  # type: ignore[attr-defined]  # 16 KiB otherwise
            members = (_ours(member, target, owner) for member in tar)
            if hasattr(tarfile, "fully_trusted_filter"):  # Debian 12's Python is older, and knows no filters
                tar.extractall(target, members, numeric_owner=True, filter="fully_trusted")
            else:
                tar.extractall(target, members, numeric_owner=True)
    except tarfile.TarError as error:
        raise ObjectDamaged(f"{name} is no tar archive: {error}") from None


def _ours(member: tarfile.TarInfo, target: FilePath, owner: Account | None) -> tarfile.TarInfo:
    """Refuses what would leave the directory, also through a link that came before; nobody else may write."""
    place = os.path.realpath(target / member.name)
    if os.path.commonpath((place, os.path.realpath(target))) != os.path.realpath(target):
        raise tarfile.TarError(f"{member.name!r} lies outside")
    member.mode &= 0o755
    if owner is not None:
        member.uid, member.gid, member.uname, member.gname = owner.uid, owner.gid, "", ""
    return member


def _write(file: FilePath, data: bytes, owner: Account | None) -> None:
    file.write_bytes(data)
    file.chmod(0o600)
    if owner is not None:
        os.chown(file, owner.uid, owner.gid)
