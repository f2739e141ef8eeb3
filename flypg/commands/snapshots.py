"""flypg snapshots: take, list, look at, pin, delete and try out snapshots."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import time
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Any

from backups import layout
from backups.base import Progress as Done
from backups.base import take_snapshot
from backups.catalog import SnapshotRecord, Verification
from backups.errors import ObjectMissing, RestoreRefused
from backups.hooks import about, hooked
from backups.policy import RunHistory, succeeded, with_verification
from backups.repository import Path, PathInfo, Repository
from backups.verify import verify as try_out
from cluster.errors import StoreUnavailable
from cluster.model import NodeId, format_lsn
from flypg.commands.change import confirm
from flypg.commands.noted import tell_nodes
from flypg.ending import ended_in_order
from flypg.progress import Progress
from flypg.reply import BadInput, Exit, Refused, Reply, done
from flypg.repository import Opened, configured, environment, open_path, path_name
from flypg.target import find
from postgres.basebackup import server_facts
from postgres.command import account


def run_list(args: argparse.Namespace) -> Reply:
    """flypg snapshots list: newest first, as Fly lists its own."""
    opened = open_path(args)
    catalogue = opened.path.catalogue()
    found = list(catalogue.snapshots)
    now = time.time()
    text = table(found, now) if found else f"no snapshots in {opened.said}"
    text += "".join(f"\nPROBLEM  {i}: its record cannot be read: {why}" for i, why in catalogue.damaged)
    body = {"path": opened.said, "snapshots": [data(s) for s in reversed(found)]}
    return done(text, {**body, "damaged": [{"id": i, "error": why} for i, why in catalogue.damaged]})


def table(found: list[SnapshotRecord], now: float) -> str:
    """ID, SIZE and CREATED AT as in `fly volumes snapshots list`, then what flypg knows beyond that. Pure."""
    head = ("ID", "SIZE", "CREATED AT", "DATABASE", "WAL FROM", "VERIFIED")
    body = [
        (s.id, size(s.stored_bytes), ago(now - s.finished_at), size(s.raw_bytes), wal_from(s), verified(s, now))
        for s in reversed(found)
    ]
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *body)]
    total = size(sum(s.stored_bytes for s in found))
    return "\n".join([*(line.rstrip() for line in lines), "", f"{len(found)} snapshots, {total} stored"])


def wal_from(record: SnapshotRecord) -> str:
    return f"{format_lsn(record.start_lsn)} on timeline {record.timeline}"


def verified(record: SnapshotRecord, now: float) -> str:
    result = record.verification
    if result is None:
        return "never" + (", damaged pages" if record.damaged_pages else "")
    word = f"ok, restored in {result.restore_s:.0f} s" if result.ok else f"FAILED: {result.text}"
    return f"{word} ({ago(now - result.at)})"


def size(count: int) -> str:
    """`29 MiB`, as Fly prints sizes."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}" if value < 10 and unit != "B" else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def ago(seconds: float) -> str:
    """`2 hours ago`, as Fly prints times."""
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "in the future" if seconds < -60 else "just now"


def data(record: SnapshotRecord) -> dict[str, Any]:
    """A snapshot for --json."""
    return {
        "id": record.id,
        "size": record.stored_bytes,
        "created_at": record.finished_at,
        "database_bytes": record.raw_bytes,
        "node": record.node,
        "role": record.role,
        "server_version": record.server_version,
        "timeline": record.timeline,
        "start_lsn": format_lsn(record.start_lsn),
        "stop_lsn": format_lsn(record.stop_lsn),
        "pinned": record.pinned,
        "damaged_pages": record.damaged_pages,
        "encrypted_with": record.encrypted_with,
        "verification": asdict(record.verification) if record.verification else None,
    }


