"""What the first process of a container owes others: children that nobody waits for do not stay as zombies."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Never

from agent.processes import reap, start_time

EVERY_S = 15.0


def zombies() -> set[int]:
    """Children of ours that have ended and that nobody has waited for yet."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # threads come and go
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return {pid for pid in found if start_time(pid) is None}


async def reap_orphans(every_s: float = EVERY_S) -> Never:
    """Reap what was handed to us when its parent ended, as of an ssh session. What we started is waited for by those
    who started it, within milliseconds: only who is still there at the second look belongs to nobody."""
    before: set[int] = set()
    while True:
        await asyncio.sleep(every_s)
        now = zombies()
        for pid in now & before:
            reap(pid)
        before = now
