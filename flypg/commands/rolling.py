"""flypg node restart --pending: apply the parameters that wait for a restart, node by node, in an order that is safe.

Standbys first, the primary last: a standby must have at least the primary's max_connections and the like, so a higher
value has to reach the standbys before the primary. A lower one reaches a standby only after the primary (it keeps
what its control file demands), so standbys that still wait afterwards are restarted once more. (PostgreSQL
documentation, "Hot Standby Parameter Reference".)
"""

from __future__ import annotations

import asyncio
import time

from cluster.model import NodeId, RequestKind, ServerState, Snapshot
from cluster.store import OperatorStore
from flypg.asking import ask, new_request, ready, wait_streaming
from flypg.progress import Progress
from flypg.reply import Exit, Reply, done

SETTLE_S = 10.0  # for a node to say whether it still waits, after its restart
LOOK_EVERY_S = 0.2


def order(snapshot: Snapshot) -> list[NodeId]:
    """The nodes whose PostgreSQL waits for a restart: standbys first, the primary last. Pure."""
    primary = snapshot.view.primary if snapshot.view else None
    waiting = [n for n, r in snapshot.reports.items() if r.pending_restart]
    return sorted(waiting, key=lambda n: (n == primary, n))


async def restart_pending(store: OperatorStore, wait_s: float) -> Reply:
    """Restart what waits for it, one node at a time; stops at the first that does not come back."""
    snapshot = await ready(store)
    if not order(snapshot):
        return done("no node waits for a restart; nothing was done", {"restarted": []})
    progress = Progress()
    restarted: list[NodeId] = []
    for again in (False, True):
        for node in order(await store.read()):
            if again and node == _primary(await store.read()):
                continue
            reply = await ask(store, new_request(RequestKind.RESTART, node), wait_s=wait_s)
            if not reply.ok:
                text = f"{reply.text}\nrestarted before it: {', '.join(restarted) or 'none'}"
                return Reply(reply.exit, text, {"restarted": restarted, "failed": node})
            if lacking := await _back(store, node, wait_s):
                text = f"{node} was restarted but is not back: {lacking}; stopped here"
                return Reply(Exit.TIMED_OUT, text, {"restarted": [*restarted, node], "failed": node})
            restarted.append(node)
            progress.done(f"{node} was restarted")
    left = order(await store.read())
    if left:
        return Reply(Exit.FAILED, f"still waiting for a restart: {', '.join(left)}", {"restarted": restarted})
    return done(f"restarted {', '.join(restarted)}; no node waits for a restart", {"restarted": restarted})


def _primary(snapshot: Snapshot) -> NodeId | None:
    return snapshot.view.primary if snapshot.view else None


async def _back(store: OperatorStore, node: NodeId, within_s: float) -> str:
    """Wait until a restarted node does its work again and has said what still waits; "" then, else what is lacking."""
    if node != _primary(await store.read()) and (lacking := await wait_streaming(store, node, within_s)):
        return lacking
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until:
        report = (await store.read()).reports.get(node)
        serving = report is not None and report.state in (ServerState.PRIMARY, ServerState.STANDBY)
        if serving and report is not None and not report.pending_restart and not report.restarting:
            return ""
        await asyncio.sleep(LOOK_EVERY_S)
    return ""
