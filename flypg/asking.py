"""Asks the leading sentinel for something, and follows it to its end."""

from __future__ import annotations

import asyncio
import time
import uuid

from cluster.errors import StoreUnavailable
from cluster.forgotten import lost_term
from cluster.model import NodeId, Request, RequestKind, ServerState, Snapshot
from cluster.store import OperatorStore
from flypg.gather import look_at
from flypg.health import never_founded
from flypg.parsing import nearest
from flypg.progress import Progress
from flypg.reply import BadInput, Exit, Refused, Reply
from flypg.target import whoami

LOOK_EVERY_S = 0.15
LEADER_WITHIN_S = 10.0  # a sentinel resigns when its node becomes primary, or dies: the next one leads soon


def known_node(snapshot: Snapshot, name: str) -> NodeId:
    """The member of that name. Raises BadInput, with the nearest name, when there is none."""
    view = snapshot.view
    members = [m.node for m in view.members] if view else []
    if NodeId(name) in members:
        return NodeId(name)
    near = nearest(name, members)
    raise BadInput(
        f"no node {name!r} in this cluster" + (f"; did you mean {near}?" if near else f"; it has {', '.join(members)}")
    )


def founded(snapshot: Snapshot) -> None:
    """Raise Refused unless the cluster exists and somebody would carry out a request."""
    if snapshot.view is None:
        raise Refused(f"{never_founded(snapshot)}; nothing was changed")
    if snapshot.leader is None:
        raise Refused("no sentinel leads at the moment, so nobody would carry it out; nothing was changed")


async def ready(store: OperatorStore, within_s: float = LEADER_WITHIN_S, *, lost: bool = False) -> Snapshot:
    """The cluster as it is, once somebody leads who would carry out a request. `lost`: also one that etcd has lost.
    Raises Refused, StoreUnavailable."""
    until = time.monotonic() + within_s
    while True:
        snapshot = await store.read()
        nothing = snapshot.view is None and not (lost and lost_term(snapshot))
        if nothing or snapshot.leader is not None or time.monotonic() >= until:
            if nothing or snapshot.leader is None:
                founded(snapshot)
            return snapshot
        await asyncio.sleep(LOOK_EVERY_S)


def new_request(kind: RequestKind, node: NodeId | None, *, accept_data_loss: bool = False) -> Request:
    return Request(uuid.uuid4().hex[:12], kind, node, whoami(), accept_data_loss)


async def ask(store: OperatorStore, request: Request, *, wait_s: float | None) -> Reply:
    """Leave a request and wait for its outcome. `wait_s` None: do not wait."""
    await store.add_request(request)
    data: dict[str, object] = {"request": request.id, "kind": str(request.kind), "node": request.node}
    if wait_s is None:
        return Reply(Exit.OK, f"asked for {describe(request)}; follow it with: flypg status --watch", data)
    outcome = await _follow(store, request, wait_s)
    return outcome_reply(request, outcome, wait_s, data)


def describe(request: Request) -> str:
    to = {RequestKind.SWITCHOVER: "to", RequestKind.FAILOVER: "to"}.get(request.kind, "of")
    return f"{request.kind} {to} {request.node}" if request.node else f"a {request.kind}"


def outcome_reply(request: Request, outcome: str | None, wait_s: float, data: dict[str, object]) -> Reply:
    """What an answer means. None: there was none in time."""
    if outcome is None:
        text = f"{describe(request)}: not finished after {wait_s:g} s, and still under way; see flypg status, flypg why"
        return Reply(Exit.TIMED_OUT, text, data | {"outcome": None})
    word, colon, rest = outcome.partition(":")
    text = f"{request.kind} {word}{colon}{rest}"
    data = data | {"outcome": outcome, "text": text}
    if word == "done":
        return Reply(Exit.OK, text, data)
    return Reply(Exit.REFUSED if word == "refused" else Exit.FAILED, text, data)


async def _follow(store: OperatorStore, request: Request, wait_s: float) -> str | None:
    progress = Progress()
    until = time.monotonic() + wait_s
    try:
        while True:
            try:
                found = await store.read_request(request.id)
                if found is None:
                    return "failed: the request is gone from etcd without an answer"
                if found.outcome:
                    return found.outcome
                snapshot = await store.read()
                if snapshot.view is not None:
                    progress.now(f"{describe(request)}: {snapshot.view.phase}, {snapshot.view.why}")
            except StoreUnavailable as error:
                progress.now(f"etcd does not answer, asking again: {error}")
            if time.monotonic() >= until:
                return None
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        progress.clear()


async def wait_streaming(store: OperatorStore, node: NodeId, within_s: float) -> str:
    """Wait until a node whose copy has begun streams again; returns "" then, else what it was doing at the end."""
    progress = Progress()
    until = time.monotonic() + within_s
    doing = "starting"
    try:
        while True:
            try:
                snapshot = await store.read()
                report, look = snapshot.reports.get(node), (await look_at(snapshot)).get(node)
                if report is not None and report.state is ServerState.STANDBY and report.streaming:
                    return ""
                doing = (look.progress if look else "") or (str(report.state) if report else "its agent is silent")
            except StoreUnavailable as error:
                doing = f"etcd does not answer: {error}"
            progress.now(f"{node}: {doing}")
            if time.monotonic() >= until:
                return doing
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        progress.clear()
