"""An agent's pooler and fence in a process of their own, to be killed while clients are held.

`python -m tests.support.held_pooler`, with a line of JSON on standard input: the pooler's settings and the address it
leads to. It says `held` when clients wait, and goes on until it is killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from agent.fence import Fence
from agent.routing.pooler import Pooler
from agent.routing.pooler_config import PoolerSettings
from agent.routing.target import Address
from cluster.clock import SystemClock
from cluster.model import Spec


async def main() -> None:
    job = json.loads(sys.stdin.readline())
    directory = Path(job["directory"])
    settings = PoolerSettings(directory / "p", directory, job["port"], job["password"], listen=("127.0.0.1",))
    spec = replace(Spec(), pool_mode="transaction")
    fence = Fence(directory, lambda pid: None)
    await fence.start()
    pooler = Pooler(settings, SystemClock(), fence.unpause, lambda: None)
    await pooler.start()
    pooler.route(Address(*job["to"]), spec, 1)
    while pooler.held:  # noqa: ASYNC110 (a program changes it, not a task of ours)
        await asyncio.sleep(0.02)
    pooler.route(None, spec, 1)
    while not pooler.drained:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    print("held", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
