"""flypg backups: is everything there that the catalogue promises, and how far back does it reach."""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict

from backups.policy import RunHistory
from backups.repository import wal_name
from backups.upkeep import Reach, audit, reach_of
from backups.upkeep import sweep as carry_out
from cluster.errors import StoreUnavailable
from cluster.model import format_lsn
from flypg.commands.snapshots import ago, size, verified
from flypg.progress import Progress
from flypg.reply import BadInput, Exit, Reply
from flypg.repository import configured, environment, open_path
from flypg.target import Target, find


def check(args: argparse.Namespace) -> Reply:
    """flypg backups check [--deep]: compare the catalogue with what is stored. Ends with 1 when something is wrong."""
    opened = open_path(args)
    progress = Progress()
    found = audit(opened.path, deep=args.deep, progress=progress.now)
    progress.clear()
    lines = [f"{opened.said}: {len(found.snapshots)} snapshots, {found.wal_files} WAL files"]
    if found.reach is not None and found.reach.last_lsn:
        lines.append(
            f"restorable to any moment up to {format_lsn(found.reach.last_lsn)}, timeline {found.reach.timeline}"
        )
        lines += holes(found.reach)
    lines += [f"PROBLEM  {p}" for p in found.problems]
    lines += [f"garbage  {g}: was never committed; removed a day after it was last written" for g in found.garbage]
    if not found.problems:
        lines.append("everything that is listed is there" + (" and has its checksum" if args.deep else ""))
    body = {
        "problems": list(found.problems),
        "garbage": list(found.garbage),
        "snapshots": [s.id for s in found.snapshots],
        "reach": asdict(found.reach) if found.reach else None,
    }
    return Reply(Exit.FAILED if found.problems else Exit.OK, "\n".join(lines), body)


def holes(reach: Reach) -> list[str]:
    """What lies within reach and cannot be restored, a line each. Pure."""
    return [
        f"but not between {format_lsn(h.from_lsn)} and {format_lsn(h.until_lsn)}:"
        f" WAL from {h.segment} on is not archived, {h.snapshot} begins after it"
        for h in reach.holes
    ]


def sweep(args: argparse.Namespace) -> Reply:
    """flypg backups sweep [--dry-run]: delete what is older than asked, as an agent does after each snapshot."""
    opened = open_path(args)
    swept = carry_out(opened.path, opened.config.keep, dry_run=args.dry_run)
    would = "would delete" if args.dry_run else "deleted"
    lines = [f"{would} {s.id}" for s in swept.retention.delete]
    lines += [f"{would} the parts of {g}, which was never committed" for g in swept.garbage]
    lines += [f"{would} {swept.wal_files} WAL files, {size(swept.wal_bytes)}"] if swept.wal_files else []
    lines += [f"kept {s}: {why}" for s, why in swept.retention.reasons]
    lines += [f"PROBLEM  {s}: its record cannot be read: {why}" for s, why in swept.unreadable]
    if swept.unreadable:
        lines.append("no WAL is deleted: what these need is not known; delete them, or put their records back")
    body = {
        "deleted": [s.id for s in swept.retention.delete],
        "garbage": list(swept.garbage),
        "wal_files": swept.wal_files,
        "wal_bytes": swept.wal_bytes,
        "dry_run": args.dry_run,
        "unreadable": [i for i, _ in swept.unreadable],
    }
    text = "\n".join(lines) or "nothing is older than asked"
    return Reply(Exit.FAILED if swept.unreadable else Exit.OK, text, body)


def status(args: argparse.Namespace) -> Reply:
    """flypg backups status: the last snapshot, and how much would be lost with every node."""
    opened = open_path(args)
    now = time.time()
    catalogue = opened.path.catalogue()
    found = list(catalogue.snapshots)
    wal = list(opened.path.stored("wal/"))
    reach = reach_of(opened.path, found, [wal_name(info.key) for info in wal])
    newest = max((info.modified for info in wal), default=None)
    lines = [f"repository     {opened.said}"]
    if found:
        lines.append(
            f"last snapshot  {found[-1].id}, {ago(now - found[-1].finished_at)}, {size(found[-1].stored_bytes)}"
        )
        lines.append(f"verified       {verified(found[-1], now)}")
    else:
        lines.append("last snapshot  none")
    lines.append(f"last WAL       {ago(now - newest)}" if newest else "last WAL       none: no WAL is archived")
    if reach is not None and not reach.last_lsn:
        lines.append(
            f"PROBLEM        {reach.gap} is not archived: no restore follows timeline {reach.timeline} without it"
        )
    elif reach is not None:
        gap = f", with a gap at {reach.gap}" if reach.gap else ""
        lines.append(f"restorable     up to {format_lsn(reach.last_lsn)} on timeline {reach.timeline}{gap}")
        lines += [f"               {hole}" for hole in holes(reach)]
    lines += [f"PROBLEM        {i}: its record cannot be read: {why}" for i, why in catalogue.damaged]
    history = _history(args)
    if history is not None:
        lines += _runs(history, now)
    body = {
        "history": asdict(history) if history is not None else None,
        "repository": opened.said,
        "snapshots": len(found),
        "last_snapshot_at": found[-1].finished_at if found else None,
        "last_wal_at": newest,
        "rpo_s": None if newest is None else round(now - newest, 1),
        "reach": asdict(reach) if reach else None,
    }
    return Reply(Exit.OK if found else Exit.FAILED, "\n".join(lines), body)


def _history(args: argparse.Namespace) -> RunHistory | None:
    """How the agents' snapshots have gone; None when etcd does not say, or another repository was asked for."""
    if args.repository or args.path:
        return None
    values, _ = environment(args)
    asked = argparse.Namespace(dir=args.dir, etcd=None, cluster=None)
    whose = "" if configured(values).shared else values.get("FLYPG_NODE", "")
    try:
        target = find(asked)
        return asyncio.run(_read_history(target, whose))
    except (StoreUnavailable, BadInput):
        return None


async def _read_history(target: Target, whose: str) -> RunHistory:
    from backups.notes import Notes
    from cluster.etcd import Etcd

    etcd = Etcd(target.etcd)
    try:
        return await Notes(etcd, target.cluster).read_history(whose)
    finally:
        await etcd.close()


def _runs(history: RunHistory, now: float) -> list[str]:
    """The agents' last runs, for people. Pure."""
    lines = []
    if history.failures and history.failed_at is not None:
        lines.append(f"FAILED         {history.failures} times, last {ago(now - history.failed_at)}: {history.error}")
    if history.ok_at is not None:
        lines.append(f"last run       {history.ok_id}, {ago(now - history.ok_at)}")
    if history.unreadable:
        lines.append(f"PROBLEM        no WAL is deleted: {history.unreadable}")
    if history.undone:
        lines.append(f"PROBLEM        {history.undone}")
    if history.doubt:
        lines.append(f"PROBLEM        the last restore test failed: {history.doubt}")
    elif history.verified_at is not None:
        lines.append(f"restore test   {ago(now - history.verified_at)}, took {history.verified_s or 0:.0f} s")
    return lines
