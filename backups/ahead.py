"""The content of a snapshot's archive while it comes: parts are fetched, unpacked and used at the same time.

Three steps, each in threads of its own: the network and the checksums of parts, zstd, and whoever takes the pieces; all
of them let others run meanwhile. Memory is bounded: so many parts, and a few pieces that are used over and over.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, cast

from backups.catalog import Part
from backups.errors import ObjectDamaged
from backups.repository import Path
from postgres.defaults import SMALL_MB
from postgres.server_files import machine_memory_mb

WORKERS = 2  # parts fetched while one is unpacked
PIECES = 4
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


def _fetched(path: Path, parts: tuple[Part, ...], pool: ThreadPoolExecutor, workers: int) -> Iterator[bytes]:
    """The content of `parts` in order, the next ones on their way meanwhile."""
    waiting: list[tuple[Part, Future[bytes]]] = []
    rest = list(reversed(parts))

    def ask() -> None:
        while rest and len(waiting) < workers:
            part = rest.pop()
            waiting.append((part, pool.submit(path.fetch_part, part)))

    ask()
    while waiting:
        part, coming = waiting.pop(0)
        stored = coming.result()
        ask()
        yield from path.opened(part, stored)
        del coming, stored  # else held while the next one comes


class _Unpacker(threading.Thread):
    """Fills empty buffers with the plain bytes of a zstd stream, until it ends or nobody wants more."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        super().__init__(name="unpack", daemon=True)
        self._packed = cast(IO[bytes], _Joined(parts))
        self._full: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._empty: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        self._failed: BaseException | None = None
        for _ in range(PIECES):
            self._empty.put(bytearray(PIECE_BYTES))

    def run(self) -> None:
        try:
            self._unpack()
        except BaseException as error:  # raised again where the pieces are used
            self._failed = error
        self._full.put(None)

    def _unpack(self) -> None:
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(
            self._packed, read_size=PIECE_BYTES, read_across_frames=True
        )
        try:
            while (buffer := self._empty.get()) is not None:
                count = reader.readinto(buffer)
                if not count:
                    return
                self._full.put(memoryview(buffer)[:count])
        except zstandard.ZstdError as error:
            raise ObjectDamaged(f"a part does not unpack: {error}") from None

    def pieces(self) -> Iterator[memoryview]:
        """Each is valid until the next is asked for. Raises what the thread failed with."""
        while (piece := self._full.get()) is not None:
            yield piece
            self._empty.put(cast(bytearray, piece.obj))
        if self._failed is not None:
            raise self._failed

    def end(self) -> None:
        self._empty.put(None)
        self.join()


@contextmanager
def plain(path: Path, parts: tuple[Part, ...], told: Callable[[int], None]) -> Iterator[Iterator[memoryview]]:
    """The plain bytes of an archive in pieces; `told`: how many with each. Raises ObjectDamaged, RepositoryError."""

    def counted(pieces: Iterator[memoryview]) -> Iterator[memoryview]:
        for piece in pieces:
            told(len(piece))
            yield piece

    workers = WORKERS if machine_memory_mb() >= SMALL_MB else 1
    with ThreadPoolExecutor(workers, thread_name_prefix="fetch") as pool:
        unpacker = _Unpacker(_fetched(path, parts, pool, workers))
        unpacker.start()
        try:
            yield counted(unpacker.pieces())
        finally:
            unpacker.end()
