"""How much memory the work on a repository keeps to itself."""

from __future__ import annotations

import contextlib
import ctypes

M_ARENA_MAX = -8  # <malloc.h>


def few_arenas() -> None:
    """Have threads share the memory they free: else each that sends or fetches keeps tens of MB of its own.

    To be called before they start; see mallopt(3). Nothing on a system whose C library has no such thing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
