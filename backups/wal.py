"""Archives WAL: answers PostgreSQL's archive_command, and pushes ahead of it in parallel.

Theory of operation. PostgreSQL asks for one segment after the other and may forget a segment only after our `ok`,
which comes when it is durable in the repository. Meanwhile we look which files are ready next, and store those as well,
so that later questions are answered at once. PostgreSQL may ask for anything again.

Only the primary of an open term archives, told by its agent: a branch that was never opened must not be found by a
restore. What its dead predecessor had not archived, the new primary has received as a standby: it is pushed first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

from backups import layout
from backups.errors import DifferentContent, RepositoryError, RepositoryUnavailable
from backups.layout import Fork, segment_of
from backups.repository import Path
from backups.segments import wrong_with
from backups.walqueue import Queue, look, ready_names

log = logging.getLogger("flypg.backups")
OPEN_WAIT_S = 10.0  # a new primary archives its history file before its term is open: let it wait, rather than fail
LEFT_S = 30.0  # but one that has just been replaced is asked while it stops, and its cluster waits for that
DRAIN_S = 1.0  # how long a file may take while a switchover waits
NOT_OPEN = "this node is not the primary of an open term"
ANSWER_S = 50.0  # our client gives up after 60
AHEAD = (
    256  # names that one look at the directory is good for: with thousands that wait, a look takes longer than a file
)


@dataclass(frozen=True, slots=True)
class WalStatus:
    """How archiving stands. Times are seconds since 1970; None means never."""

    last: str = ""  # the last file that is in the repository
    last_at: float | None = None
    archived: int = 0  # files since this process started
    failed: int = 0
    error: str = ""  # of the last failure; "" once a file got through
    conflicts: int = 0  # files that were refused because others have their names
    dropped: int = 0  # files that PostgreSQL was allowed to forget although they were not stored
    dropped_at: float | None = None  # when the last of them was
    dropped_name: str = ""  # which that was
    queue: Queue = field(default_factory=Queue)


@dataclass(frozen=True, slots=True)
class WalOptions:
    workers: int = 4
    queue_limit_bytes: int = 0  # of WAL that waits; 0 means no limit
    drop_past_limit: bool = False  # past the limit: let PostgreSQL forget WAL, which leaves a gap in the archive


class WalArchiver:
    """Answers `push`. Several threads may ask."""

    def __init__(
        self,
        path: Path,
        pg_wal: FilePath,
        *,
        segment_bytes: int,
        options: WalOptions = WalOptions(),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._pg_wal = pg_wal
        self._segment_bytes = segment_bytes
        self._options = options
        self._wall = wall
        self._pool = ThreadPoolExecutor(options.workers, thread_name_prefix="wal-push")
        self._lock = threading.RLock()  # a file may be stored before its callback is set: then that runs under the lock
        self._inflight: dict[str, Future[None]] = {}
        self._done: set[str] = set()  # stored ahead of being asked for
        self._upcoming: list[str] = []  # what PostgreSQL will ask for next, as we last saw
        self._standing = threading.Condition()
        self._timeline: int | None = None  # of the open term that this node is primary of
        self._draining = False
        self._left_at = -LEFT_S  # when it was last told that it is not any more, on the monotonic clock
        self._stopping = threading.Event()
        self._letting_go = False
        self._status = WalStatus()
        self._status_lock = threading.Lock()

    def stop(self) -> None:
        self._stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def stand(self, timeline: int | None, *, draining: bool = False) -> None:
        """Told by the agent: primary of an open term on `timeline`, or not (None). `draining`: a switchover waits."""
        with self._standing:
            opened = timeline is not None and timeline != self._timeline
            if timeline is None and self._timeline is not None:
                self._left_at = time.monotonic()
            self._timeline, self._draining = timeline, draining
            self._standing.notify_all()
        if opened and timeline is not None:
            self._pool.submit(self._backfill, timeline)

    def handle(self, fields: list[str]) -> str:
        """A line of PostgreSQL's archive_command: `push`, path."""
        if len(fields) != 2 or fields[0] != "push":
            return f"no {fields[0]!r} is not understood"
        file = FilePath(fields[1])
        try:
            return self._push(file.name)
        except (RepositoryError, OSError) as error:
            self._note_failure(error)
            word = "end" if self._draining else "no"
            return self._past_limit(file.name) or f"{word} {file.name}: {error}"

    def _push(self, name: str) -> str:
        if not layout.archivable(name):
            return f"no {name} is not a WAL file"
        timeline, draining = self._wait_until_open()
        if timeline is None:
            return f"{'end' if self._left() else 'no'} {name}: {NOT_OPEN}"
        with self._lock:
            if name in self._done:
                self._done.discard(name)
                return "ok"
        if self._status.error and (let_go := self._past_limit(name)):
            return let_go
        with self._lock:
            future = self._submit(name)
        if not draining:
            self._look_ahead(name)
        try:
            return self._wait(name, future)
        finally:
            with self._lock:
                self._done.discard(name)

    def _wait(self, name: str, future: Future[None]) -> str:
        """`ok` once it is stored. A switchover that begins meanwhile is not held up: PostgreSQL's stop waits for us."""
        began = time.monotonic()
        while True:
            try:
                future.result(timeout=0.2)
                return "ok"
            except TimeoutError:
                waited = time.monotonic() - began
            if self._status.error and (let_go := self._past_limit(name)):
                return let_go  # a repository that hangs would cost most of a minute for each file
            if self._timeline is None:
                return f"end {name}: {NOT_OPEN}"
            if self._draining and waited > DRAIN_S:
                return f"end {name}: a switchover waits; the next primary archives it"
            if waited > ANSWER_S:
                raise RepositoryUnavailable(f"not stored within {ANSWER_S:g} s; it goes on in the background")

    def _wait_until_open(self) -> tuple[int | None, bool]:
        with self._standing:
            left = self._left()
            self._standing.wait_for(lambda: left or self._timeline is not None, OPEN_WAIT_S)
            return self._timeline, self._draining

    def _left(self) -> bool:
        """Have we just been replaced? PostgreSQL is stopping then, and is to ask no more."""
        return self._timeline is None and time.monotonic() - self._left_at < LEFT_S

    def _submit(self, name: str) -> Future[None]:
        """Store `name` in the background, once. Call with the lock held."""
        future = self._inflight.get(name)
        if future is None:
            future = self._pool.submit(self._store, name)
            self._inflight[name] = future
            future.add_done_callback(lambda f: self._settle(name, f))
        return future

    def _settle(self, name: str, future: Future[None]) -> None:
        with self._lock:
            self._inflight.pop(name, None)
            if not future.cancelled() and future.exception() is None:
                self._done.add(name)

    def _look_ahead(self, asked: str) -> None:
        """Store what PostgreSQL will ask for next, as far as workers are free."""
        with self._lock:
            at = self._upcoming.index(asked) + 1 if asked in self._upcoming else len(self._upcoming)
            self._upcoming = self._upcoming[at:]
            look = len(self._upcoming) < self._options.workers
        ready = self.ready() if look else []
        with self._lock:
            if look:
                self._upcoming = ready[:AHEAD]
                self._done &= {*ready, asked}
            free = self._options.workers - len(self._inflight)
            for name in self._upcoming:
                if free <= 0:
                    return
                if name not in self._done and name not in self._inflight:
                    self._submit(name)
                    free -= 1

    def ready(self) -> list[str]:
        """The files that PostgreSQL wants archived, in its order."""
        return ready_names(self._pg_wal)

    def _store(self, name: str) -> None:
        """Store one file. Raises RepositoryError or OSError."""
        file = self._pg_wal / name
        if layout.SEGMENT.match(name) or layout.PARTIAL.match(name):
            with file.open("rb", buffering=0) as segment:
                head, size = segment.read(64), os.fstat(segment.fileno()).st_size
            problem = wrong_with(
                name,
                head,
                size,
                system_id=self._path.name.system_id,
                segment_bytes=self._segment_bytes,
            )
            if problem:
                raise RepositoryError(problem)
        try:
            self._path.put_wal(name, file)
        except DifferentContent as error:
            self._note(conflicts=1)
            log.error("wal_conflict", extra={"file": name, "error": str(error)})
            if not (layout.PARTIAL.match(name) or self._left_behind(name)):
                raise
        self._note(archived=1, last=name, last_at=self._wall(), error="")

    def _left_behind(self, name: str) -> bool:
        """Is it WAL that this node wrote on a timeline that the cluster has left before it? Then nobody needs it."""
        segment = segment_of(name, self._segment_bytes)
        forks = self.ancestors(self._timeline or 0)
        return segment is not None and any(
            f.timeline == segment.timeline and segment.number >= f.lsn // self._segment_bytes for f in forks
        )

    def ancestors(self, timeline: int) -> tuple[Fork, ...]:
        """The history of `timeline` as this node knows it."""
        try:
            return layout.parse_history((self._pg_wal / f"{timeline:08X}.history").read_text())
        except FileNotFoundError:
            return ()

    def _backfill(self, timeline: int) -> None:
        """Push what the primaries before us have left unarchived, as far as this node has it."""
        try:
            self._push_missing(timeline)
        except (RepositoryError, OSError) as error:
            self._note_failure(error)
            if self._timeline == timeline and not self._stopping.wait(5.0):
                with contextlib.suppress(RuntimeError):  # we are being stopped
                    self._pool.submit(self._backfill, timeline)

    def _push_missing(self, timeline: int) -> None:
        forks = self.ancestors(timeline)
        limits = {f.timeline: f.lsn // self._segment_bytes for f in forks}
        here = sorted(os.listdir(self._pg_wal))
        histories = [n for n in here if layout.HISTORY.match(n) and int(n[:8], 16) in {*limits, timeline}]
        segments = [
            n for n in here if (s := segment_of(n, self._segment_bytes)) and s.number < limits.get(s.timeline, 0)
        ]
        stored: set[str] = set()
        for old in {int(n[:8], 16) for n in (*histories, *segments)}:
            stored.update(self._path.wal_names(old))
        for name in (*histories, *segments):
            if name not in stored and self._timeline == timeline:
                with contextlib.suppress(
                    FileNotFoundError
                ):  # PostgreSQL has just recycled it: it was archived, or a gap
                    self._store(name)
                    log.info("wal_backfilled", extra={"file": name})

    def _note_failure(self, error: Exception) -> None:
        if str(error) != self._status.error:
            log.warning("wal_not_archived", extra={"error": str(error)})
        self._note(failed=1, error=str(error))

    def _note(self, *, archived: int = 0, failed: int = 0, conflicts: int = 0, dropped: int = 0, **facts: Any) -> None:
        with self._status_lock:
            now = self._status
            self._status = replace(
                now,
                archived=now.archived + archived,
                failed=now.failed + failed,
                conflicts=now.conflicts + conflicts,
                dropped=now.dropped + dropped,
                **facts,
            )

    def _past_limit(self, name: str) -> str:
        """`ok` when the operator has chosen a gap in the archive over a full disk, and the limit is passed; else "".

        Once there is a gap, what waits behind it is of little use: it is let go down to half the limit, so that the
        next attempt at a repository that is still away does not take the disk past the limit again.
        """
        waiting = len(self.ready()) * self._segment_bytes
        limit = self._options.queue_limit_bytes // (2 if self._letting_go else 1)
        self._letting_go = self._options.drop_past_limit and 0 < limit < waiting
        if not self._letting_go or layout.HISTORY.match(name):
            return ""  # a history file is tiny, and without it no restore crosses this failover
        self._note(dropped=1, dropped_at=self._wall(), dropped_name=name)
        log.error("wal_dropped", extra={"file": name, "waiting_bytes": waiting})
        return "ok"

    def status(self) -> WalStatus:
        with self._lock:
            stored = set(self._done)
        error = self._status.error if self._timeline is not None else ""  # else what was wrong is another's to say
        return replace(self._status, error=error, queue=look(self._pg_wal, self._timeline, self._segment_bytes, stored))
