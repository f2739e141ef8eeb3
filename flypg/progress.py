"""Progress of something that takes a while: one line that changes on a terminal, a line per change anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Written to standard error, so that what a command answers can be piped."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._tty = self._out.isatty()
        self._began = time.monotonic()
        self._last = ""
        self._open = False  # a line that may still be overwritten

    def now(self, text: str) -> None:
        """What is being waited for. Repeats of the same text print nothing."""
        if text == self._last:
            return
        self._last = text
        if self._tty:
            self._out.write(f"\r\x1b[K  {text}")
            self._open = True
        else:
            self._out.write(f"  {self._took()}  {text}\n")
        self._out.flush()

    def done(self, text: str) -> None:
        """Something is finished: its line stays."""
        self.clear()
        self._out.write(f"  {self._took()}  {text}\n")
        self._out.flush()
        self._last = ""

    def clear(self) -> None:
        if self._open:
            self._out.write("\r\x1b[K")
            self._out.flush()
            self._open = False

    def _took(self) -> str:
        return f"{time.monotonic() - self._began:5.1f} s"
