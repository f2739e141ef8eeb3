"""Writes a tar of PostgreSQL's into a directory while its bytes come by, without copying them on the way.

PostgreSQL sends the plainest kind of tar there is: files, directories and, at most, links to tablespaces, with names of
up to 100 bytes. Anything else is refused, and so is whatever would leave the directory, also through a link that came
before, or would be written twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backups.errors import ObjectDamaged
from backups.manifest import FileCheck
from backups.writeback import WriteBack
from postgres.command import Account

BLOCK_BYTES = 512
FILE, OLD_FILE, LINK, DIRECTORY = b"0", b"\0", b"2", b"5"
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Member:
    """The header of one file, directory or link."""

    name: str
    kind: bytes
    mode: int
    size: int  # bytes of content that follow
    link: str  # where a link leads


class Stream:
    """Pieces one after the other. What is handed out is valid until the next call."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def some(self, at_most: int) -> memoryview:
        """The next bytes; none at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest = piece
        found, self._rest = self._rest[:at_most], self._rest[at_most:]
        return found

    def each(self, count: int) -> Iterator[memoryview]:
        """The next `count` bytes. Raises ObjectDamaged when there are fewer."""
        while count:
            found = self.some(count)
            if not found:
                raise ObjectDamaged("it is cut short")
            count -= len(found)
            yield found

    def whole(self, count: int) -> bytes:
        return b"".join(bytes(piece) for piece in self.each(count))


def parse_header(block: bytes) -> Member:
    """Pure. Raises ObjectDamaged."""
    try:
        if int(block[148:156].rstrip(b" \0"), 8) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            raise ValueError("a header's checksum does not fit")
        prefix, name = _text(block[345:500]), _text(block[:100])
        return Member(
            name=(f"{prefix}/{name}" if prefix else name).removeprefix("./"),  # as PostgreSQL sends one of them
            kind=block[156:157],
            mode=_number(block[100:108]),
            size=_number(block[124:136]),
            link=_text(block[157:257]),
        )
    except ValueError as error:
        raise ObjectDamaged(f"it is no tar archive: {error}") from None


def _text(field: bytes) -> str:
    return os.fsdecode(field.partition(b"\0")[0])


def _number(field: bytes) -> int:
    """Octal digits, or binary where these are too few."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.rstrip(b" \0") or b"0", 8)


class Untar:
    """Writes into `target`, which exists; everything belongs to `owner`, and nobody else may write."""

    def __init__(
        self,
        target: Path,
        owner: Account | None,
        disk: WriteBack,
        check: Callable[[str], FileCheck | None] = lambda _: None,
    ) -> None:
        self._target = os.path.realpath(target)
        self._owner = owner
        self._disk = disk
        self._check = check  # told the name of each file; what it returns is shown its content
        self._made = {""}  # directories that are known to be ours

    def all(self, pieces: Iterator[memoryview]) -> None:
        """Write all that is in a tar. Raises ObjectDamaged."""
        stream = Stream(pieces)
        while any(header := stream.whole(BLOCK_BYTES)):
            member = parse_header(header)
            place = self._place(member.name.removesuffix("/"))
            try:
                self._write(member, place, stream)
            except FileExistsError:
                raise ObjectDamaged(f"{member.name!r} comes twice") from None
        while rest := stream.some(1 << 20):
            if any(rest):
                raise ObjectDamaged("something follows its end")

    def _place(self, name: str) -> str:
        """Where `name` lies; its directory is made. Raises ObjectDamaged when that would be somewhere else."""
        above, _, last = name.rpartition("/")
        place = os.path.join(self._target, above)
        if (
            name.startswith("/")
            or last in ("", ".", "..")
            or (above not in self._made and os.path.realpath(place) != place)
        ):
            raise ObjectDamaged(f"{name!r} lies outside")
        if above not in self._made:
            self._make(place)
            self._made.add(above)
        return os.path.join(place, last)

    def _make(self, place: str, mode: int = 0o700) -> None:
        if os.path.isdir(place) and not os.path.islink(place):
            return
        self._make(os.path.dirname(place))
        os.mkdir(place, mode)
        if self._owner is not None:
            os.chown(place, self._owner.uid, self._owner.gid)

    def _write(self, member: Member, place: str, stream: Stream) -> None:
        mode = member.mode & 0o755
        if member.kind in (FILE, OLD_FILE):
            descriptor = os.open(place, NEW, 0o600)
            try:
                if self._owner is not None:
                    os.fchown(descriptor, self._owner.uid, self._owner.gid)
                os.fchmod(descriptor, mode)
                self._fill(descriptor, member, stream)
            finally:
                os.close(descriptor)
        elif member.kind == DIRECTORY:
            self._make(place)
            os.chmod(place, mode)
        elif member.kind == LINK:
            os.symlink(member.link, place)
            if self._owner is not None:
                os.lchown(place, self._owner.uid, self._owner.gid)
        else:
            raise ObjectDamaged(f"{member.name!r} is of a kind that PostgreSQL does not send: {member.kind!r}")

    def _fill(self, descriptor: int, member: Member, stream: Stream) -> None:
        check = self._check(member.name)
        unsent = 0
        for piece in stream.each(member.size):
            if check is not None:
                check.update(piece)
            rest = piece
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            unsent = self._disk.send(descriptor, unsent + len(piece))
        self._disk.send(descriptor, unsent, ended=True)
        if check is not None:
            check.finish()
        stream.whole(-member.size % BLOCK_BYTES)
