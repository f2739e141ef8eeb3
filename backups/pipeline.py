"""Turns a stream into parts in a repository, with bounded memory: compress in one thread, seal and upload in others.

Memory: (uploaders + 2) parts of `part_bytes` and a few MiB on the way to the compressor. zstd, SHA-256 and the network
let other threads run meanwhile. The first error anywhere ends the stream: the next `write` raises it.

The parts of an archive, put together, are a zstd stream. One that we compress ourselves has a frame for each part; one
that comes compressed is cut wherever a part is full.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable
from typing import Any

from backups.catalog import Part
from backups.codec import Codec

BATCH_BYTES = 1 << 20
RAW_LIMIT = 8  # a part of ours never holds more than this many times `part_bytes` of plain data


class PartWriter:
    """Takes the bytes of one archive after another; hands each part to `put(key, frame)` in parallel."""

    def __init__(
        self,
        codec: Codec,
        put: Callable[[str, bytes], Part],
        *,
        seal: Callable[[str, bytes], tuple[str, bytes]] | None = None,
        part_bytes: int = 8 << 20,
        uploaders: int = 2,
    ) -> None:
        """`seal`: what makes of a frame and its key those that `put` gets; None: they are put as they are."""
        self._codec = codec
        self._put = put
        self._seal = seal
        self._part_bytes = part_bytes
        self._batch: list[bytes | memoryview] = []
        self._batched = 0
        self._raw: queue.Queue[Any] = queue.Queue(maxsize=4)
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._failed: list[BaseException] = []
        self._stopping = threading.Event()
        self._parts: dict[str, dict[int, Part]] = {}
        self._lock = threading.Lock()
        self.stored_bytes = 0
        self._uploaders = [threading.Thread(target=self._upload, name=f"upload-{i}") for i in range(uploaders)]
        self._compressor = threading.Thread(target=self._compress, name="compress")
        for thread in (self._compressor, *self._uploaders):
            thread.daemon = True
            thread.start()

    def begin(self, archive: str, key_of: Callable[[int], str], *, packed: bool = False) -> None:
        """What is written from now on belongs to `archive`; part n gets the key `key_of(n)`. `packed`: it is zstd."""
        self._flush()
        self._parts[archive] = {}
        self._send(self._raw, (archive, key_of, packed))

    def write(self, data: bytes | memoryview) -> None:
        """Raises what an earlier part failed with."""
        self._batch.append(data)
        self._batched += len(data)
        if self._batched >= BATCH_BYTES:
            self._flush()

    def finish(self) -> dict[str, tuple[Part, ...]]:
        """Wait until all is stored; the parts of each archive, in order."""
        self._flush()
        self._send(self._raw, None)
        self._compressor.join()
        for _ in self._uploaders:
            self._send(self._ready, None)
        for thread in self._uploaders:
            thread.join()
        self._raise()
        return {archive: tuple(parts[i] for i in sorted(parts)) for archive, parts in self._parts.items()}

    def abandon(self) -> None:
        """End all threads; what was stored is garbage. Safe to call after `finish`."""
        self._stopping.set()
        for thread in (self._compressor, *self._uploaders):
            thread.join()

    def _flush(self) -> None:
        if self._batch:
            data = b"".join(self._batch)
            self._batch, self._batched = [], 0
            self._send(self._raw, data)

    def _raise(self) -> None:
        if self._failed:
            raise self._failed[0]

    def _send(self, to: queue.Queue[Any], item: Any) -> None:
        while not self._stopping.is_set():
            try:
                to.put(item, timeout=0.5)
                return
            except queue.Full:
                continue
        self._raise()

    def _receive(self, source: queue.Queue[Any]) -> Any:
        while not self._stopping.is_set():
            try:
                return source.get(timeout=0.5)
            except queue.Empty:
                continue
        return None

    def _guarded(self, work: Callable[[], None]) -> None:
        """A thread's failure is the writer's failure, whatever it is; it is raised again where the writer is used."""
        try:
            work()
        except BaseException as error:
            self._failed.append(error)
            self._stopping.set()

    def _compress(self) -> None:
        self._guarded(self._compress_all)

    def _compress_all(self) -> None:
        archive, number, packed = "", 0, False
        key_of: Callable[[int], str] | None = None
        frame: Any = None
        part = io.BytesIO()  # grows where it is, and is given away as it is: no second copy
        raw = 0

        def end_part() -> None:
            nonlocal frame, part, raw, number
            if frame is not None:
                part.write(frame.flush())
            if part.tell() and key_of is not None:
                self._send(self._ready, (archive, number, key_of(number), part.getvalue()))
                number += 1
            frame, part, raw = None, io.BytesIO(), 0

        while (item := self._receive(self._raw)) is not None:
            if isinstance(item, tuple):
                end_part()
                archive, key_of, packed = item
                number = 0
                continue
            if frame is None and not packed:
                frame = self._codec.stream()
            part.write(item if packed else frame.compress(item))
            raw += len(item)
            if part.tell() >= self._part_bytes or raw >= RAW_LIMIT * self._part_bytes:
                end_part()
        if not self._stopping.is_set():
            end_part()

    def _upload(self) -> None:
        self._guarded(self._upload_all)

    def _upload_all(self) -> None:
        while (item := self._receive(self._ready)) is not None:
            archive, number, key, frame = item
            item = None
            if self._seal is not None:
                key, frame = self._seal(key, frame)  # while it is sent, no second copy is in memory
            part = self._put(key, frame)
            frame = b""
            with self._lock:
                self._parts[archive][number] = part
                self.stored_bytes += part.size
