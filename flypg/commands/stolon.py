"""What stolonctl would say of this cluster, in stolon's words and forms."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from cluster.model import Member, NodeId, NodeReport, Phase, RequestKind, ServerState, Snapshot
from cluster.store import OperatorStore
from flypg.asking import ask as request
from flypg.asking import founded, known_node, new_request
from flypg.reply import BadInput, Exit, Reply, done
from flypg.target import Target, with_store

HERE = argparse.Namespace(etcd=None, cluster=None, dir=None)  # the cluster that this machine's environment names
WAIT_S = 60.0
NO_DATA = "nil cluster data: <nil>"  # what flyctl and scripts look for before a cluster is initialised


def wants_json(options: Sequence[str]) -> bool:
    """`-f json`, `--format json` or `--format=json`."""
    return "json" in " ".join(options).replace("=", " ").split()


def patch_of(options: Sequence[str]) -> dict[str, object]:
    """The patch of `update --patch '{…}'` (or `-p`). Raises BadInput."""
    rest = [option for option in options if option not in ("--patch", "-p")]
    if len(rest) == len(options) or len(rest) != 1:
        raise BadInput("only update --patch '{\"pgParameters\": {…}}' is possible here; see flypg spec for the rest")
    try:
        patch = json.loads(rest[0])
    except ValueError as error:
        raise BadInput(f"the patch is not JSON: {error}") from None
    if not isinstance(patch, dict):
        raise BadInput("the patch must be a JSON object")
    return patch


def status(*, as_json: bool) -> Reply:
    async def work(store: OperatorStore, _: Target) -> Reply:
        found = status_data(await store.read())
        return done(json.dumps(found, indent="\t") if as_json else status_text(found))

    return with_store(HERE, work)


def status_data(snap: Snapshot) -> dict[str, object]:
    """`stolonctl status -f json`. Pure."""
    view = snap.view
    members: dict[NodeId, Member] = {node: report.member for node, report in snap.reports.items()}
    members |= {m.node: m for m in (view.members if view else ())}
    term = view.term if view else 0
    keepers = [
        {
            "uid": node,
            "listen_address": f"{member.host}:{member.ports.postgres}",
            "healthy": node in snap.reports,
            "pg_healthy": _serves(snap.reports.get(node)),
            "pg_wanted_generation": term,
            "pg_current_generation": report.term if (report := snap.reports.get(node)) else 0,
        }
        for node, member in sorted(members.items())
    ]
    sentinels = sorted({*snap.reports, *([snap.leader.sentinel] if snap.leader else [])})
    primary = view.primary if view and view.primary else ""
    return {
        "sentinels": [{"uid": n, "leader": snap.leader is not None and n == snap.leader.sentinel} for n in sentinels],
        "proxies": [{"uid": n, "generation": term} for n in sorted(snap.reports)],
        "keepers": keepers,
        "cluster": {
            "available": view is not None and view.phase is Phase.OPEN,
            "master_keeper_uid": primary,
            "master_db_uid": primary,
        },
    }


def _serves(report: NodeReport | None) -> bool:
    return report is not None and report.state in (ServerState.PRIMARY, ServerState.STANDBY) and not report.fault


def status_text(found: dict[str, object]) -> str:
    """The same as stolonctl prints it. Pure."""
    sentinels, proxies, keepers, cluster = (found[k] for k in ("sentinels", "proxies", "keepers", "cluster"))
    assert isinstance(sentinels, list) and isinstance(proxies, list)
    assert isinstance(keepers, list) and isinstance(cluster, dict)
    lines = _table(
        "=== Active sentinels ===", ("ID", "LEADER"), [(s["uid"], _bool(s["leader"])) for s in sentinels], "sentinels"
    )
    lines += _table("=== Active proxies ===", ("ID",), [(p["uid"],) for p in proxies], "proxies")
    titles = ("UID", "HEALTHY", "PG LISTENADDRESS", "PG HEALTHY", "PG WANTEDGENERATION", "PG CURRENTGENERATION")
    rows = [
        (
            k["uid"],
            _bool(k["healthy"]),
            k["listen_address"],
            _bool(k["pg_healthy"]),
            str(k["pg_wanted_generation"]),
            str(k["pg_current_generation"]),
        )
        for k in keepers
    ]
    lines += _table("=== Keepers ===", titles, rows, "keepers available")
    master = cluster["master_keeper_uid"]
    if not master:
        return "\n".join([*lines, "No cluster available"])
    lines += ["=== Cluster Info ===", "", f"Master Keeper: {master}", "", "===== Keepers/DB tree =====", ""]
    others = [k["uid"] for k in keepers if k["uid"] != master]
    lines += [f"{master} (master)", *(f"{'└─' if n == others[-1] else '├─'}{n}" for n in others)]
    return "\n".join(lines)


def _bool(value: object) -> str:
    return "true" if value else "false"


def _table(heading: str, titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], none: str) -> list[str]:
    if not rows:
        return [f"No {'active ' if none in ('sentinels', 'proxies') else ''}{none}", ""]
    widths = [max(len(str(row[i])) for row in (titles, *rows)) for i in range(len(titles))]
    table = ["\t".join(str(v).ljust(w) for v, w in zip(row, widths, strict=True)).rstrip() for row in (titles, *rows)]
    return [heading, "", *table, ""]


def spec() -> Reply:
    async def work(store: OperatorStore, _: Target) -> Reply:
        return done(json.dumps(spec_data(await store.read()), indent="\t"))

    return with_store(HERE, work)


def spec_data(snap: Snapshot) -> dict[str, object]:
    """The part of stolon's cluster spec that means something here. Pure."""
    return {
        "initMode": "new",
        "synchronousReplication": snap.spec.durability != "async",
        "usePgrewind": True,
        "pgParameters": dict(snap.spec.parameters),
        "pgHBA": list(snap.spec.hba) or None,
    }


