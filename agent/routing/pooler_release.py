"""Letting pooled clients go on after a hold, so that PgBouncer turns none of them away.

Theory of operation. PgBouncer remembers of each pool whether its last login at the server failed. The death of a
primary and a PAUSE both break a login that is under way, which counts as failed; and while such a pool has no server,
whoever asks for one is turned away ("server login has been failing") until a login has worked. Only those that wait
already stay. In a pool that is paused no login is begun, so RESUME alone lets in those who ask before the first login
has worked. SUSPEND is what helps: PgBouncer looks at no request but those that wait already, and logs in for these. So:
RESUME and SUSPEND in one go, a look at the pools until each that is waited for has a server, RESUME.

(Read in its sources of 1.18 to 1.25: `check_fast_fail`, `release_server` and `disconnect_server` in objects.c,
`per_loop_suspend` in janitor.c. RECONNECT, RELOAD and KILL do not clear that memory. SUSPEND is refused while paused.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.routing.pooler_admin import Console, Rows

LOGINS_WITHIN_S = 0.5
LOOK_S = 0.002
SERVERS = ("sv_active", "sv_idle", "sv_used", "sv_tested")


async def let_in(console: Console, resume: Callable[[], None]) -> bool:
    """End a hold. False: no login worked, so nobody was let in and clients are held as before; ask again.

    `resume` ends a SUSPEND and a PAUSE without the console; it is called when we are cut off. Raises CommandFailed.
    """
    clock = asyncio.get_running_loop().time
    async with console.talk() as talk, console.talk() as waiting:  # nobody new is accepted while suspended
        try:
            await waiting.order("RESUME", "SUSPEND")
            until = clock() + LOGINS_WITHIN_S
            asked, served = wanted(await talk.ask("SHOW POOLS"))
            while served < asked and clock() < until:
                await asyncio.sleep(LOOK_S)
                asked, served = wanted(await talk.ask("SHOW POOLS"))
            if asked and not served:
                await talk.order("RESUME", "PAUSE")
                return False
            await talk.ask("RESUME", passes="not paused")
            return True
        except BaseException:
            resume()
            raise


def wanted(rows: Rows) -> tuple[int, int]:
    """Of SHOW POOLS: how many pools clients wait for, and how many of these have a server. Pure."""
    asked = [row for row in rows if row["database"] != "pgbouncer" and int(row["cl_waiting"])]
    return len(asked), sum(any(int(row[column]) for column in SERVERS) for row in asked)
