"""Measures what backups are held to, beside pg_basebackup and pgBackRest on the same server and the same S3 service.

`python -m benchmarks.backups [--scale 130] [--runs 3]` prints JSON; scale 130 is a database of 2 GB. It needs
PostgreSQL 15, Debian's radosgw (tests/support/radosgw.py) and pgbackrest; what is missing is left out and named. Every
pair is measured side by side, in turns, at the same priority and with the same compression (zstd, level 1); read the
ratios.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.backup_wal import archiver, archiving, client_ms, fill
from benchmarks.backup_world import BUCKET, Measured, World, world
from tests.support.radosgw import missing, radosgw

BARS = {
    "directory_vs_pg_basebackup": 1.2,
    "s3_vs_pgbackrest": 1.0,
    "restore_s3_vs_pgbackrest": 1.0,  # up to a server that was recovered and has stopped in order
    "restore_s3_files_vs_pgbackrest": 1.0,  # up to files that are there and checked
    "restore_s3_with_wal_vs_pgbackrest": 1.0,
    "restore_directory_vs_untar": 1.0,
    "restore_directory_files_vs_untar": 1.0,
    "peak_mb": 120.0,
    "client_added_ms": 15.0,
}


def side_by_side(runs: int, one: Callable[[int], Measured], other: Callable[[int], Measured]) -> dict[str, Any]:
    """Both in turns, each first every other time; the ratio of each turn, and their median."""
    ours: list[Measured] = []
    theirs: list[Measured] = []
    for turn in range(runs):
        for mine in (True, False) if turn % 2 == 0 else (False, True):
            done = (one if mine else other)(turn)
            (ours if mine else theirs).append(done)
            print(f"  {'flypg' if mine else 'rival'} {done.wall_s} s, {done.peak_mb} MB", file=sys.stderr, flush=True)
    return {
        "flypg": summary(ours),
        "rival": summary(theirs),
        "ratio": round(statistics.median(a.wall_s / b.wall_s for a, b in zip(ours, theirs, strict=True)), 2),
        "cpu_ratio": round(statistics.median(a.cpu_s / b.cpu_s for a, b in zip(ours, theirs, strict=True)), 2),
    }


def summary(runs: list[Measured]) -> dict[str, Any]:
    return {
        "wall_s": statistics.median(r.wall_s for r in runs),
        "wall_s_all": [r.wall_s for r in runs],
        "cpu_s": statistics.median(r.cpu_s for r in runs),
        "peak_mb": max(r.peak_mb for r in runs),
    }


class Bench:
    """The comparisons, on one server."""

    def __init__(self, here: World, runs: int) -> None:
        self._here = here
        self._runs = runs
        self._taken: dict[str, str] = {}  # where → the newest snapshot there

    def _scratch(self, name: str) -> Path:
        place = self._here.root / "scratch" / name
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(place.with_name(f"{name}.tablespaces"), ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        place.parent.chmod(0o777)
        return place

    def _snapshot(self, where: str) -> Measured:
        self._taken[where], done = self._here.snapshot(where)
        return done

    def _restore(self, where: str) -> Measured:
        into = self._scratch(f"restored-{where}")
        done = self._here.restore(where, self._taken[where], into)
        shutil.rmtree(into)
        return done

    def to_directory(self, compress: str) -> dict[str, Any]:
        def rival(_: int) -> Measured:
            into = self._scratch("basebackup")
            done = self._here.basebackup(into, compress)
            shutil.rmtree(into)
            return done

        return side_by_side(self._runs, lambda _: self._snapshot("directory"), rival)

    def restored_from_directory(self) -> dict[str, Any]:
        """Beside it, plain tools that unpack and check what pg_basebackup has taken."""
        taken = self._scratch("taken")
        self._here.basebackup(taken, "client-zstd:1")
        return self._restored("directory", "untar", lambda into: self._here.untar(taken, into))

    def _restored(self, where: str, name: str, restore: Callable[[Path], Measured]) -> dict[str, Any]:
        """A rival's `output` are seconds until the files are there and checked; the recovery comes after that."""
        mine: list[float] = []
        theirs: list[float] = []

        def rival(_: int) -> Measured:
            into = self._scratch(name)
            done = restore(into)
            shutil.rmtree(into)
            theirs.append(float(done.output))
            return done

        def ours(_: int) -> Measured:
            done = self._restore(where)
            mine.append(done.wall_s - json.loads(done.output)["recovery_s"])
            return done

        found = side_by_side(self._runs, ours, rival)
        return found | {
            "files_s": {"flypg": round(statistics.median(mine), 2), "rival": round(statistics.median(theirs), 2)},
            "ratio_of_files": round(statistics.median(a / b for a, b in zip(mine, theirs, strict=True)), 2),
        }

    def encrypted(self, where: str) -> dict[str, Any]:
        """Beside our own that are not."""
        key = secrets.token_hex(32)
        taken: list[str] = []

        def sealed(_: int) -> Measured:
            snapshot, done = self._here.snapshot(where, key)
            taken.append(snapshot)
            return done

        found = side_by_side(self._runs, sealed, lambda _: self._snapshot(where))
        into = self._scratch(f"restored-encrypted-{where}")
        restored = self._here.restore(where, taken[-1], into, key)
        shutil.rmtree(into)
        return found | {"restored": summary([restored])}

    def to_s3(self) -> dict[str, Any]:
        return side_by_side(
            self._runs, lambda _: self._snapshot("s3"), lambda _: self._here.pgbackrest("backup", "--type=full")
        )

    def restored_from_s3(self) -> dict[str, Any]:
        return self._restored("s3", "pgbackrest", self._here.pgbackrest_restore)

    def replayed(self, segments: int) -> dict[str, Any]:
        """Restores with `segments` of archived WAL to replay, of a snapshot that each has taken before it."""
        here = self._here
        with archiver(here, "s3"):
            snapshot, _ = here.snapshot("s3")
            mine = fill(here, segments)
        here.pgbackrest_archives()
        here.pgbackrest("backup", "--type=full")
        theirs = fill(here, segments)
        here.archive_with("/bin/true")

        def restored(name: str, restore: Callable[[Path], Measured]) -> Measured:
            into = self._scratch(name)
            done = restore(into)
            shutil.rmtree(into)
            return done

        found = side_by_side(
            self._runs,
            lambda _: restored("replayed", lambda into: here.restore("s3", snapshot, into, all_wal=True)),
            lambda _: restored("replayed-rival", lambda into: here.pgbackrest_restore(into, all_wal=True)),
        )
        return found | {"segments": {"flypg": mine, "rival": theirs}}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.backups",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", type=int, default=130, help="of pgbench: 15 MB each (130, 2 GB)")
    parser.add_argument("--runs", type=int, default=3, help="of each, in turns (3)")
    parser.add_argument("--seconds", type=int, default=30, help="how long pgbench writes while WAL is archived (30)")
    parser.add_argument("--segments", type=int, default=60, help="of WAL that are replayed (60)")
    parser.add_argument("--only", default="", help="directory, s3, restore, replay, wal: some of these, with commas")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    only = set(args.only.split(",")) if args.only else {"directory", "s3", "restore", "replay", "wal"}
    found: dict[str, Any] = {"scale": args.scale, "runs": args.runs, "left_out": []}
    absent = missing() or ("" if shutil.which("pgbackrest") else "no pgbackrest on this machine")
    if absent:
        found["left_out"].append(f"S3: {absent}")
    with ExitStack() as stack:
        s3 = None if absent else stack.enter_context(radosgw(tls=True, memory=12 << 30))
        if s3 is not None:
            s3.bucket(BUCKET)
        here = stack.enter_context(world(args.scale, s3))
        found["database_mb"] = here.bytes >> 20
        bench = Bench(here, args.runs)

        def note(name: str, measure: Callable[[], dict[str, Any]]) -> None:
            print(name, file=sys.stderr, flush=True)
            found[name] = measure()

        if "directory" in only:
            note("snapshot_directory", lambda: bench.to_directory("client-zstd:1"))
            note("snapshot_directory_vs_server_side", lambda: bench.to_directory("server-zstd:1"))
            if "restore" in only:
                note("restore_directory", bench.restored_from_directory)
            note("snapshot_directory_encrypted", lambda: bench.encrypted("directory"))
        if s3 is not None and "s3" in only:
            here.pgbackrest_ready()
            note("snapshot_s3", bench.to_s3)
            if "restore" in only:
                note("restore_s3", bench.restored_from_s3)
            note("snapshot_s3_encrypted", lambda: bench.encrypted("s3"))
        if s3 is not None and "replay" in only:
            if "s3" not in only:
                here.pgbackrest_ready()
            note("restore_s3_with_wal", lambda: bench.replayed(args.segments))
        if "wal" in only:
            note("archive_client", lambda: client_ms(here))
            for where in ("directory", "s3") if s3 is not None else ("directory",):
                note(f"archiving_{where}", lambda where=where: archiving(here, where, args.seconds))  # type: ignore[misc]
    found["bars"] = judged(found)
    print(json.dumps(found, indent=1))
    return 0


