"""Processes that may outlive us or are not our children: which one a pid means, and when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os


def start_time(pid: int) -> int | None:
    """When `pid` was started, in clock ticks since boot: with the pid it names a process for good. None: it is gone."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)  # asked every second: no more than the system calls
    except OSError:
        return None
    try:
        stat = os.read(descriptor, 4096)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def reap(pid: int) -> None:
    """Let a child that has ended disappear from the process table. Nothing happens when it is no child or lives."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def gone(pid: int) -> None:
    """Returns when `pid` has ended, at once when it has already."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        loop.remove_reader(descriptor)
        ended.set_result(None)

    loop.add_reader(descriptor, end)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
