"""Has the disk write a file while the rest of it still comes, so that the sync at the end finds little to do.

Else the kernel keeps up to a tenth of the memory to itself, the disk idles while a restore unpacks, and the restore
waits for the disk after it: of 2 GB a third of the time. What was not sent by the end is written by the sync that
follows; what the disk has refused is an error here, since a later sync might not be told of it again.
"""

from __future__ import annotations

import os
import queue
import threading
from types import TracebackType

SEND_BYTES = 32 << 20  # of one file at a time: each costs a commit of the file system's journal
WHOLE_BYTES = 1 << 20  # a file that has ended is sent from this size on
WAITING = 4  # when the disk is behind, the next time is later, and for more


class WriteBack:
    """A thread that waits for the disk, so that whoever writes need not."""

    def __init__(self) -> None:
        self._asked: queue.Queue[int | None] = queue.Queue(WAITING)
        self._failed: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="write-back", daemon=True)

    def __enter__(self) -> WriteBack:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, where: TracebackType | None) -> None:
        """Wait for what was sent. Raises OSError, as `send` does, unless something has failed already."""
        self._asked.put(None)
        self._thread.join()
        if kind is None and self._failed is not None:
            raise self._failed

    def send(self, descriptor: int, unsent: int, *, ended: bool = False) -> int:
        """Have the disk write what a file has, of which `unsent` bytes are new, if they are worth it and it keeps up.

        Returns how many are unsent now. Raises OSError when the disk has refused something before.
        """
        if self._failed is not None:
            raise self._failed
        if unsent < (WHOLE_BYTES if ended else SEND_BYTES) or self._asked.full():
            return unsent
        self._asked.put(os.dup(descriptor))
        return 0

    def _run(self) -> None:
        while (descriptor := self._asked.get()) is not None:
            try:
                if self._failed is None:
                    os.fdatasync(descriptor)
            except OSError as error:
                self._failed = error
            finally:
                os.close(descriptor)
