"""flypg restore: a cluster's data as it was, in a directory; from a snapshot and the archived WAL."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path as FilePath

from backups.base import Progress as Done
from backups.errors import RepositoryError, RestoreFailed, RestoreRefused
from backups.extract import tablespaces
from backups.restore import RestoreResult, make_plan
from backups.restore import restore as carry_out
from backups.restore_plan import Refused as PlanRefused
from backups.restore_plan import RestorePlan, Target, TargetKind, describe
from backups.unpacked import check_space
from cluster.errors import InstanceError, StoreUnavailable
from cluster.model import NodeId, Snapshot, parse_lsn
from flypg.commands import restore_cluster
from flypg.commands.change import confirm
from flypg.commands.snapshots import size
from flypg.ending import ended_in_order
from flypg.progress import Progress
from flypg.reply import BadInput, Refused, Reply, done
from flypg.repository import Opened, open_path
from flypg.target import Target as ClusterTarget
from flypg.target import find
from postgres.command import Account, account, closed_above
from postgres.scratch import find_programs

CLUSTER_ONLY = ("node", "confirm", "discard_old", "cancel", "follow", "no_wait", "etcd", "cluster")
FIRST_XID = 3  # the ones below stand for something else
LONGEST_NAME = 63
CLOCK_S = 60.0  # by how much the cluster's clock may be ahead of ours
NEXT = """\
{directory} is the data directory of a primary on timeline {timeline}; it was stopped in order.
To make it a cluster: give it to the first node of a *new* cluster (FLYPG_CLUSTER, another name), as its FLYPG_PGDATA,
and start that node's agent; it adopts the data, sets passwords anew and archives into a path of its own."""


def run(args: argparse.Namespace) -> Reply:
    """flypg restore --into DIR [--snapshot ID] [--to-time …]: show the plan, ask, carry it out."""
    target = target_of(args)
    if args.into == "":
        raise BadInput("--into: names no directory")
    if args.into is None:
        if not args.in_place:
            raise BadInput("say where: --into DIR, or --in-place for the whole cluster where it is")
        return restore_cluster.run(args, target)
    if given := [name for name in CLUSTER_ONLY if getattr(args, name)]:
        raise BadInput(f"--{given[0].replace('_', '-')} is for --in-place without --into")
    opened = open_path(args)
    plan = make_plan(opened.path, target, snapshot=args.snapshot, timeline=args.timeline)
    if isinstance(plan, PlanRefused):
        raise Refused(f"{plan.why}; nothing was changed")
    refuse_sealed(opened, plan)
    directory = place_of(args.into, in_place=args.in_place)
    owner = account(os.environ.get("FLYPG_OS_USER") or "postgres")
    if owner is not None and (closed := closed_above(directory, owner)) is not None:
        raise BadInput(f"the user {owner.name}, as whom PostgreSQL runs, cannot enter {closed}: choose another --into")
    aside = _in_the_way(directory, in_place=args.in_place)
    _refuse_impossible(plan, directory, args.programs or "")
    doubts = doubts_about(opened, plan)
    lines = [*describe(plan), *(f"warning    {d}" for d in doubts), f"into       {directory}"]
    lines += [f"aside      what is there is kept as {aside}"] if aside else []
    body = plan_data(plan, directory)
    if args.plan:
        return done("\n".join(lines), {**body, "warnings": [*plan.warnings, *doubts]})
    if args.in_place:
        refuse_alive(args)
    if not args.yes:
        confirm("\n".join(lines), typed=opened.cluster if args.in_place else "restore", unless="--yes")
    if aside:
        directory.rename(aside)
    result = _carried_out(args, opened, plan, directory, owner, aside)
    commit = f"; last transaction {result.last_commit}" if result.last_commit else ""
    text = (
        f"restored {plan.snapshot.id} to {plan.target} in {result.total_s:.1f} s "
        f"(unpacking and checking {result.unpack_s + result.check_s:.1f}, recovery {result.recovery_s:.1f}){commit}\n"
        + NEXT.format(directory=directory, timeline=result.timeline)
    )
    return done(text, {**body, **asdict(result), "directory": str(directory)})


