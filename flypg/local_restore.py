"""A local cluster that begins with the data of a snapshot."""

from __future__ import annotations

import argparse
import asyncio
import shutil

from backups.extract import tablespaces
from backups.restore import make_plan, restore
from backups.restore_plan import Refused as PlanRefused
from backups.restore_plan import Target, TargetKind
from flypg.ending import ended_in_order
from flypg.local_layout import Layout
from flypg.progress import Progress
from flypg.reply import BadInput, Refused
from flypg.repository import open_path
from postgres.command import account


def restore_first_node(args: argparse.Namespace, layout: Layout, user: str | None, progress: Progress) -> None:
    """Put the data of the snapshot that was asked for where the first node will find and adopt it.

    Raises BadInput when no repository is named, Refused when the cluster has data or the restore cannot be done.
    """
    if not args.repository:
        raise BadInput("--from-snapshot needs --repository URL: where the snapshot is")
    node = layout.names[0]
    directory = layout.node_dir(node)
    if any((layout.node_dir(name) / "pgdata").exists() for name in layout.names):
        raise Refused(f"the cluster in {layout.root} has data already: --from-snapshot is for a new one")
    asked = argparse.Namespace(dir=None, repository=args.repository, path=args.path)
    opened = open_path(asked)
    plan = make_plan(opened.path, Target(TargetKind.LATEST), snapshot=args.from_snapshot)
    if isinstance(plan, PlanRefused):
        raise Refused(f"{plan.why}; nothing was started")
    progress.now(f"restoring {plan.snapshot.id} of {plan.snapshot.cluster} into {node}")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    data = directory / "pgdata"
    try:
        with ended_in_order():
            result = asyncio.run(restore(opened.path, plan, data, owner=account(user)))
    except BaseException:
        for half in (data, tablespaces(data)):  # else it is taken for data of the cluster the next time
            shutil.rmtree(half, ignore_errors=True)
        raise
    progress.done(f"restored {plan.snapshot.id} of {plan.snapshot.cluster} in {result.total_s:.1f} s")
