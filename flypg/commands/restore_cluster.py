"""flypg restore --in-place: the whole cluster as it was, where it is. Asks the agents, which carry it out."""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backups.errors import RepositoryError
from backups.restore import make_plan
from backups.restore_plan import Refused as PlanRefused
from backups.restore_plan import RestorePlan, Target, TargetKind, describe
from cluster.model import NodeId, Phase, Snapshot, format_lsn
from cluster.store import OperatorStore
from flypg.backup_look import size, span
from flypg.commands.change import confirm
from flypg.gather import look_at
from flypg.look import Looks
from flypg.progress import Progress
from flypg.reply import BadInput, Exit, Refused, Reply, done
from flypg.repository import Opened, open_path
from flypg.target import Target as ClusterTarget
from flypg.target import find, whoami

if TYPE_CHECKING:
    from backups.orders import Orders, RestoreOrder

LOOK_S = 0.5
NOTHING = "nothing was changed"


def run(args: argparse.Namespace, target: Target) -> Reply:
    """flypg restore --in-place [--node NODE] [--confirm NAME]: order it, and follow until the cluster serves again."""
    if args.confirm and args.yes:
        raise BadInput("give --confirm NAME or --yes, not both")
    where = find(args)
    if args.cancel or args.follow:
        return asyncio.run(_connected(where, args, None, target))
    try:
        opened = open_path(args)
    except (Refused, RepositoryError) as error:
        raise BadInput(f"{error}; {NOTHING}") from None
    return asyncio.run(_connected(where, args, opened, target))


async def _connected(where: ClusterTarget, args: argparse.Namespace, opened: Opened | None, target: Target) -> Reply:
    from backups.orders import Orders
    from cluster.clock import SystemClock
    from cluster.etcd import Etcd
    from cluster.etcd_store import EtcdStore

    etcd = Etcd(where.etcd)
    try:
        store = EtcdStore(etcd, where.cluster, NodeId("operator"), clock=SystemClock())
        orders = Orders(etcd, where.cluster)
        if opened is None:
            return await _under_way(args, store, orders)
        order = await _ordered(args, store, orders, where, opened, target)
        return order if isinstance(order, Reply) else await _follow(args, store, orders, order)
    finally:
        await etcd.close()


async def _under_way(args: argparse.Namespace, store: OperatorStore, orders: Orders) -> Reply:
    order = await orders.read()
    if order is None:
        raise BadInput(f"no restore in place was asked for; {NOTHING}")
    if args.follow:
        return await _follow(args, store, orders, order)
    if not await orders.withdraw(order):
        raise Refused("the restored data is in place already: the old lies beside it (docs/backups.md)")
    return done(
        f"withdrawn: the agents start the cluster as it was; {order.node} had not finished", {"order": order.id}
    )


async def _ordered(
    args: argparse.Namespace,
    store: OperatorStore,
    orders: Orders,
    where: ClusterTarget,
    opened: Opened,
    target: Target,
) -> RestoreOrder | Reply:
    """Give the order, after everything was looked at and confirmed. A Reply when only the plan was wanted."""
    from backups.orders import RestoreOrder

    snapshot = await store.read()
    node = choose_node(snapshot, args.node, opened, where.cluster)
    plan = make_plan(opened.path, target, snapshot=args.snapshot, timeline=args.timeline)
    if isinstance(plan, PlanRefused):
        raise BadInput(f"{plan.why}; {NOTHING}")
    if not opened.path.opens(plan.snapshot):
        raise BadInput(f"{plan.snapshot.id} is sealed with key {plan.snapshot.encrypted_with}, not given; {NOTHING}")
    looks = await look_at(snapshot)
    lines = [*describe(plan), *consequences(snapshot, looks, plan, node, time.time(), keep=not args.discard_old)]
    body = {"snapshot": plan.snapshot.id, "target": str(plan.target), "timeline": plan.timeline, "node": node}
    if args.plan:
        return done("\n".join(lines), {**body, "warnings": list(plan.warnings)})
    if args.confirm and args.confirm != where.cluster:
        raise BadInput(f"--confirm {args.confirm}: the cluster is {where.cluster}; {NOTHING}")
    if not (args.confirm or args.yes):
        confirm("\n".join(lines), typed=where.cluster, unless=f"--confirm {where.cluster}")
    wished = plan.target
    order = RestoreOrder(
        id=secrets.token_hex(4),
        node=node,
        path=str(opened.path.name),
        snapshot=plan.snapshot.id,
        kind=wished.kind,
        text=wished.text,
        time=wished.time,
        lsn=wished.lsn,
        timeline=plan.timeline,
        inclusive=not args.exclusive,
        keep=not args.discard_old,
        asked_by=whoami(),
        asked_at=time.time(),
    )
    other = await orders.give(order)
    if other is not None:
        raise BadInput(
            f"{other.asked_by} has asked for a restore to {other.target} already: follow it with"
            f" `flypg restore --in-place --follow`, or end it with --cancel; {NOTHING}"
        )
    return order