def show(args: argparse.Namespace) -> Reply:
    """flypg snapshots show ID: everything that is recorded of one snapshot."""
    record = _find(open_path(args).path, args.id)
    body = data(record)
    lines = [f"{key:<16} {value}" for key, value in body.items() if key != "verification"]
    lines.append(f"{'verification':<16} {verified(record, time.time())}")
    lines += [f"{a.name:<16} {size(a.raw_bytes)} in {len(a.parts)} parts  {a.location}" for a in record.archives]
    return done("\n".join(lines), body)


def _find(path: Path, name: str) -> SnapshotRecord:
    """The snapshot of this name, or the newest for "latest". Raises Refused."""
    if name == "latest":
        found = path.snapshots()
        if not found:
            raise Refused(f"there is no snapshot in {path.describe()}")
        return found[-1]
    if not layout.SNAPSHOT_ID.match(name):
        raise BadInput(f"{name!r} is no id of a snapshot (vs_…, see flypg snapshots list)")
    try:
        return path.snapshot(name)
    except ObjectMissing:
        raise Refused(f"there is no snapshot {name} in {path.describe()}") from None


def delete(args: argparse.Namespace) -> Reply:
    """flypg snapshots delete ID: for good."""
    path = open_path(args).path
    catalogue = path.catalogue()
    damaged = dict(catalogue.damaged)
    if args.id in damaged:
        name, what = args.id, f"{args.id}, whose record cannot be read ({damaged[args.id]}),"
    else:
        record = _find(path, args.id)
        name, what = record.id, f"{record.id} ({size(record.stored_bytes)})"
        if record.pinned:
            raise Refused(f"{name} is pinned: flypg snapshots pin {name} --off; nothing was changed")
    rest = [s for s in catalogue.snapshots if s.id != name]
    if not args.yes:
        confirm(f"{what} is deleted for good. {_then(rest, time.time())}", typed=name, unless="--yes")
    path.remove_snapshot(name)
    return done(f"{name} is deleted", {"id": name, "left": len(rest)})


def _then(rest: list[SnapshotRecord], now: float) -> str:
    """What can be restored without it."""
    if not rest:
        return "It is the last one: nothing can be restored then, WAL alone is not enough."
    return f"Restores then begin with {rest[0].id}, {ago(now - rest[0].finished_at)}."


def pin(args: argparse.Namespace) -> Reply:
    """flypg snapshots pin ID [--off]: keep a snapshot however old it becomes."""
    path = open_path(args).path
    record = _find(path, args.id)
    path.pin(record, not args.off)
    return done(f"{record.id} is " + ("no longer pinned" if args.off else "pinned: retention leaves it alone"))


