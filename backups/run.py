"""Work on a repository, as a program of its own: it needs memory and libraries that an idle agent must not carry.

    python -m backups.run snapshot | verify | sweep | wal | restore | seed   --path CLUSTER/SYSTEM-INCARNATION …

Settings come from the environment. Progress goes to standard error, a line of JSON each; the result is one line of JSON
on standard output; a failure is a sentence on standard error and exit code 1. `wal` runs until it is stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path as FilePath

from backups.base import Progress, take_snapshot
from backups.catalog import SnapshotRecord
from backups.config import BackupConfig, read_config
from backups.errors import RestoreRefused
from backups.hooks import about, hooked
from backups.late import LatePath
from backups.layout import SEGMENT, SEGMENT_BYTES, parse_path
from backups.memory import few_arenas
from backups.policy import verify_due
from backups.repository import Path, PathInfo, Repository
from backups.upkeep import sweep
from cluster.errors import FlypgError
from postgres.command import account

TELL_EVERY_S = 2.0
ALONE_S = 1.0  # how soon work ends without the agent that ordered it
READS = ("restore", "seed")  # work that must not begin a path
FIRST_TO_GO = "500"  # of 1000, see proc(5)
ORPHAN_S = 120.0  # an archiver that its agent has not spoken to for so long ends itself


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m backups.run")
    parser.add_argument("work", choices=list(WORK))
    parser.add_argument("--path", required=True)
    parser.add_argument("--parent", default="")
    parser.add_argument("--begun", action="store_true", help="there is a repository; none is to be begun")
    parser.add_argument("--node", required=True)
    parser.add_argument("--data-dir", required=True, type=FilePath)
    parser.add_argument("--user", default="")
    parser.add_argument("--id", default="")
    parser.add_argument("--conninfo", default="")
    parser.add_argument("--programs", default="")
    parser.add_argument("--target", default="{}")
    parser.add_argument("--followed", default="{}")
    parser.add_argument("--timeline", type=int, default=0)
    parser.add_argument("--exclusive", action="store_true")
    parser.add_argument("--into", type=FilePath)
    parser.add_argument("--pg-wal", type=FilePath)
    parser.add_argument("--socket", type=FilePath)
    args = parser.parse_args(argv)
    _be_first_to_go()
    few_arenas()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s %(levelname)s %(message)s")
    os.nice(0 if args.work == "wal" else 10)
    if args.work in ("snapshot", "sweep", "restore", "seed"):
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        config = read_config(os.environ, args.data_dir)
        name = parse_path(args.path)
        about = PathInfo(name.cluster, name.system_id, name.incarnation, time.time(), args.parent)
        if args.work in READS:
            path = config.repository(create=False).path(name)
        elif args.work == "wal":  # must answer PostgreSQL also while the repository is away
            path = LatePath(Repository(config.store(), config.codec()), about, begun=args.begun)
        else:
            path = config.repository(create=not args.begun).begin_path(about)
        result = WORK[args.work](args, config, path)
    except FlypgError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    print(json.dumps(result), flush=True)
    return 0


def _be_first_to_go() -> None:
    """Where memory runs out this work ends and is done again, with the servers it has started; not PostgreSQL."""
    with contextlib.suppress(OSError):
        FilePath("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)


def end_with(parent: int) -> None:
    """End this process when its agent is gone: nobody renews its lease any more, and another node begins anew."""
    while os.getppid() == parent:
        time.sleep(ALONE_S)
    os._exit(1)


def teller() -> Callable[[Progress], None]:
    """Prints progress now and then."""
    last = 0.0

    def tell(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= TELL_EVERY_S:
            last = now
            print(json.dumps(asdict(progress)), file=sys.stderr, flush=True)

    return tell


def _snapshot(args: argparse.Namespace, config: BackupConfig, path: Path) -> dict[str, object]:
    def take() -> SnapshotRecord:
        return take_snapshot(
            path,
            config.codec(),
            args.conninfo,
            snapshot=args.id,
            node=args.node,
            options=config.options,
            progress=teller(),
        )

    told = about(args.id, path.name.cluster, args.node, args.data_dir, args.conninfo)
    record, doubt = hooked(config.hooks, told, take)
    return {
        "id": record.id,
        "stored_bytes": record.stored_bytes,
        "finished_at": record.finished_at,
        "after_error": doubt,
    }


def _verify(args: argparse.Namespace, config: BackupConfig, path: Path) -> dict[str, object]:
    from backups.verify import verify

    record = path.snapshot(args.id) if args.id else verify_due(path.snapshots(), wished=True)
    if record is None:
        return {"id": ""}
    found = asyncio.run(
        verify(path, record, config.scratch, owner=account(args.user or None), node=args.node, programs=args.programs)
    )
    return {"id": record.id, **asdict(found)}


def _sweep(args: argparse.Namespace, config: BackupConfig, path: Path) -> dict[str, object]:
    swept = sweep(path, config.keep)
    return {
        "kept": len(swept.retention.keep),
        "oldest_at": min((s.finished_at for s in swept.retention.keep), default=None),
        "deleted": [s.id for s in swept.retention.delete],
        "wal_files": swept.wal_files,
        "wal_bytes": swept.wal_bytes,
        "garbage": list(swept.garbage),
        "unreadable": "; ".join(f"{i}: {why}" for i, why in swept.unreadable),
    }


def _restore(args: argparse.Namespace, config: BackupConfig, path: Path) -> dict[str, object]:
    """A directory out of a snapshot and WAL, planned anew: what was archived since may count."""
    from backups.restore import make_plan, restore
    from backups.restore_plan import Refused, Target, TargetKind

    wished = json.loads(args.target)
    target = Target(TargetKind(wished.pop("kind")), **wished)
    plan = make_plan(path, target, snapshot=args.id, timeline=args.timeline or None)
    if isinstance(plan, Refused):
        raise RestoreRefused(plan.why)
    result = asyncio.run(
        restore(
            path,
            plan,
            args.into,
            owner=account(args.user or None),
            programs=args.programs,
            inclusive=not args.exclusive,
            progress=teller(),
        )
    )
    return {**asdict(result), "directory": str(result.directory)}


def _seed(args: argparse.Namespace, config: BackupConfig, path: Path) -> dict[str, object]:
    """The data of a standby out of a snapshot and WAL; `--followed`: what is known of its primary."""
    from backups.seed import seed
    from backups.seed_plan import Followed

    def say(text: str) -> None:
        print(json.dumps({"doing": text}), file=sys.stderr, flush=True)

    followed = Followed(**json.loads(args.followed))
    owner = account(args.user or None)
    made = asyncio.run(seed(path, followed, args.into, owner=owner, programs=args.programs, progress=teller(), say=say))
    return asdict(made)


def _wal(args: argparse.Namespace, config: BackupConfig, path: Path) -> dict[str, object]:
    """Archive until we are stopped, or until no agent has spoken to us for a while."""
    from backups.stream import WalStreamer
    from backups.wal import WalArchiver
    from backups.wire import LineServer

    size = segment_bytes(args.pg_wal)
    archiver = WalArchiver(path, args.pg_wal, segment_bytes=size, options=config.wal)
    streamer = None
    if config.stream_every_s:
        streamer = WalStreamer(path, args.pg_wal, segment_bytes=size, every_s=config.stream_every_s)
        streamer.start()
    stopped = threading.Event()
    heard = time.monotonic()

    def handle(fields: list[str]) -> str:
        nonlocal heard
        if fields[0] == "push":
            return archiver.handle(fields)
        heard = time.monotonic()
        timeline = None
        if fields[0] == "stand" and len(fields) in (3, 4):
            timeline = int(fields[1]) or None
            archiver.stand(timeline, draining=fields[2] == "draining")
            if streamer is not None:
                streamer.told(timeline, int(fields[3]) if len(fields) == 4 else None)
        elif fields[0] == "stop":
            stopped.set()
        status = archiver.status()
        if streamer is not None:
            queue = streamer.reach(status.queue, timeline)
            status = replace(status, queue=queue, error=status.error or streamer.error)
        return "ok " + json.dumps(asdict(status))

    server = LineServer(args.socket, handle, account(args.user or None))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server.start()
    while not stopped.wait(5.0) and time.monotonic() - heard < ORPHAN_S:
        continue
    server.stop()
    if streamer is not None:
        streamer.stop()
    archiver.stop()
    return asdict(archiver.status())


def segment_bytes(pg_wal: FilePath) -> int:
    """The size of this cluster's segments: that of any that is there."""
    for file in sorted(pg_wal.iterdir()):
        if SEGMENT.match(file.name):
            return file.stat().st_size
    return SEGMENT_BYTES


WORK: dict[str, Callable[[argparse.Namespace, BackupConfig, Path], dict[str, object]]] = {
    "snapshot": _snapshot,
    "verify": _verify,
    "sweep": _sweep,
    "wal": _wal,
    "restore": _restore,
    "seed": _seed,
}


if __name__ == "__main__":
    sys.exit(main())
