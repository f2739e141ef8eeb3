"""How bytes are compressed, sealed and checked before they enter a repository.

Every object is one zstd frame with a checksum, readable by `zstd -dc`; the parts of a snapshot are that when they are
put together. With a key an object is sealed around that: a header, then chunks of AES-256-GCM in the STREAM
construction. Each object has a key of its own (HKDF of the repository's key and a random salt), the nonce counts chunks
and marks the last, and the object's name is authenticated with the header: bytes that were cut short, reordered, or
moved to another name do not open.

    "FPE1" | key id, 8 bytes | salt, 32 bytes | chunk, chunk, …       chunk: 1 MiB of plain text + 16 bytes of tag
    nonce: 11 bytes counter, big-endian | 1 byte: 1 for the last chunk, else 0
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from backups.errors import ObjectDamaged
from cluster.errors import SettingsError

if TYPE_CHECKING:
    import zstandard

MAGIC = b"FPE1"
SEALED = ".enc"  # the end of the name of what is sealed
CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
HEADER_BYTES = 4 + 8 + 32


class SealingKey:
    """The key of a repository: 32 bytes that an operator keeps somewhere else, too."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == 32
        self._secret = secret
        self.key_id = hashlib.sha256(b"flypg key id" + secret).digest()[:8]

    def _of_object(self, salt: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(hashes.SHA256(), 32, salt, b"flypg object v1").derive(self._secret)

    def seal(self, plain: bytes, name: str) -> bytes:
        """`plain`, so that only this key opens it, and only under `name`."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        salt = os.urandom(32)
        header = MAGIC + self.key_id + salt
        cipher = AESGCM(self._of_object(salt))
        about = header + name.encode()
        view = memoryview(plain)
        count = max(1, -(-len(plain) // CHUNK_BYTES))
        out = io.BytesIO()
        out.seek(len(header) + len(plain) + count * TAG_BYTES - 1)
        out.write(b"\0")  # as large as it will be: in memory once, not also in chunks or while it grows
        out.seek(0)
        out.write(header)
        for i in range(count):
            nonce = i.to_bytes(11, "big") + (b"\1" if i == count - 1 else b"\0")
            out.write(cipher.encrypt(nonce, view[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES], about))
        return out.getvalue()

    def open(self, sealed: bytes, name: str) -> bytes:
        """What was sealed under `name`. Raises ObjectDamaged when these bytes are not that."""
        return b"".join(self.opened(sealed, name))

    def opened(self, sealed: bytes, name: str) -> Iterator[bytes]:
        """The same chunk by chunk: each is authentic, and the last one is known to be the last."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if len(sealed) < HEADER_BYTES + TAG_BYTES or sealed[:4] != MAGIC:
            raise ObjectDamaged(f"{name}: not an encrypted object of flypg")
        header = sealed[:HEADER_BYTES]
        if header[4:12] != self.key_id:
            raise ObjectDamaged(
                f"{name}: sealed with key {header[4:12].hex()}, but the key given is {self.key_id.hex()}"
            )
        cipher = AESGCM(self._of_object(header[12:]))
        body = memoryview(sealed)[HEADER_BYTES:]
        step = CHUNK_BYTES + TAG_BYTES
        count = -(-len(body) // step)
        for i in range(count):
            nonce = i.to_bytes(11, "big") + (b"\1" if i == count - 1 else b"\0")
            try:
                chunk = cipher.decrypt(nonce, body[i * step : (i + 1) * step], header + name.encode())
            except InvalidTag:
                raise ObjectDamaged(f"{name}: chunk {i} of {count} was altered, cut short or moved here") from None
            yield chunk


def read_keys(text: str, path: str) -> tuple[SealingKey, ...]:
    """The keys from the environment or from a file of them: 64 hexadecimal digits each, the newest first.

    The first seals; the others still open what was sealed before a change of keys. Empty: no encryption is wished.
    """
    if text and path:
        raise SettingsError("FLYPG_SNAPSHOT_KEY_FILE", path, "set either this or FLYPG_SNAPSHOT_KEY, not both")
    where = "FLYPG_SNAPSHOT_KEY" if text else "FLYPG_SNAPSHOT_KEY_FILE"
    if path:
        try:
            text = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(where, path, f"cannot be read: {error}") from None
        if not text:
            raise SettingsError(where, path, "is empty; 64 hexadecimal digits are expected (openssl rand -hex 32)")
    return tuple(_key(word, where, path) for word in text.split())


def _key(word: str, where: str, path: str) -> SealingKey:
    try:
        secret = bytes.fromhex(word)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise SettingsError(where, path or "…", "must be 64 hexadecimal digits (openssl rand -hex 32)")
    return SealingKey(secret)


class Codec:
    """Compression, and encryption when there is a key. Safe to use from several threads.

    `older`: keys of before; what they have sealed still opens.
    """

    def __init__(self, *, level: int = 1, key: SealingKey | None = None, older: tuple[SealingKey, ...] = ()) -> None:
        self.level = level
        self.key = key
        self.suffix = SEALED if key else ""
        self._keys = {k.key_id: k for k in reversed((key, *older)) if k is not None}

    @property
    def suffixes(self) -> tuple[str, str]:
        """Of the names of objects, as written now, and as written when there was no key yet, or still was one."""
        return (SEALED, "") if self.key else ("", SEALED)

    def opens(self, key_id: str) -> bool:
        """Is the key given that something was sealed with? `key_id`: hexadecimal, "" for what was not sealed."""
        return not key_id or bytes.fromhex(key_id) in self._keys

    def stream(self) -> zstandard.ZstdCompressionObj:
        """A compressor that takes one frame piece by piece."""
        import zstandard

        return zstandard.ZstdCompressor(level=self.level, write_checksum=True).compressobj()

    def pack(self, plain: bytes, name: str) -> bytes:
        """One object: compressed, then sealed under `name`."""
        import zstandard

        frame = zstandard.ZstdCompressor(level=self.level, write_checksum=True).compress(plain)
        return self.seal(frame, name)

    def pack_file(self, file: Path, name: str) -> bytes:
        """The same of a file, which is never in memory as a whole."""
        import zstandard

        with file.open("rb", buffering=0) as plain:
            size = os.fstat(plain.fileno()).st_size
            frame = zstandard.ZstdCompressor(level=self.level, write_checksum=True).compressobj(size=size)
            buffer = memoryview(bytearray(CHUNK_BYTES))
            pieces = []
            try:
                while count := plain.readinto(buffer):
                    pieces.append(frame.compress(buffer[:count]))
                pieces.append(frame.flush())
            except zstandard.ZstdError as error:
                raise ObjectDamaged(f"{file}: changed while it was read: {error}") from None
        return self.seal(b"".join(pieces), name)

    def seal(self, frame: bytes, name: str) -> bytes:
        return self.key.seal(frame, name) if self.key else frame

    def open(self, stored: bytes, name: str) -> bytes:
        """The zstd frame inside a stored object. What is named as sealed must be; what was stored before there was a
        key is not, and opens."""
        pieces = self.opened(stored, name)
        return stored if stored[:4] != MAGIC and not name.endswith(SEALED) else b"".join(pieces)

    def opened(self, stored: bytes, name: str) -> Iterator[bytes]:
        """The same piece by piece, so that it need not be in memory twice."""
        if stored[:4] != MAGIC:
            if name.endswith(SEALED):
                raise ObjectDamaged(f"{name}: not an encrypted object of flypg")
            yield stored
            return
        if not self._keys:
            raise ObjectDamaged(
                f"{name}: is encrypted; give the key with FLYPG_SNAPSHOT_KEY or FLYPG_SNAPSHOT_KEY_FILE"
            )
        made_with = stored[4:12]
        if (key := self._keys.get(made_with)) is None:
            given = ", ".join(k.hex() for k in self._keys)
            raise ObjectDamaged(f"{name}: sealed with key {made_with.hex()}, but the key given is {given}")
        yield from key.opened(stored, name)

    def unpack(self, stored: bytes, name: str, limit: int = 1 << 30) -> bytes:
        """What `pack` was given. Raises ObjectDamaged for anything else, and for more than `limit` bytes."""
        return b"".join(self.unpacked(stored, name, limit))

    def unpacked(self, stored: bytes, name: str, limit: int = 1 << 30) -> Iterator[bytes]:
        """The same in pieces of 128 KiB. Only when the last was taken is it known that nothing was cut off."""
        import zstandard

        frame = memoryview(self.open(stored, name))
        try:
            size = zstandard.frame_content_size(frame)  # -1: not said, which `pack` never leaves out
            if not 0 <= size <= limit:
                raise ObjectDamaged(f"{name}: says that it unpacks to {size} bytes; expected at most {limit}")
            unpacking = zstandard.ZstdDecompressor().decompressobj()
            for block in _blocks(frame, zstandard.frame_header_size(frame)):
                piece = unpacking.decompress(block)
                size -= len(piece)
                yield piece
            if not unpacking.eof or size or unpacking.unused_data:
                raise ObjectDamaged(f"{name}: is not as long as it says")
        except zstandard.ZstdError as error:
            raise ObjectDamaged(f"{name}: {error}") from None


def _blocks(frame: memoryview, at: int) -> Iterator[memoryview]:
    """A zstd frame cut where its blocks end (RFC 8878, 3.1.1.2): each unpacks to 128 KiB at most, whatever it holds."""
    yield frame[:at]
    while at < len(frame):
        head = int.from_bytes(frame[at : at + 3], "little")
        last, repeated, size = head & 1, head >> 1 & 3 == 1, head >> 3
        end = len(frame) if last else at + 3 + (1 if repeated else size)
        yield frame[at:end]
        at = end


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
