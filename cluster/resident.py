"""Give back memory that only the start of a process needed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from pathlib import Path

MAPPED_CODE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ [1-9]\d* ")
MADV_DONTNEED = 4


def release_start_up_code() -> None:
    """Let go of the pages of programs and libraries that were touched so far; what is still used comes back by itself.

    Importing touches far more of the big libraries (gRPC, OpenSSL, libpq) than running them does: some 10 MB of an
    agent's resident memory. Only code is let go of: it is never written to, so the kernel reads it again from its cache
    or from the file. Linux only; elsewhere, and wherever it is not allowed, nothing happens.
    """
    gc.collect()
    gc.freeze()  # what is here now stays: it need not be looked through again and again
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    release_code()


def release_code() -> None:
    """Only the code: after something that is done seldom, with libraries that nothing else uses. Takes some 2 ms."""
    try:
        maps = Path("/proc/self/maps").read_text()
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in maps.splitlines():
        if code := MAPPED_CODE.match(line):
            start, end = int(code[1], 16), int(code[2], 16)
            advise(start, end - start, MADV_DONTNEED)