def judged(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each bar, what was measured for it, and whether that holds."""

    def ratio(name: str, which: str = "ratio") -> float | None:
        return found[name][which] if name in found else None

    parts = [part for part in found.values() if isinstance(part, dict)]
    peaks = [part[ours]["peak_mb"] for part in parts for ours in ("flypg", "restored") if ours in part]
    values = {
        "directory_vs_pg_basebackup": ratio("snapshot_directory"),
        "s3_vs_pgbackrest": ratio("snapshot_s3"),
        "restore_s3_vs_pgbackrest": ratio("restore_s3"),
        "restore_s3_files_vs_pgbackrest": ratio("restore_s3", "ratio_of_files"),
        "restore_s3_with_wal_vs_pgbackrest": ratio("restore_s3_with_wal"),
        "restore_directory_vs_untar": ratio("restore_directory"),
        "restore_directory_files_vs_untar": ratio("restore_directory", "ratio_of_files"),
        "peak_mb": max(peaks, default=None),
        "client_added_ms": found["archive_client"]["added_ms"] if "archive_client" in found else None,
    }
    return {
        name: {"at_most": bar, "measured": value, "holds": value <= bar}
        for name, bar in BARS.items()
        if (value := values[name]) is not None
    }


if __name__ == "__main__":
    sys.exit(main())
