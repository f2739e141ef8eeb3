"""flypg pool: how pooled clients share connections, and how the pools are doing."""

from __future__ import annotations

import argparse
import asyncio
import re
import time
import urllib.request

from cluster import spec as wishes
from cluster.model import Event, Member, Snapshot, Spec
from cluster.pool import PoolMode, modes, pool_size, render_modes, share
from cluster.store import OperatorStore
from flypg.reply import BadInput, Reply, done
from flypg.show import columns
from flypg.target import whoami, with_store
from postgres.config import OWNED

LINE = re.compile(r'pgbouncer_pools_(\w+)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
ESCAPED = re.compile(r"\\(.)")
AGAIN_S = 0.5  # a node that is asked looks at its pools, and tells with the next answer what it saw
COLUMNS = (
    "client_active_connections",
    "client_waiting_connections",
    "server_active_connections",
    "server_idle_connections",
    "client_maxwait_seconds",
)
HEADINGS = ["node", "database", "user", "clients", "waiting", "servers", "idle", "longest wait"]


def show(args: argparse.Namespace) -> Reply:
    return with_store(args, lambda store, _: _show(store))


async def _show(store: OperatorStore) -> Reply:
    snapshot = await store.read()
    members = snapshot.view.members if snapshot.view is not None else ()
    await asyncio.gather(*(asyncio.to_thread(pools_of, member) for member in members))
    await asyncio.sleep(AGAIN_S)
    answers = await asyncio.gather(*(asyncio.to_thread(pools_of, member) for member in members))
    rows, data = [], []
    for member, pools in zip(members, answers, strict=True):
        if pools is None:
            rows.append([member.node, "does not answer", *[""] * 6])
            data.append({"node": member.node, "answers": False})
            continue
        for (database, user), values in sorted(pools.items()):
            numbers = [values.get(name, 0.0) for name in COLUMNS]
            rows.append([member.node, database, user, *(f"{n:g}" for n in numbers[:4]), f"{numbers[4]:.1f} s"])
            data.append({"node": member.node, "database": database, "user": user, **values})
    text = "\n".join(said(snapshot.spec, len(members)))
    table = columns(HEADINGS, rows) if rows else "no pool is in use"
    return done(f"{text}\n\n{table}", {"settings": settings(snapshot.spec, len(members)), "pools": data})


def pools_of(member: Member) -> dict[tuple[str, str], dict[str, float]] | None:
    """The pools of a node's PgBouncer, from its metrics. None: it does not answer."""
    host = f"[{member.host}]" if ":" in member.host else member.host
    try:
        with urllib.request.urlopen(f"http://{host}:{member.ports.metrics}/metrics", timeout=3) as answer:
            return parse_pools(answer.read().decode(errors="replace"))
    except (OSError, ValueError):
        return None


def parse_pools(text: str) -> dict[tuple[str, str], dict[str, float]]:
    """Values by database and user. Pure."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, labels, value in LINE.findall(text):
        of = {label: ESCAPED.sub(_unescaped, quoted) for label, quoted in LABEL.findall(labels)}
        found.setdefault((of.get("database", ""), of.get("user", "")), {})[name] = float(value)
    return found


def _unescaped(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]


def settings(spec: Spec, nodes: int) -> dict[str, object]:
    """The pools' settings as JSON. Pure."""
    size, part = pool_size(spec), share(pool_size(spec), nodes)
    return {
        "mode": spec.pool_mode,
        "modes": {database: str(mode) for database, mode in modes(spec).items()},
        "plan": spec.pool_plan,
        "clients": size.clients,
        "connections": size.connections,
        "reserve": size.reserve,
        "per_node": {"clients": part.clients, "pool": part.pool, "reserve": part.reserve, "connections": part.most},
    }


def said(spec: Spec, nodes: int) -> list[str]:
    """The pools' settings for people. Pure."""
    size, part = pool_size(spec), share(pool_size(spec), nodes)
    lines = [f"mode     {spec.pool_mode}" + (f"; {spec.pool_modes}" if spec.pool_modes else "")]
    lines.append(
        f"sizes    plan {spec.pool_plan}: {size.clients} clients per node, {size.connections} connections to a database"
        f" from all nodes together, {size.reserve} of them in reserve"
    )
    lines.append(
        f"a node   {part.pool} connections per user and database, {part.reserve} in reserve, {part.most} in all"
    )
    return lines


def change(args: argparse.Namespace) -> Reply:
    """flypg pool set [--mode MODE [--database NAME]] [--plan PLAN] [--clients N] [--connections N] [--reserve N]"""
    return with_store(args, lambda store, _: _change(args, store))


def asked(args: argparse.Namespace, spec: Spec) -> Spec:
    """The spec as the options want it. Raises BadInput or SettingsError. Pure."""
    texts = []
    if args.database is not None:
        if not args.mode:
            raise BadInput("--database needs --mode: session, transaction, or default for that of the cluster")
        kept = {database: mode for database, mode in modes(spec).items() if database != args.database}
        if args.mode != "default":
            kept[args.database] = PoolMode(args.mode)
        texts.append(f"pool_modes={render_modes(kept)}")
    elif args.mode:
        texts.append(f"pool_mode={'' if args.mode == 'default' else args.mode}")
    for key in ("plan", "clients", "connections", "reserve"):
        if getattr(args, key) is not None:
            texts.append(f"pool_{key}={getattr(args, key)}")
    if not texts:
        raise BadInput("nothing to change: give --mode, --plan, --clients, --connections or --reserve")
    new = wishes.assign(spec, texts, OWNED)
    if args.reserve is not None and new.pool_reserve >= pool_size(new).connections:
        raise BadInput(f"--reserve {args.reserve}: must be less than the {pool_size(new).connections} connections")
    return new


async def _change(args: argparse.Namespace, store: OperatorStore) -> Reply:
    snapshot: Snapshot = await store.read()
    new = asked(args, snapshot.spec)
    lines = wishes.diff(snapshot.spec, new)
    nodes = len(snapshot.view.members) if snapshot.view is not None else 1
    data = {"changes": lines, "settings": settings(new, nodes)}
    if not lines:
        return done("nothing changes", data)
    notes = effects(snapshot.spec, new)
    term = snapshot.view.term if snapshot.view is not None else 0
    event = Event(time.time(), term, "spec", "; ".join(lines), by=whoami())
    await store.put_spec(new, read_at=snapshot.spec_revision, events=(event,))
    return done("\n".join([*(f"  {line}" for line in lines), "applied", *notes]), data)


def effects(old: Spec, new: Spec) -> list[str]:
    """What a change means for clients that are connected. Pure."""
    notes = ["no client is dropped: the poolers load it while they run"]
    if (old.pool_mode, old.pool_modes) != (new.pool_mode, new.pool_modes):
        notes.append("clients in a transaction, or in a session with a connection, keep it to its end")
    if pool_size(new).connections < pool_size(old).connections:
        notes.append("connections beyond the new limit are closed as they become free")
    return notes
