"""Brings WAL into the repository before its segment is full: an archive that lags seconds, not a segment.

Every few seconds, what was written to the open segment since then is stored as a *piece*, an object of its own: nothing
is sent twice and nothing overwritten. A restore puts the pieces of a segment that is not archived together, and fills
up with zeros, where PostgreSQL's recovery ends. Once the segment itself is archived its pieces go.

The primary of the open term does it, from its own pg_wal, up to where it is flushed: there is no replication
connection, so nothing that could hold WAL back, count as a standby, or acknowledge a commit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

from backups import layout
from backups.errors import RepositoryError
from backups.layout import Segment, segment_at, segment_of
from backups.repository import Path
from backups.walqueue import Queue, ready_names

log = logging.getLogger("flypg.backups")
RETRY_S = 1.0


def whole(pieces: Iterable[tuple[int, int]]) -> int:
    """How many bytes from the beginning of a segment its pieces (from, to) have without a gap. Pure."""
    end = 0
    for start, stop in sorted(pieces):
        if start > end:
            break
        end = max(end, stop)
    return end


def lengths(path: Path, segment_bytes: int) -> dict[Segment, int]:
    """How much of each segment there is in pieces; blocks."""
    found: dict[Segment, list[tuple[int, int]]] = {}
    for info in path.stored("stream/"):
        piece = layout.piece_of(info.key)
        if piece is not None and (segment := segment_of(piece.segment, segment_bytes)) is not None:
            found.setdefault(segment, []).append((piece.start, piece.stop))
    return {segment: whole(pieces) for segment, pieces in found.items()}


def assemble(path: Path, segment: str, segment_bytes: int) -> bytes | None:
    """The segment as far as its pieces go, then zeros; None when there is not one. Blocks."""
    keys = [info.key for info in path.stored(layout.pieces_prefix(segment))]
    pieces = sorted(p for key in keys if (p := layout.piece_of(key)) is not None)
    content = b""
    for piece in pieces:
        if piece.start > len(content):
            break
        content = content[: piece.start] + path.get_piece(piece) + content[piece.stop :]
    return content + b"\0" * (segment_bytes - len(content)) if content else None


@dataclass(frozen=True, slots=True)
class Streamed:
    """WAL of `timeline` from `start` to `stop` is in the repository, in pieces. `at`: when that was, by our clock."""

    timeline: int
    start: int
    stop: int
    at: float


class WalStreamer:
    """Stores pieces in a thread of its own. Told by the agent where the WAL ends."""

    def __init__(
        self,
        path: Path,
        pg_wal: FilePath,
        *,
        segment_bytes: int,
        every_s: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._pg_wal = pg_wal
        self._segment_bytes = segment_bytes
        self._every_s = every_s
        self._wall = wall
        self._target: tuple[int, int, float] | None = None  # timeline, LSN, when that was told
        self._done: Streamed | None = None
        self.error = ""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="wal-stream", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def told(self, timeline: int | None, lsn: int | None) -> None:
        """The primary of the open term has flushed up to `lsn`; None: this node is none, or it is not known."""
        self._target = None if timeline is None or not lsn else (timeline, lsn, self._wall())

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.tick()
                self.error = ""
            except (RepositoryError, OSError) as error:
                if str(error) != self.error:
                    log.warning("wal_not_streamed", extra={"error": str(error)})
                self.error = str(error)
                self._stopping.wait(RETRY_S)

    def tick(self) -> None:
        """Store what is new. Raises RepositoryError or OSError; what was stored before stays, and is gone on from."""
        target, done = self._target, self._done
        if target is None:
            return
        timeline, lsn, at = target
        segment = segment_at(timeline, lsn, self._segment_bytes)
        name, begin = segment.name(self._segment_bytes), segment.number * self._segment_bytes
        if done is None or done.timeline != timeline or done.stop < begin:
            done = Streamed(timeline, begin, begin + self._stored(name), at)
            self._tidy(name)
        if lsn > done.stop:
            start, stop = done.stop - begin, lsn - begin
            with (self._pg_wal / name).open("rb") as file:
                file.seek(start)
                content = file.read(stop - start)
            self._path.put_piece(layout.Piece(name, start, start + len(content)), content)
            done = replace(done, stop=done.stop + len(content))
        self._done = replace(done, at=at)

    def _stored(self, segment: str) -> int:
        """What an archiver before us has stored of it."""
        keys = [info.key for info in self._path.stored(layout.pieces_prefix(segment))]
        return whole((p.start, p.stop) for key in keys if (p := layout.piece_of(key)) is not None)

    def _tidy(self, current: str) -> None:
        """The pieces of segments that are archived by now have had their day."""
        waiting = {*ready_names(self._pg_wal), current}
        found = [(layout.piece_of(info.key), info.key) for info in self._path.stored(f"stream/{current[:8]}/")]
        self._path.remove_wal(key for p, key in found if p is not None and p.segment not in waiting)

    def reach(self, queue: Queue, timeline: int | None) -> Queue:
        """`queue` as it is with what was streamed beyond it."""
        done = self._done
        if done is None or done.timeline != timeline or queue.until is None:
            return queue
        if not done.start <= queue.until < done.stop:
            return queue
        return replace(queue, until=done.stop, until_at=done.at, streamed=True)
