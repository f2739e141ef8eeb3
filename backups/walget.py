"""Gives PostgreSQL WAL out of a repository during recovery, the next segments fetched ahead."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path as FilePath

from backups import layout
from backups.errors import ObjectMissing, RepositoryError, RestorePrevented
from backups.layout import Segment, segment_of
from backups.repository import Path
from backups.spaces import Guard, suspect_file
from backups.stream import assemble
from postgres.command import Account

AHEAD = 3  # segments that are fetched at once
SPOOLED = ".fetched-"  # PostgreSQL looks at no such name in pg_wal


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is here, and whether it may create a tablespace."""

    place: FilePath
    suspected: bool


class WalFetcher:
    """Answers `get` lines. WAL beyond `highest_timeline` is kept from PostgreSQL: it goes where it was sent."""

    def __init__(
        self,
        path: Path,
        data: FilePath,
        *,
        highest_timeline: int,
        segment_bytes: int,
        owner: Account | None,
        only: frozenset[Segment] | None = None,
        planned: Callable[[Segment], bool] = lambda _: False,
    ) -> None:
        """`data`: the data directory that is being recovered; nothing is written outside of it. `only`: exactly these
        segments are given, and no history file; None: whatever is archived. `planned`: those that were seen before, so
        that the WAL does not end there: a volume that is not mounted any more has nothing in it."""
        self._path = path
        self._data = data
        self._highest = highest_timeline
        self._segment_bytes = segment_bytes
        self._owner = owner
        self._only = only
        self._planned = planned
        self._guard = Guard()
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="wal-get")
        self._lock = threading.Lock()
        for left in (data / "pg_wal").glob(f"{SPOOLED}*"):  # by somebody who was killed
            left.unlink()
        self._numbers = itertools.count()
        self._ahead: dict[str, Future[Fetched]] = {}
        self.last = ""  # the last segment that was given
        self.failure: RepositoryError | RestorePrevented | None = None  # why recovery was told to stop
        self.asked = -1  # the highest number of a segment that recovery has asked for

    def stop(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._forget(set(self._ahead))

    def handle(self, fields: list[str]) -> str:
        """A line of restore_command: `get`, name, file to write."""
        if len(fields) != 3 or fields[0] != "get" or not layout.archivable(fields[1]):
            return "no such file is in the archive"
        name, target = fields[1], FilePath(fields[2])
        segment = segment_of(name, self._segment_bytes)
        if segment is not None:
            self.asked = max(self.asked, segment.number)
        if self._only is not None and segment not in self._only:
            return "no"
        if int(name[:8], 16) > self._highest and not layout.HISTORY.match(name):
            return "no"  # a later branch is not ours; that it exists keeps PostgreSQL from taking its number again
        try:
            try:
                self._give(name, target)
            except ObjectMissing:
                if self._in_pieces(segment, name, target):
                    return "ok"
                if segment is not None and self._planned(segment):
                    raise
                return "no"
        except RestorePrevented as error:
            self.failure = error
        except RepositoryError as error:
            self.failure = RepositoryError(f"the repository failed during recovery: {name}: {error}")
        except OSError as error:
            self.failure = RestorePrevented(f"{target} cannot be written: {error.strerror or error}")
        else:
            self.last = name if segment is not None else self.last
            return "ok"
        return f"stop {self.failure}"

    def _in_pieces(self, segment: Segment | None, name: str, target: FilePath) -> bool:
        """The segment in which the archive ends may be there in part: the last that recovery gets."""
        if self._only is not None or segment is None or segment.timeline != self._highest:
            return False
        content = assemble(self._path, name, self._segment_bytes)
        if content is None:
            return False
        self._checked(target).unlink(missing_ok=True)
        self._write(target, (content,))
        self._guard.look(target, name, suspected=True)
        return True

    def _give(self, name: str, target: FilePath) -> None:
        """Put the file where it is wanted, and have the next ones come."""
        self._checked(target)
        with self._lock:
            future = self._ahead.pop(name, None) or self._pool.submit(self._fetch, name)
            segment = segment_of(name, self._segment_bytes)
            if segment is not None:
                following = [Segment(segment.timeline, segment.number + i) for i in range(1, AHEAD)]
                wanted = {s.name(self._segment_bytes) for s in following if self._only is None or s in self._only}
                self._forget(self._ahead.keys() - wanted)
                for new in sorted(wanted - self._ahead.keys()):
                    self._ahead[new] = self._pool.submit(self._fetch, new)
        fetched = future.result()
        try:
            if segment is not None:
                self._guard.look(fetched.place, name, suspected=fetched.suspected)
            fetched.place.replace(target)
        finally:
            _remove(future)  # if it is still there

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            future = self._ahead.pop(name)
            if not future.cancel():
                future.add_done_callback(_remove)

    def _fetch(self, name: str) -> Fetched:
        """Store a file beside the one that PostgreSQL reads."""
        place = self._data / "pg_wal" / f"{SPOOLED}{next(self._numbers)}-{name}"
        try:
            self._write(place, self._path.wal_pieces(name))
            return Fetched(place, suspect_file(place))
        except BaseException:
            place.unlink(missing_ok=True)
            raise

    def _checked(self, target: FilePath) -> FilePath:
        if target.parent.resolve() != (self._data / "pg_wal").resolve():
            raise PermissionError(f"{target} is not in pg_wal of {self._data}")
        return target

    def _write(self, place: FilePath, pieces: Iterable[bytes]) -> None:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            if self._owner is not None:
                os.fchown(descriptor, self._owner.uid, self._owner.gid)
            file.writelines(pieces)


def _remove(fetched: Future[Fetched]) -> None:
    if fetched.exception() is None:
        fetched.result().place.unlink(missing_ok=True)