def clusterdata() -> Reply:
    async def work(store: OperatorStore, _: Target) -> Reply:
        snap = await store.read()
        if snap.view is None:
            return Reply(Exit.FAILED, NO_DATA)
        return done(json.dumps(clusterdata_data(snap)))

    return with_store(HERE, work)


def clusterdata_data(snap: Snapshot) -> dict[str, object]:
    """stolon's cluster document as far as its readers look: who is master, who is healthy, where they listen. Pure."""
    view = snap.view
    assert view is not None
    keepers, dbs = {}, {}
    for member in view.members:
        report = snap.reports.get(member.node)
        keepers[member.node] = {"uid": member.node, "status": {"healthy": report is not None}}
        dbs[member.node] = {
            "uid": member.node,
            "spec": {"keeperUID": member.node, "role": "master" if member.node == view.primary else "standby"},
            "status": {
                "healthy": _serves(report),
                "listenAddress": member.host,
                "port": str(member.ports.postgres),
                "timelineID": view.timeline,
            },
        }
    cluster = {"spec": spec_data(snap), "status": {"phase": "normal", "master": view.primary or ""}}
    return {"formatVersion": 1, "cluster": cluster, "keepers": keepers, "dbs": dbs}


def fail_keeper(name: str) -> Reply:
    """Another node becomes primary; of a standby there is nothing to fail over."""

    async def work(store: OperatorStore, _: Target) -> Reply:
        snap = await store.read()
        founded(snap)
        node = known_node(snap, name)
        if snap.view is None or snap.view.primary != node:
            return done("")
        reply = await request(store, new_request(RequestKind.FAILOVER, None), wait_s=WAIT_S)
        return done("") if reply.ok else reply

    return with_store(HERE, work)


def remove_keeper(name: str) -> Reply:
    async def work(store: OperatorStore, _: Target) -> Reply:
        snap = await store.read()
        founded(snap)
        node = known_node(snap, name)
        reply = await request(store, new_request(RequestKind.REMOVE, node), wait_s=WAIT_S)
        return done("") if reply.ok else reply

    return with_store(HERE, work)
