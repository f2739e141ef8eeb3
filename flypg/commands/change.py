"""flypg failover, pause, resume, node: each asks the cluster; the sentinel and the keepers do it."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from cluster.model import Event, NodeId, NodeReport, RequestKind, Snapshot, format_lsn
from cluster.store import OperatorStore
from flypg.asking import ask, known_node, new_request, ready, wait_streaming
from flypg.commands.rolling import restart_pending
from flypg.reply import BadInput, Exit, Refused, Reply, done
from flypg.show import columns
from flypg.target import Target, whoami, with_store


def failover(args: argparse.Namespace) -> Reply:
    """flypg failover [--accept-data-loss]: replace the primary now."""
    return with_store(args, lambda store, target: _failover(args, store, target))


async def _failover(args: argparse.Namespace, store: OperatorStore, target: Target) -> Reply:
    if args.accept_data_loss and not args.yes:
        snapshot = await ready(store, lost=True)
        confirm(loss_warning(snapshot, target), typed="lose data", unless="--yes")
    return await _request(args, store, RequestKind.FAILOVER, None, accept_data_loss=args.accept_data_loss)


def loss_warning(snapshot: Snapshot, target: Target) -> str:
    """What --accept-data-loss means, for this cluster. Pure."""
    view = snapshot.view
    if view is None:
        there = columns(["node", "state", "timeline", "position"], [_standing(r) for r in snapshot.reports.values()])
        return "\n".join(
            (
                f"{target.said}: etcd has lost the cluster. Of these, the furthest becomes primary:",
                f"\n{there}\n",
                "Acknowledged writes that only other nodes have are lost for good: make sure that none is missing.",
                "What flypg spec had changed is lost as well and must be set again, durability and hba lines included.",
            )
        )
    old = view.primary or view.deposed
    seen = old is not None and old in snapshot.reports
    rules = " and ".join(str(rule) for rule in view.rules)
    lines = [
        f"{target.said}: a primary is promoted even though acknowledged writes may be missing from it.",
        f"In force: {rules}.",
        "Writes that only the old primary has are gone for good once it is rewound or copied afresh.",
    ]
    if not seen:
        lines.append(
            f"{old or 'The old primary'} cannot be seen. If it still runs, its clients go on reading from it, and"
            " writing if it acknowledges alone, and all of that is lost too: make sure that it is off."
        )
    return "\n".join(lines)


def _standing(report: NodeReport) -> list[str]:
    at = report.position
    return [report.node, str(report.state), str(at.timeline) if at else "-", format_lsn(at.lsn) if at else "-"]


def confirm(warning: str, *, typed: str, unless: str) -> None:
    """Ask for `typed` to be typed. Raises Refused when it is not, or when nobody can type."""
    if not sys.stdin.isatty():
        raise Refused(
            f"{warning}\nnobody is here to confirm; give {unless} if that is what you want; nothing was changed"
        )
    print(warning, file=sys.stderr)
    print(f"Type {typed!r} to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != typed:
        raise Refused("not confirmed; nothing was changed")


async def _request(
    args: argparse.Namespace,
    store: OperatorStore,
    kind: RequestKind,
    name: str | None,
    *,
    accept_data_loss: bool = False,
) -> Reply:
    snapshot = await ready(store, lost=accept_data_loss)
    node = known_node(snapshot, name) if name else None
    request = new_request(kind, node, accept_data_loss=accept_data_loss)
    return await ask(store, request, wait_s=None if args.no_wait else args.wait)


def node_restart(args: argparse.Namespace) -> Reply:
    """flypg node restart NODE | --pending"""
    if bool(args.node) == args.pending:
        raise BadInput("name a NODE, or give --pending to restart every node that waits for it")
    if args.pending:
        return with_store(args, lambda store, _: restart_pending(store, args.wait))
    return with_store(args, lambda store, _: _request(args, store, RequestKind.RESTART, args.node))


def node_reclone(args: argparse.Namespace) -> Reply:
    return with_store(args, lambda store, _: _reclone(args, store))


async def _reclone(args: argparse.Namespace, store: OperatorStore) -> Reply:
    if not args.yes:
        node = await _existing(store, args.node)
        confirm(
            f"The data of {node} is copied afresh from another node; what it has is kept aside until it is healthy.",
            typed=node,
            unless="--yes",
        )
    reply = await _request(args, store, RequestKind.RECLONE, args.node)
    if not reply.ok or args.no_wait:
        return reply
    lacking = await wait_streaming(store, NodeId(args.node), args.wait)
    data = dict(reply.data) if isinstance(reply.data, dict) else {}
    if lacking:
        return Reply(Exit.TIMED_OUT, f"the copy of {args.node} is under way: {lacking}; flypg status shows it", data)
    return done(f"{args.node} was copied afresh and streams", data)


def node_remove(args: argparse.Namespace) -> Reply:
    return with_store(args, lambda store, _: _remove(args, store))


async def _remove(args: argparse.Namespace, store: OperatorStore) -> Reply:
    if not args.yes:
        node = await _existing(store, args.node)
        confirm(
            f"{node} leaves the cluster and its replication slots are dropped; its data directory is not touched.",
            typed=node,
            unless="--yes",
        )
    return await _request(args, store, RequestKind.REMOVE, args.node)


async def _existing(store: OperatorStore, name: str) -> NodeId:
    snapshot = await ready(store)
    return known_node(snapshot, name)


def pause(args: argparse.Namespace) -> Reply:
    return with_store(args, lambda store, _: _set_paused(store, paused=True))


def resume(args: argparse.Namespace) -> Reply:
    return with_store(args, lambda store, _: _set_paused(store, paused=False))


async def _set_paused(store: OperatorStore, *, paused: bool) -> Reply:
    snapshot = await store.read()
    if snapshot.view is None:
        raise Refused("this cluster was never founded: there is nothing to pause")
    word = "paused" if paused else "resumed"
    if snapshot.spec.paused == paused:
        return done(
            "the cluster is paused already" if paused else "the cluster is not paused",
            {"paused": paused, "changed": False},
        )
    event = Event(time.time(), snapshot.view.term, "spec", f"{word} by an operator", by=whoami())
    await store.put_spec(replace(snapshot.spec, paused=paused), read_at=snapshot.spec_revision, events=(event,))
    return done(
        "paused: no failover and no change by flypg until `flypg resume`" if paused else "resumed",
        {"paused": paused, "changed": True},
    )