def verify(args: argparse.Namespace) -> Reply:
    """flypg snapshots verify [ID]: restore it into a scratch directory, look at everything, remove it."""
    opened = open_path(args)
    record = _find(opened.path, args.id)
    progress = Progress()
    progress.now(f"restoring {record.id}, {size(record.raw_bytes)}")
    scratch = FilePath(args.scratch) if args.scratch else opened.config.scratch

    def tell(at: Done) -> None:
        share = min(100, 100 * at.done_bytes // max(1, at.total_bytes)) // 10 * 10
        progress.now(
            f"restoring {record.id}, {share} %" if share < 100 else "checking files, tables, indexes and pages"
        )

    try:
        with ended_in_order():
            found: Verification = asyncio.run(
                try_out(
                    opened.path,
                    record,
                    scratch,
                    owner=_owner(),
                    node=args.node or "",
                    programs=args.programs or "",
                    progress=tell,
                )
            )
    except RestoreRefused as error:
        raise Refused(f"{error}; nothing was changed") from None
    finally:
        progress.clear()
    whose = _whose(args, opened)
    if not args.path and whose is not None:
        tell_nodes(args, whose, opened.path.name.system_id, lambda h: with_verification(h, record.id, found))
    word = "can be restored" if found.ok else "FAILED its restore test"
    text = (
        f"{record.id} {word}: {found.text} (restored in {found.restore_s:.1f} s, {found.total_s:.1f} s with all checks)"
    )
    return Reply(Exit.OK if found.ok else Exit.FAILED, text, {"id": record.id, **asdict(found)})


def _whose(args: argparse.Namespace, opened: Opened) -> str | None:
    """Of which node the repository is, "" if it is shared; None: not known."""
    if opened.config.shared:
        return ""
    return args.node or (opened.layout.names[0] if opened.layout else os.environ.get("FLYPG_NODE")) or None


def _owner() -> Any:
    return account(os.environ.get("FLYPG_OS_USER") or "postgres")


def create(args: argparse.Namespace) -> Reply:
    """flypg snapshots create: now, of the node on this machine."""
    values, cluster = environment(args)
    if cluster is not None:
        if args.node and args.node not in cluster.names:
            raise BadInput(f"there is no node {args.node} in {cluster.root}: it has {', '.join(cluster.names)}")
        values |= cluster.environment(args.node or cluster.names[0])
    config = configured(values)
    node = NodeId(args.node or values.get("FLYPG_NODE", "") or "operator")
    run_dir = FilePath(values.get("FLYPG_DATA_DIR") or "/data") / "run"
    conninfo = args.conninfo or f"host={run_dir} port={values.get('FLYPG_POSTGRES_PORT') or 5433} user=postgres"
    facts = server_facts(conninfo)
    repository = config.repository()
    path = _path_of(repository, args, values.get("FLYPG_CLUSTER") or "flypg", facts.system_id)
    progress = Progress()

    def tell(at: Done) -> None:
        share = min(99, 100 * at.done_bytes // max(1, at.total_bytes)) // 10 * 10
        progress.now(f"{share} % of {size(at.total_bytes)}")

    snapshot = layout.snapshot_id([secrets.randbelow(len(layout.ALPHABET)) for _ in range(16)])
    began, began_at = time.monotonic(), time.time()

    def take() -> SnapshotRecord:
        return take_snapshot(
            path, config.codec(), conninfo, snapshot=snapshot, node=node, options=config.options, progress=tell
        )

    try:
        told = about(snapshot, path.name.cluster, node, run_dir.parent, conninfo)
        record, after_error = hooked(config.hooks, told, take)
    finally:
        progress.clear()
    took = time.monotonic() - began
    if not args.path:

        def taken(history: RunHistory) -> RunHistory:
            stored, at = record.stored_bytes, time.time()
            return succeeded(history, began=began_at, at=at, snapshot=record.id, size=stored, where=config.url)

        tell_nodes(args, "" if config.shared else node, facts.system_id, taken)
    text = f"{record.id}: {size(record.raw_bytes)} in {took:.1f} s, {size(record.stored_bytes)} in {path.describe()}"
    body = {**data(record), "seconds": round(took, 2), "after_error": after_error}
    if after_error:
        return Reply(Exit.FAILED, f"{text}\nit is there and can be restored, but {after_error}", body)
    return done(text, body)


def _path_of(repository: Repository, args: argparse.Namespace, cluster: str, system_id: str) -> Path:
    """The path that this cluster's agents use, says etcd; without etcd the newest of its system, or a new one."""
    if args.path:
        return repository.path(path_name(args.path))
    fresh = secrets.token_hex(4)
    try:
        incarnation = asyncio.run(_incarnation(args, cluster, system_id, fresh))
    except (StoreUnavailable, BadInput):
        found = [p.incarnation for p in repository.paths(cluster) if p.system_id == system_id]
        incarnation = found[-1] if found else fresh
    return repository.begin_path(PathInfo(cluster, system_id, incarnation, time.time()))


async def _incarnation(args: argparse.Namespace, cluster: str, system_id: str, fresh: str) -> str:
    from backups.notes import Notes
    from cluster.etcd import Etcd

    etcd = Etcd(find(args).etcd)
    try:
        return await Notes(etcd, cluster).incarnation(system_id, fresh)
    finally:
        await etcd.close()
