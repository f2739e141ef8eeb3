"""Archiving, measured: what the client costs for each segment, and whether the archive keeps up with pgbench."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backups.wire import LineServer, archive_command, ask
from benchmarks.backup_world import World
from postgres.command import account
from tests.support.pgserver import as_postgres

CALLS = 40
ROWS = "SELECT 1, 1, 1, 1, now(), left(md5(g::text), 22) FROM generate_series(1, 300000) g"
OWNER = account("postgres") if os.geteuid() == 0 else None


def client_ms(here: World) -> dict[str, Any]:
    """Milliseconds of our archive_command when the answer is there at once, beside a command that does nothing."""
    socket = here.root / "client.sock"
    lines = LineServer(socket, lambda _: "ok", OWNER)
    lines.start()
    command = archive_command(here.root, socket, OWNER).replace("%p", "pg_wal/000000010000000000000001")
    try:
        ours = [_call_ms(command, here.server.data) for _ in range(CALLS)]
        nothing = [_call_ms("true", here.server.data) for _ in range(CALLS)]
    finally:
        lines.stop()
    median, base = statistics.median(ours), statistics.median(nothing)
    return {"client_ms": round(median, 1), "shell_ms": round(base, 1), "added_ms": round(median - base, 1)}


def _call_ms(command: str, cwd: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["/bin/sh", "-c", command], check=True, cwd=cwd, **as_postgres())
    return (time.perf_counter() - began) * 1000


@contextmanager
def archiver(here: World, where: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Our archiver at work, told that this is a primary, with nothing waiting; its process and its socket."""
    socket = here.root / f"wal-{where}.sock"
    argv = here.work("wal", "--pg-wal", here.server.data / "pg_wal", "--socket", socket)
    here.archive_with(archive_command(here.root, socket, OWNER))
    log = (here.root / "archiver.log").open("wb")
    process = subprocess.Popen(
        list(map(str, argv)),
        env={"PATH": os.defpath, "LC_ALL": "C", **here.environment(where)},
        cwd="/",
        stdout=log,
        stderr=log,
    )
    try:
        _stand(socket)
        drained(here)
        yield process, socket
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(60)
        log.close()
        here.archive_with("/bin/true")


def fill(here: World, segments: int) -> int:
    """Write so many segments of WAL and wait until they are archived; how many it were."""
    at = _lsn(here)
    while _lsn(here) - at < segments << 24:
        here.server.sql(f"INSERT INTO pgbench_history {ROWS}")
    here.server.sql("SELECT pg_switch_wal()")
    drained(here)
    return (_lsn(here) - at) >> 24


def archiving(here: World, where: str, seconds: int) -> dict[str, Any]:
    """Let pgbench write at full speed and archive meanwhile; how long the rest takes, and a backlog's segments."""
    done = threading.Event()
    most = [0]
    with archiver(here, where) as (process, socket):
        watcher = threading.Thread(target=_watch, args=(here, done, most))
        watcher.start()
        try:
            began, at = time.monotonic(), _lsn(here)
            here.pgbench("-n", "-N", "-c", "8", "-j", "2", "-T", str(seconds))
            wrote, took = _lsn(here) - at, time.monotonic() - began
            here.server.sql("SELECT pg_switch_wal()")
            drain_s = drained(here)
        finally:
            done.set()
            watcher.join()
        return {
            "wal_mb": wrote >> 20,
            "written_mb_per_s": round(wrote / took / 2**20, 1),
            "archived_mb_per_s": round(wrote / (took + drain_s) / 2**20, 1),
            "most_segments_waiting": most[0],
            "drained_after_s": round(drain_s, 2),
            "backlog_ms_per_segment": _backlog(here, process, socket),
            "peak_mb": _peak_mb(process.pid),
        }


def _stand(socket: Path) -> None:
    """Tell it, as an agent does, that this is the primary of an open term."""
    deadline = time.monotonic() + 60
    while True:
        try:
            ask(socket, "stand", "1", "open")
            return
        except OSError:
            assert time.monotonic() < deadline, "the archiver does not answer"
            time.sleep(0.1)


def _backlog(here: World, process: subprocess.Popen[bytes], socket: Path, count: int = 30) -> float:
    """Milliseconds for each of `count` full segments that have waited, all the way from PostgreSQL's archiver."""
    process.send_signal(signal.SIGSTOP)
    while _ready(here) < count:
        here.server.sql(f"INSERT INTO pgbench_history {ROWS}")
    waiting = _ready(here)
    process.send_signal(signal.SIGCONT)
    _stand(socket)
    began = time.monotonic()
    while _ready(here):
        time.sleep(0.02)
    return round((time.monotonic() - began) * 1000 / waiting, 1)


def _ready(here: World) -> int:
    return sum(n.endswith(".ready") for n in os.listdir(here.server.data / "pg_wal" / "archive_status"))


def drained(here: World) -> float:
    began = time.monotonic()
    while _ready(here):
        assert time.monotonic() - began < 600, "the archive does not drain"
        time.sleep(0.05)
    return time.monotonic() - began


def _watch(here: World, done: threading.Event, most: list[int]) -> None:
    while not done.wait(0.2):
        most[0] = max(most[0], _ready(here))


def _lsn(here: World) -> int:
    return int(here.server.sql("SELECT (pg_current_wal_lsn() - '0/0')::bigint")[0][0])


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)
