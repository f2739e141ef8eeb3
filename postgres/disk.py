"""The keeper's own durable words, in state.json beside PGDATA."""

from __future__ import annotations

from pathlib import Path

from cluster.codec import decode, encode
from cluster.model import Disk
from postgres.files import DiskThread, read_durably, write_atomically

WRITE_S = 10.0


class StateFile:
    """A `Disk` in a file of its own: replaced as a whole, and on disk, file and directory, before `write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disk = DiskThread()

    async def read(self) -> Disk:
        """What was written last; an empty Disk when nothing ever was. Raises StoredFormatError for a newer format.

        It is on disk before it is answered: an agent that was killed in the middle of a write may have left words that
        only the system's memory holds, and whoever reads them may tell them to others.
        """
        try:
            data = await self._disk.do(lambda: read_durably(self._path), WRITE_S)
        except FileNotFoundError:
            return Disk()
        return decode(Disk, data, str(self._path))

    async def write(self, disk: Disk) -> None:
        text = encode(disk).decode()
        await self._disk.do(lambda: write_atomically(self._path, text, owner=None, durable=True), WRITE_S)