def choose_node(snapshot: Snapshot, named: str | None, opened: Opened, cluster: str) -> str:
    """The node that restores; the others copy from it. Raises BadInput when it cannot be done here at all. Pure."""
    view = snapshot.view
    if view is None or not view.system_id:
        raise BadInput(f"cluster {cluster} was never founded: restore with --into DIR; {NOTHING}")
    if opened.path.name.system_id != view.system_id or opened.path.name.cluster != cluster:
        raise BadInput(
            f"{opened.said} is not of cluster {cluster} (system {view.system_id}): another cluster's data is restored"
            f" with --into DIR; {NOTHING}"
        )
    if named is None and not opened.config.shared:
        raise BadInput(f"each node has a repository of its own: say with --node whose; {NOTHING}")
    node = named or view.primary or view.deposed
    able = {m.node for m in view.members if m.node in snapshot.reports and not m.nofailover}
    if node is None or node not in able:
        node = node if named is not None or not able else min(able)
    if node is None or node not in able:
        raise BadInput(
            f"{node or 'no node'} cannot restore: its agent must run, and it may be primary"
            f" ({', '.join(sorted(able)) or 'none'} could); {NOTHING}"
        )
    return str(node)


def consequences(
    snapshot: Snapshot, looks: Looks, plan: RestorePlan, node: str, now: float, *, keep: bool
) -> Sequence[str]:
    """What happens, and what is lost. Pure."""
    view = snapshot.view
    assert view is not None, "the node was chosen from it"
    look = looks.get(view.primary) if view.primary is not None else None
    report = snapshot.reports.get(view.primary) if view.primary is not None else None
    position = (look.position if look is not None else None) or (report.position if report is not None else None)
    lsn = position.lsn if position is not None else None
    lines = [f"LOST       every change after {plan.target}" + _how_much(plan.target, lsn, now)]
    if position is not None:
        lines.append(f"           {view.primary} is at {format_lsn(position.lsn)} on timeline {position.timeline} now")
    names = sorted(m.node for m in view.members)
    absent = [n for n in names if n not in snapshot.reports]
    others = ", ".join(n for n in names if n != node)
    lines.append(
        f"stops      every node, for as long as {node} restores" + (f"; {others} then copy it" if others else "")
    )
    if absent:
        lines.append(
            f"           {', '.join(absent)} cannot be seen: make sure that they are off until they see etcd again"
        )
    lines.append(
        "old data   is kept on every node, as pgdata.before-restore-…: remove it when all is well"
        if keep
        else "old data   IS REMOVED, also on this node, once the restore has worked"
    )
    return lines


def _how_much(target: Target, lsn: int | None, now: float) -> str:
    if target.kind is TargetKind.TIME:
        return f", {span(max(0.0, now - target.time))} of them"
    if target.kind is TargetKind.LSN and lsn is not None:
        return f", {size(max(0, lsn - target.lsn))} of WAL"
    return ""


async def _follow(args: argparse.Namespace, store: OperatorStore, orders: Orders, order: RestoreOrder) -> Reply:
    """Until the cluster serves what was restored."""
    from backups.orders import Stage

    body = {"order": order.id, "node": order.node, "snapshot": order.snapshot, "target": str(order.target)}
    if args.no_wait:
        return done(f"asked for: follow it with flypg restore --in-place --follow; order {order.id}", body)
    progress = Progress()
    until = time.monotonic() + args.wait
    how = "`flypg restore --in-place --follow` shows how it goes on, --cancel ends it"
    try:
        while time.monotonic() < until:
            now = await orders.progress(order)
            if now.stage is Stage.FAILED:
                text = f"{now.text}; it is tried again until it works; {how}. No data is lost so far"
                return Reply(Exit.FAILED, text, {**body, "error": now.text})
            if now.stage is Stage.DONE:
                snapshot = await store.read()
                view = snapshot.view
                if view is not None and view.phase is Phase.OPEN and view.primary == order.node:
                    found = re.search(r"timeline (\d+)", now.text)
                    text = f"{now.text}; {order.node} is primary, the others copy from it (flypg status)"
                    return done(text, {**body, "timeline": int(found[1]) if found else view.timeline})
            progress.now(now.text or "the agents stop their nodes")
            await asyncio.sleep(LOOK_S)
    finally:
        progress.clear()
    return Reply(Exit.TIMED_OUT, f"it is under way; {how}", body)
