"""A path of a repository that may be away when the work on it begins: WAL must be answered for meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path as FilePath

from backups import layout
from backups.directory import DirectoryStore
from backups.errors import RepositoryUnavailable
from backups.repository import UNMOUNTED, Path, PathInfo, Repository


class LatePath(Path):
    """A path that begins with the first WAL that is stored in it: not before, so that its repository may be away.

    What has begun is not begun again: where a file system is not mounted any more, another disk would take the WAL, and
    PostgreSQL would forget it. `begun`: that is so already.
    """

    def __init__(self, repository: Repository, info: PathInfo, *, begun: bool = False) -> None:
        super().__init__(repository, info.name)
        self._create = not begun
        self._repository = repository
        self._info = info
        self._beginning = threading.Lock()
        self._begun = False

    def _begin(self) -> None:
        with self._beginning:
            if not self._begun:
                self._repository.open(create=self._create)
                self._repository.begin_path(self._info)
                self._begun = True
            elif isinstance(self._store, DirectoryStore) and not self._store.has(layout.MARKER):
                raise RepositoryUnavailable(f"{self._store.describe()}: {layout.MARKER} is gone{UNMOUNTED}")

    def put_wal(self, name: str, content: bytes | FilePath) -> int:
        self._begin()
        return super().put_wal(name, content)

    def put_piece(self, piece: layout.Piece, content: bytes) -> None:
        self._begin()
        super().put_piece(piece, content)
