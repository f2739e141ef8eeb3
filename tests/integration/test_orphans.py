"""The agent as the first process of a container: orphans of others are reaped, children of ours stay with who waits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, os, sys
from agent.orphans import reap_orphans, zombies
from postgres.process import become_subreaper

async def main():
    become_subreaper()
    task = asyncio.create_task(reap_orphans(1.0))
    ours = [await asyncio.create_subprocess_exec("sh", "-c", f"sleep 0.{n}; exit {n}") for n in range(1, 6)]
    orphans = await asyncio.create_subprocess_exec("sh", "-c", "for n in 1 2 3; do (sleep 0.2; exit 3) & done; exit 0")
    await orphans.wait()
    seen = set()
    for _ in range(1500):
        await asyncio.sleep(0.02)
        seen |= zombies()
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        if len(seen) >= 3 and not children:
            break
    print(len(seen) >= 3, not children, [await p.wait() for p in ours])
    task.cancel()

asyncio.run(main())
"""


def test_orphans_are_reaped_and_our_children_keep_their_exit_codes() -> None:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "True True [1, 2, 3, 4, 5]", done.stdout + done.stderr
