"""flypg members: how to reach each node, and what it may become."""

from __future__ import annotations

import argparse

from cluster.model import Member, Snapshot
from cluster.store import OperatorStore
from flypg.health import in_region
from flypg.reply import Reply, done
from flypg.show import columns
from flypg.target import Target, with_store


def run(args: argparse.Namespace) -> Reply:
    return with_store(args, members)


async def members(store: OperatorStore, target: Target) -> Reply:
    snapshot = await store.read()
    everyone = snapshot.view.members if snapshot.view else tuple(r.member for r in snapshot.reports.values())
    if not everyone:
        return done(f"{target.said}\n\nno members yet", {"members": []})
    everyone = tuple(sorted(everyone, key=lambda m: m.node))
    return done(f"{target.said}\n\n{members_table(snapshot, everyone)}", {"members": [_data(m) for m in everyone]})


def members_table(snapshot: Snapshot, everyone: tuple[Member, ...]) -> str:
    head = ["node", "host", "proxy", "postgres", "read", "pooler", "http", "region", "priority", "may be"]
    body = []
    for m in everyone:
        p = m.ports
        ports = [str(port) for port in (p.proxy, p.postgres, p.read, p.pooler, p.http)]
        body.append([m.node, m.host, *ports, m.region, str(m.priority), may_be(snapshot, m)])
    return columns(head, body)


def may_be(snapshot: Snapshot, member: Member) -> str:
    """What the operator and the region allow this node to be."""
    here = in_region(snapshot, member.region)
    parts = []
    if here and member.may_lead:
        parts.append("primary")
    if here and not member.nosync:
        parts.append("voter")
    return ", ".join([*parts, "standby"])


def _data(m: Member) -> dict[str, object]:
    p = m.ports
    return {
        "node": m.node,
        "host": m.host,
        "region": m.region,
        "priority": m.priority,
        "nofailover": m.nofailover,
        "nosync": m.nosync,
        "ports": {
            "proxy": p.proxy,
            "postgres": p.postgres,
            "read": p.read,
            "pooler": p.pooler,
            "http": p.http,
            "metrics": p.metrics,
            "stats": p.stats,
        },
    }
