"""Backups while their repository is away, at full write load: what clients see, what disks keep, what is left after.

`python -m benchmarks.outage --minutes 60` prints JSON. Three nodes on this machine (`flypg local`), a real S3 service
(Ceph's radosgw) behind HAProxy; for the first half of the outage the proxy accepts and never answers, for the second it
refuses. Meanwhile pgbench writes with all that is left of the machine. Afterwards the archive must drain, the gap be
closed, the deep check be clean, and a restore have the last row. What it waits for is told on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.ports import free_ports
from flypg.local import load
from tests.support.local import Local, cluster
from tests.support.radosgw import ACCESS, SECRET, missing, radosgw

BUCKET = "outage"
LIMIT_MB = 256
SEGMENT_MB = 16
EVERY_S = 5.0
BACK_WITHIN_S = 900.0
PROXY = """\
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen s3
  bind 127.0.0.1:{port}
  server s3 {server}
"""
PROGRESS = re.compile(r"progress: ([0-9.]+) s, ([0-9.]+) tps, lat ([0-9.]+)")
GAUGE = re.compile(r"^(flypg_archive_\w+|flypg_backup_problems)\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


@dataclass
class Seen:
    """What was seen during the outage."""

    waiting: list[int] = field(default_factory=list)  # segments, on the primary
    pg_wal_mb: list[float] = field(default_factory=list)  # of the largest node
    problems: set[str] = field(default_factory=set)  # in the words of flypg status
    alarmed: int = 0  # looks at which flypg status or the metrics said that something is wrong
    looks: int = 0


def gauges(local: Local) -> dict[str, float]:
    """The largest over the nodes of each metric of the archive."""
    layout = load(local.root)
    assert layout is not None, "it runs"
    found: dict[str, float] = {}
    for name in layout.names:
        url = f"http://127.0.0.1:{layout.ports(name).metrics}/metrics"
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            for gauge, value in GAUGE.findall(answer.read().decode()):
                found[gauge] = max(found.get(gauge, 0.0), float(value))
    return found


def pg_wal_mb(local: Local) -> float:
    """Of the node that has the most."""
    sizes = [0.0]
    for folder in local.root.glob("*/pgdata/pg_wal"):
        size = 0
        for file in folder.iterdir():
            with suppress(OSError):
                size += file.stat().st_size
        sizes.append(size / 2**20)
    return max(sizes)


@contextmanager
def proxied(root: Path, server: str) -> Iterator[tuple[int, list[subprocess.Popen[bytes]]]]:
    """HAProxy in front of the service: its port, and the process that runs, which may be changed."""
    (port,) = free_ports(1)
    config = root / "proxy.cfg"
    config.write_text(PROXY.format(port=port, server=server))
    running = [start_proxy(config)]
    try:
        yield port, running
    finally:
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def start_proxy(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["haproxy", "-db", "-f", str(config)], stdin=subprocess.DEVNULL)


def look(local: Local, seen: Seen) -> None:
    shown, problems = gauges(local), local.status()["backups"]["problems"]
    seen.looks += 1
    seen.alarmed += bool(problems) and shown.get("flypg_backup_problems", 0) > 0
    seen.problems |= {re.sub(r"\d+", "N", str(problem)) for problem in problems}
    seen.waiting.append(int(shown.get("flypg_archive_ready_segments", 0)))
    seen.pg_wal_mb.append(pg_wal_mb(local))


def drained(local: Local) -> bool:
    shown = gauges(local)
    return shown.get("flypg_archive_ready_segments", 1) <= 1 and shown.get("flypg_archive_gap", 1) == 0


def rates(log: Path) -> list[float]:
    return [float(tps) for _, tps, _ in PROGRESS.findall(log.read_text())]


def by_quarter(values: Sequence[float]) -> list[int]:
    """The largest of each quarter of the time: what grows on and on shows."""
    step = max(1, len(values) // 4)
    return [round(max(values[at : at + step])) for at in range(0, len(values), step)][:4]


def settings(proxy: int) -> dict[str, str]:
    """Of nodes whose repository is behind the proxy."""
    return {
        **access(proxy),
        "FLYPG_SNAPSHOT_URL": f"s3://{BUCKET}/flypg",
        "FLYPG_S3_TIMEOUT_S": "10",
        "FLYPG_WAL_QUEUE_FULL": "drop",
        "FLYPG_WAL_QUEUE_LIMIT": f"{LIMIT_MB}MB",
        "FLYPG_SNAPSHOT_SCHEDULE": "off",
        "FLYPG_SNAPSHOT_VERIFY": "false",
    }


def access(proxy: int) -> dict[str, str]:
    """How commands get at it, too; the service lives as long as this run."""
    return {
        "FLYPG_S3_ENDPOINT": f"http://127.0.0.1:{proxy}",
        "FLYPG_S3_ACCESS_KEY_ID": ACCESS,
        "FLYPG_S3_SECRET_ACCESS_KEY": SECRET,
    }


def run(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    with radosgw(memory=16 << 30) as s3, proxied(root, s3.endpoint.removeprefix("http://")) as (port, proxy):
        s3.bucket(BUCKET)
        wished = [f"{name}={value}" for name, value in settings(port).items()]
        with cluster(3, *wished, more=access(port), where=str(root)) as local:
            found = measure(arguments, root, local, proxy)
            tell(json.dumps(found))
            return {**found, **afterwards(root, local)}


def measure(
    arguments: argparse.Namespace, root: Path, local: Local, proxy: list[subprocess.Popen[bytes]]
) -> dict[str, Any]:
    seconds = arguments.minutes * 60
    client = {**os.environ, **local.environment()}
    subprocess.run(["pgbench", "-i", "-q", "-s", "20"], env=client, check=True, capture_output=True, timeout=600)
    local.query("CREATE TABLE last_words (said text)")
    local.ok("snapshots", "create", "--node", "n1")
    tell("a snapshot was taken; the load begins")
    log = root / "pgbench.log"
    load = ["chrt", "-i", "0"] if arguments.leftover else []
    load += ["pgbench", "-n", "-c", str(arguments.clients), "-P", str(int(EVERY_S)), "-T", str(int(seconds) + 86400)]
    with log.open("wb") as output:
        pgbench = subprocess.Popen(load, env=client, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    seen = Seen()
    try:
        time.sleep(30)
        before = len(rates(log))
        wal_began = int(local.query("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"))
        began = time.monotonic()
        proxy[-1].send_signal(signal.SIGSTOP)
        tell("the repository accepts and never answers")
        half = False
        told = began
        while (now := time.monotonic()) < began + seconds:
            if not half and now > began + seconds / 2:
                half = True
                proxy[-1].kill()
                proxy[-1].wait()
                tell("the repository refuses connections")
            assert pgbench.poll() is None, f"pgbench has ended: {log.read_text()[-500:]}"
            look(local, seen)
            if now > told + 60:
                told = now
                tell(f"{(now - began) / 60:.0f} min: waiting {seen.waiting[-1]}, pg_wal {seen.pg_wal_mb[-1]:.0f} MB")
            time.sleep(EVERY_S)
        during = rates(log)[before:]
        wal = int(local.query("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")) - wal_began
        dropped = gauges(local).get("flypg_archive_dropped_total", 0)
        proxy.append(start_proxy(root / "proxy.cfg"))
        back = time.monotonic()
        tell("the repository is back")
        until = back + BACK_WITHIN_S
        while not drained(local) and time.monotonic() < until:
            time.sleep(1)
        drained_s = round(time.monotonic() - back, 1) if drained(local) else None
        tell(f"drained, and the gap closed, after {drained_s} s")
    finally:
        pgbench.terminate()  # whoever was started in the background by a shell ignores SIGINT
        pgbench.wait(60)
    return {
        "minutes": arguments.minutes,
        "load": "what is left of the machine" if arguments.leftover else "full",
        "tps_median": round(statistics.median(during), 1) if during else None,
        "seconds_without_a_commit": EVERY_S * sum(tps == 0 for tps in during),
        "failed": len(re.findall(r"ERROR|FATAL|aborted", log.read_text())),
        "wal_written_mb": round(wal / 2**20),
        "limit_mb": LIMIT_MB,
        "waiting_most_mb": SEGMENT_MB * max(seen.waiting),
        "pg_wal_most_mb_by_quarter": by_quarter(seen.pg_wal_mb),
        "pg_wal_settings": local.query(
            "SELECT string_agg(name || '=' || current_setting(name), ' ' ORDER BY name) FROM pg_settings"
            " WHERE name IN ('wal_keep_size', 'min_wal_size', 'max_wal_size')"
        ),
        "segments_dropped": int(dropped),
        "alarmed_of_looks": [seen.alarmed, seen.looks],
        "problems": sorted(seen.problems),
        "drained_and_gap_closed_s": drained_s,
    }


def afterwards(root: Path, local: Local) -> dict[str, Any]:
    """What a restore has of the very last row, and what the deep check says."""
    words = f"said at {time.time():.0f}"
    local.query(f"INSERT INTO last_words VALUES ('{words}')")
    rows = local.query("SELECT count(*) FROM pgbench_history")
    local.query("SELECT pg_switch_wal()")
    until = time.monotonic() + 300
    while gauges(local).get("flypg_archive_ready_segments", 1) > 0 and time.monotonic() < until:
        time.sleep(1)
    check = local("backups", "check", "--deep", "--json")
    tell("the archive was checked; it is restored")
    begin = ("--from-snapshot", "latest", "--repository", f"s3://{BUCKET}/flypg")
    with cluster(3, "FLYPG_SNAPSHOT_URL=off", begin=begin, more=dict(local.more), where=str(root)) as again:
        last = again.query("SELECT said FROM last_words") == words
        every = again.query("SELECT count(*) FROM pgbench_history") == rows
    return {
        "check": {"exit": check.code, **check.json()},
        "restored_the_last_row": last,
        "restored_every_row": every,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.outage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="how long the repository is away (60)")
    parser.add_argument("--clients", type=int, default=4, metavar="N", help="of pgbench (4)")
    parser.add_argument(
        "--leftover", action="store_true", help="the clients take only time that nobody else on the machine wants"
    )
    arguments = parser.parse_args(argv)
    if why := missing():
        print(why, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    root = Path(tempfile.mkdtemp(prefix="fpoutage", dir="/var/tmp"))
    root.chmod(0o711)
    try:
        print(json.dumps(run(arguments, root), indent=2, ensure_ascii=False))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
