"""Waits until a local cluster is healthy, and says what it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from cluster.errors import StoreUnavailable
from cluster.model import NodeId, NodeReport, Phase, ServerState, Snapshot
from cluster.store import OperatorStore
from flypg.gather import look_at
from flypg.local import nodes
from flypg.local_layout import Layout
from flypg.look import Looks
from flypg.progress import Progress

LOOK_EVERY_S = 0.1


async def wait_healthy(store: OperatorStore, layout: Layout, progress: Progress, within_s: float) -> str:
    """Returns "" once every node of the layout is in its place, else what was still missing after `within_s`."""
    until = time.monotonic() + within_s
    wanted = [NodeId(name) for name in layout.names]
    lacking = "etcd does not answer"
    while True:
        try:
            snapshot = await store.read()
            lacking = what_is_missing(snapshot, {}, wanted)
            if lacking:
                lacking = what_is_missing(snapshot, await look_at(snapshot), wanted)
        except StoreUnavailable as error:
            lacking = f"etcd does not answer: {error}"
        if not lacking:
            progress.clear()
            return ""
        dead = [node.name for node in nodes(layout) if node.process is None]
        if dead:
            progress.clear()
            return f"the agent of {', '.join(dead)} has ended; see flypg local logs {dead[0]}"
        progress.now(lacking)
        if time.monotonic() > until:
            progress.clear()
            return lacking
        await asyncio.sleep(LOOK_EVERY_S)


def what_is_missing(snapshot: Snapshot, looks: Looks, wanted: Sequence[NodeId]) -> str:
    """The first thing that keeps a cluster of the `wanted` nodes from being healthy; "" when it is. Pure."""
    view = snapshot.view
    if view is None:
        started = [n for n in wanted if n in snapshot.reports]
        return "electing a sentinel" if started else "starting the agents"
    if view.phase is not Phase.OPEN or view.primary is None:
        return _doing(snapshot, looks, view.primary) if view.primary else f"{view.phase}: {view.why}"
    for node in wanted:
        report = snapshot.reports.get(node)
        if report is None:
            return f"{node}: waiting for its agent"
        if node == view.primary:
            if report.state is not ServerState.PRIMARY:
                return _doing(snapshot, looks, node)
        elif report.state is not ServerState.STANDBY or not report.streaming:
            return _doing(snapshot, looks, node)
    if len(view.rules) > 1:
        return "the primary changes to a new rule"
    voters = view.rules[-1].voters if view.rules else frozenset()
    for node in wanted:
        if node != view.primary and node not in voters and _may_vote(snapshot, snapshot.reports[node]):
            return f"{node} streams; commits do not wait for it yet"
    for node in wanted:
        if node in looks and ((look := looks[node]) is None or look.tls_pending):
            return f"{node}: making its certificate" if look is not None else f"{node}: its agent does not answer yet"
    return ""


def _may_vote(snapshot: Snapshot, report: NodeReport) -> bool:
    spec, member = snapshot.spec, report.member
    return (
        (not spec.primary_region or member.region == spec.primary_region)
        and not member.nosync
        and spec.k > 0
        and (spec.durability != "async")
    )


def _doing(snapshot: Snapshot, looks: Looks, node: NodeId) -> str:
    """What a node is busy with, in a few words."""
    report = snapshot.reports.get(node)
    if report is None:
        return f"{node}: waiting for its agent"
    look = looks.get(node)
    if look is not None and look.progress:
        return f"{node}: {look.progress}"
    problem = (look.problem if look else "") or report.problem
    return f"{node}: {report.state}" + (f" ({problem})" if problem else "")