def _carried_out(
    args: argparse.Namespace,
    opened: Opened,
    plan: RestorePlan,
    directory: FilePath,
    owner: Account | None,
    aside: FilePath | None,
) -> RestoreResult:
    """Restore, and tell how far it is; whoever ends it is told what is left."""
    progress = Progress()

    def tell(at: Done) -> None:
        share = min(100, 100 * at.done_bytes // max(1, at.total_bytes)) // 10 * 10
        text = f"unpacking {share} % of {size(at.total_bytes)}"
        progress.now(text if share < 100 else "replaying WAL")

    def replaying(at: int, count: int) -> None:
        share = 100 * at // count // 10 * 10
        progress.now(f"replaying WAL, {share} % of {size(count * plan.snapshot.segment_bytes)}")

    work = carry_out(
        opened.path,
        plan,
        directory,
        owner=owner,
        programs=args.programs or "",
        inclusive=not args.exclusive,
        progress=tell,
        replaying=replaying,
    )
    try:
        with ended_in_order():
            return asyncio.run(work)
    except RestoreRefused as error:
        raise Refused(f"{error}; what was there lies in {aside}" if aside else str(error)) from None
    except (RestoreFailed, RepositoryError) as error:
        raise RestoreFailed(f"{error}; {_left(directory, aside)}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {_left(directory, aside)}") from None
    finally:
        progress.clear()


def place_of(into: str, *, in_place: bool) -> FilePath:
    """The directory to make; the one that a link leads to, when it is to be moved aside. Raises BadInput."""
    directory = FilePath(into).absolute()
    try:
        real = directory.resolve()
        if directory.is_symlink() and not real.exists():
            raise BadInput(f"--into: {directory} leads to {real}, which is not there")
        return real if in_place else directory
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, a link to itself, a NUL
        raise BadInput(f"--into: {into!r}: {getattr(error, 'strerror', None) or error}") from None


def _left(directory: FilePath, aside: FilePath | None) -> str:
    """What a restore that has not worked leaves behind."""
    before = f"; what was there lies in {aside}" if aside else ""
    if not directory.is_dir() or not any(directory.iterdir()):
        return f"{directory} is as it was" if not aside else before[2:]
    half = [str(place) for place in (directory, tablespaces(directory)) if place.exists()]
    return f"left half done: {' and '.join(half)}; remove that before you try again{before}"


def refuse_sealed(opened: Opened, plan: RestorePlan) -> None:
    """Raise Refused when the key is missing that the plan's snapshot was sealed with."""
    if not opened.path.opens(plan.snapshot):
        raise Refused(
            f"{plan.snapshot.id} is sealed with key {plan.snapshot.encrypted_with}, which was not given"
            " (FLYPG_SNAPSHOT_KEY, FLYPG_SNAPSHOT_KEY_FILE); nothing was changed"
        )


def _refuse_impossible(plan: RestorePlan, directory: FilePath, programs: str) -> None:
    """Raise Refused for what can be known before anything is touched: no room, no programs."""
    try:
        check_space(directory, plan.snapshot.raw_bytes)
        find_programs(plan.snapshot.major, programs)
    except (RestoreRefused, InstanceError) as error:
        raise Refused(f"{error}; nothing was changed") from None


def doubts_about(opened: Opened, plan: RestorePlan) -> list[str]:
    """What may keep a plan from working out, beyond what it knows of itself."""
    doubts = []
    if plan.target.kind is TargetKind.TIME:
        stored = (info.modified for place in ("wal/", "stream/") for info in opened.path.stored(place))
        newest = max(stored, default=plan.snapshot.finished_at)
        if newest < plan.target.time:
            at = datetime.fromtimestamp(newest, UTC).isoformat(sep=" ", timespec="seconds")
            doubts.append(
                f"nothing was archived after {at}: if no transaction ended after {plan.target.text}, it is not reached;"
                " without --to-time, all there is is restored"
            )
    if opened.config.codec().key is not None and not plan.snapshot.encrypted_with:
        doubts.append(f"{plan.snapshot.id} is not encrypted, although there is a key")
    return doubts


def refuse_alive(args: argparse.Namespace) -> None:
    """Raise Refused when etcd knows the cluster, and an agent of it runs: it would meet its own past."""
    try:
        target = find(argparse.Namespace(dir=args.dir, etcd=None, cluster=None))
        snapshot = asyncio.run(_look(target))
    except (StoreUnavailable, BadInput):
        return  # nobody to ask: the cluster is as dead as can be seen from here
    if snapshot.reports:
        nodes = ", ".join(sorted(snapshot.reports))
        raise Refused(
            f"{target.said} is alive: agents run on {nodes}; stop every one of them first; nothing was changed"
        )


async def _look(target: ClusterTarget) -> Snapshot:
    from cluster.clock import SystemClock
    from cluster.etcd import Etcd
    from cluster.etcd_store import EtcdStore

    etcd = Etcd(target.etcd)
    try:
        return await EtcdStore(etcd, target.cluster, NodeId("operator"), clock=SystemClock()).read()
    finally:
        await etcd.close()


def _in_the_way(directory: FilePath, *, in_place: bool) -> FilePath | None:
    """Where what is in the directory is moved; None when nothing is. Raises Refused for what a server runs on."""
    if not directory.exists():
        return None
    if not directory.is_dir():
        raise BadInput(f"--into: {directory} is not a directory; nothing was changed")
    if not any(directory.iterdir()):
        return None
    if not in_place:
        raise Refused(f"{directory} is not empty; nothing was changed (--in-place restores over a dead cluster's data)")
    pid = directory / "postmaster.pid"
    if pid.exists():
        number = pid.read_text().split("\n", 1)[0].strip()
        if number.isdigit() and FilePath(f"/proc/{number}").exists():
            raise Refused(f"PostgreSQL runs on {directory} (pid {number}): stop the node first; nothing was changed")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return directory.with_name(f"{directory.name}.before-restore-{stamp}")


def target_of(args: argparse.Namespace) -> Target:
    """What the options ask for. Raises BadInput."""
    given = {k: v for k in ("time", "lsn", "name", "xid") if (v := getattr(args, f"to_{k}")) is not None}
    if len(given) > 1 or (given and args.snapshot_only):
        raise BadInput("give one of --to-time, --to-lsn, --to-name, --to-xid, --snapshot-only")
    if args.exclusive and given.keys().isdisjoint({"time", "lsn", "xid"}):
        raise BadInput("--exclusive goes with --to-time, --to-lsn or --to-xid")
    if args.snapshot_only:
        if args.timeline is not None:
            raise BadInput("--snapshot-only is without archived WAL, and follows no --timeline")
        return Target(TargetKind.SNAPSHOT)
    if not given:
        return Target(TargetKind.LATEST)
    ((kind, text),) = given.items()
    if not text:
        raise BadInput(f"--to-{kind}: it is empty; without it, all there is is restored")
    match kind:
        case "time":
            return at_time(text)
        case "lsn":
            try:
                return Target(TargetKind.LSN, text, lsn=parse_lsn(text))
            except ValueError as error:
                raise BadInput(f"--to-lsn: {error}") from None
        case "xid":
            if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) % (1 << 32) < FIRST_XID:
                raise BadInput(f"--to-xid: {text!r} is no transaction id")
            return Target(TargetKind.XID, str(int(text) % (1 << 32)))  # WAL has no epoch
        case _:
            if len(text.encode()) > LONGEST_NAME:
                raise BadInput(f"--to-name: a restore point's name has at most {LONGEST_NAME} bytes")
            if "\n" in text:  # PostgreSQL notes it in a history file, which it then cannot read
                raise BadInput(
                    "--to-name: PostgreSQL cannot use a name with a line break; say where it is with --to-lsn"
                )
            return Target(TargetKind.NAME, text)


def at_time(text: str) -> Target:
    """A moment: ISO 8601, UTC when it names no zone. Raises BadInput."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"--to-time: {text!r} is no time, like 2026-11-29T14:30:00+01:00 (UTC without a zone)") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment.timestamp() > time.time() + CLOCK_S:
        raise BadInput(f"--to-time: {moment.isoformat(sep=' ')} is in the future; without it, all there is is restored")
    return Target(TargetKind.TIME, moment.isoformat(sep=" "), time=moment.timestamp())


def plan_data(plan: RestorePlan, directory: FilePath) -> dict[str, object]:
    return {
        "snapshot": plan.snapshot.id,
        "target": str(plan.target),
        "timeline": plan.timeline,
        "into": str(directory),
        "warnings": list(plan.warnings),
    }
