"""What the benchmark of backups works with: a filled PostgreSQL, programs that are measured, pgBackRest beside ours."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backups.layout import PathName
from benchmarks.http import children
from postgres.basebackup import server_facts
from tests.support.pgserver import BIN, ENV, PgServer, as_postgres
from tests.support.radosgw import ACCESS, SECRET, Radosgw

CODE = Path(__file__).resolve().parents[1]
BUCKET = "bucket"
LOOK_S = 0.01
UNTAR = """\
zstd -dc "$1/base.tar.zst" | tar -x -C "$2"
cp "$1/backup_manifest" "$2"
pg_verifybackup --no-parse-wal --quiet "$2"
rm "$2/backup_manifest"
"""
PGBACKREST = """\
[global]
repo1-type=s3
repo1-path=/pgbackrest
repo1-s3-bucket={bucket}
repo1-s3-endpoint=localhost
repo1-s3-region=us-east-1
repo1-s3-uri-style=path
repo1-s3-key={access}
repo1-s3-key-secret={secret}
repo1-storage-port={port}
repo1-storage-ca-file={certificate}
repo1-bundle=y
compress-type=zst
compress-level=1
process-max=2
start-fast=y
log-level-console=warn
log-level-file=off
lock-path={root}/lock
spool-path={root}/spool

[bench]
pg1-path={data}
pg1-port={pg_port}
pg1-socket-path={sockets}
pg1-user=postgres
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one program, with all that it started. `peak_mb`: resident, summed over them."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    output: str


def measured(argv: Sequence[str | Path], env: Mapping[str, str], *, user: bool = False) -> Measured:
    """Run a program to its end. `user`: as the user `postgres`. Every program runs at the same low priority."""
    os.sync()
    peaks: dict[int, float] = {}
    began, before = time.monotonic(), os.times()
    process = subprocess.Popen(
        ["nice", "-n", "10", *map(str, argv)],
        env={"PATH": f"{BIN}:{os.defpath}", "LC_ALL": "C", "HOME": "/tmp", **env},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **(as_postgres() if user else {}),
    )
    watching = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks, watching))
    watcher.start()
    output, errors = process.communicate(timeout=3600)
    ended, after = time.monotonic(), os.times()
    watching.set()
    watcher.join()
    assert process.returncode == 0, f"{argv[:4]}: {errors[-2000:]}{output[-2000:]}"
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    return Measured(round(ended - began, 2), round(cpu_s, 2), round(sum(peaks.values()), 1), output)


def _watch(pid: int, peaks: dict[int, float], ended: threading.Event) -> None:
    """Note the highest memory of `pid` and its children, which may come and go; of PostgreSQL's servers nothing."""
    family: list[int] = [pid]
    looks = 0
    while not ended.wait(LOOK_S):
        if looks % 20 == 0:
            family = [pid, *children(pid)]
        looks += 1
        for one in family:
            try:
                status = Path(f"/proc/{one}/status").read_text()
            except OSError:
                continue
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            if "VmHWM" in fields and fields["Name"].strip() != "postgres":
                peaks[one] = int(fields["VmHWM"].split()[0]) / 1024


def with_key(key: str) -> dict[str, str]:
    return {"FLYPG_SNAPSHOT_KEY": key} if key else {}


class World:
    """One server with pgbench's tables, and everything about how to back it up."""

    def __init__(self, scale: int, s3: Radosgw | None) -> None:
        self.s3 = s3
        self.server = PgServer()
        self.root = self.server.root
        self.server.initdb(
            fsync="on",
            shared_buffers="256MB",
            max_wal_size="4GB",
            checkpoint_timeout="30min",
            archive_mode="on",
            archive_command="/bin/true",
            max_connections="50",
            log_min_messages="warning",
        )
        self.server.start()
        self.pgbench("-i", "-s", str(scale), "-q")
        self.server.sql("CHECKPOINT")
        system = server_facts(self.server.conninfo).system_id
        self.path = PathName("bench", system, "0a0b0c0d")
        self.conf = self.root / "pgbackrest.conf"
        if s3 is not None:
            self.conf.write_text(
                PGBACKREST.format(
                    bucket=BUCKET,
                    access=ACCESS,
                    secret=SECRET,
                    port=s3.tls_port,
                    certificate=s3.certificate,
                    root=self.root,
                    data=self.server.data,
                    pg_port=self.server.port,
                    sockets=self.server.sockets,
                )
            )

    @property
    def bytes(self) -> int:
        return int(self.server.sql("SELECT sum(pg_database_size(oid))::bigint FROM pg_database")[0][0])

    def pgbench(self, *arguments: str) -> None:
        argv = ["pgbench", "-h", str(self.server.sockets), "-p", str(self.server.port), "-U", "postgres", *arguments]
        done = subprocess.run([*argv, "postgres"], env=ENV, cwd="/", capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr

    def archive_with(self, command: str) -> None:
        self.server.configure(archive_command=command)
        self.server.sql("SELECT pg_reload_conf()")

    # ours

    def environment(self, where: str) -> dict[str, str]:
        """Settings for a repository in a directory or in S3 (over TLS: pgBackRest speaks nothing else)."""
        common = {"PYTHONPATH": str(CODE), "FLYPG_DATA_DIR": str(self.root), "FLYPG_SNAPSHOT_MIN_FREE_PERCENT": "0"}
        if where == "directory":
            return {**common, "FLYPG_SNAPSHOT_URL": f"file://{self.root}/repository"}
        assert self.s3 is not None
        return {
            **common,
            "FLYPG_SNAPSHOT_URL": f"s3://{BUCKET}/flypg",
            "FLYPG_S3_ENDPOINT": f"https://127.0.0.1:{self.s3.tls_port}",
            "FLYPG_S3_ACCESS_KEY_ID": ACCESS,
            "FLYPG_S3_SECRET_ACCESS_KEY": SECRET,
            "AWS_CA_BUNDLE": self.s3.certificate,
        }

    def work(self, what: str, *more: str | Path) -> list[str | Path]:
        """The command line of a process that does an agent's work on a repository."""
        own: list[str | Path] = [sys.executable, "-m", "backups.run", what, "--path", str(self.path), "--node", "n1"]
        return [*own, "--data-dir", self.root, "--user", "postgres" if as_postgres() else "", *more]

    def snapshot(self, where: str, key: str = "") -> tuple[str, Measured]:
        """Take one, encrypted with `key`; its id, and what it cost."""
        name = f"vs_{secrets.token_hex(8)}"
        argv = self.work("snapshot", "--id", name, "--conninfo", self.server.conninfo)
        return name, measured(argv, self.environment(where) | with_key(key))

    def restore(self, where: str, snapshot: str, into: Path, key: str = "", *, all_wal: bool = False) -> Measured:
        """`all_wal`: with all that was archived, else to the end of the snapshot."""
        argv: list[str | Path] = [sys.executable, "-m", "flypg", "restore", "--into", into, "--snapshot", snapshot]
        argv += [] if all_wal else ["--snapshot-only"]
        env = self.environment(where) | with_key(key)
        return measured([*argv, "--path", str(self.path), "--yes", "--json"], env)

    # the rivals

    def basebackup(self, into: Path, compress: str) -> Measured:
        argv = [BIN / "pg_basebackup", "-D", into, "-Ft", "-X", "fetch", "-c", "fast", "-d", self.server.conninfo]
        return measured([*argv, f"--compress={compress}"], {})

    def pgbackrest(self, *arguments: str) -> Measured:
        argv = ["pgbackrest", f"--config={self.conf}", "--stanza=bench", *arguments]
        return measured(argv, {}, user=True)

    def pgbackrest_ready(self) -> None:
        for folder in ("lock", "spool"):
            (self.root / folder).mkdir(exist_ok=True)
            shutil.chown(self.root / folder, "postgres", "postgres")
        shutil.chown(self.conf, "postgres", "postgres")
        self.pgbackrest("stanza-create")
        self.pgbackrest_archives()

    def pgbackrest_archives(self) -> None:
        self.archive_with(f"pgbackrest --config={self.conf} --stanza=bench archive-push %p")

    def pgbackrest_restore(self, into: Path, *, all_wal: bool = False) -> Measured:
        """Restore and recover. Its `output`: seconds until the files were there, checked and on the disk."""
        _make(into)
        until = [] if all_wal else ["--type=immediate", "--target-action=promote"]
        return self._recovered(into, lambda: self.pgbackrest("restore", f"--pg1-path={into}", *until))

    def untar(self, taken: Path, into: Path) -> Measured:
        """Unpack, check and recover what pg_basebackup has left in `taken`. `output`: as above, without the disk."""
        _make(into)
        return self._recovered(into, lambda: measured(["sh", "-ec", UNTAR, "sh", taken, into], {}))

    def _recovered(self, into: Path, restore: Callable[[], Measured]) -> Measured:
        """Restore, then recover until it accepts writes, and stop in order: what ours does as well."""
        began = time.monotonic()
        done = restore()
        copy = PgServer(into)
        try:
            copy.configure(archive_mode="off", fsync="on")
            copy.start()
            while copy.sql("SELECT pg_is_in_recovery()") != [(False,)]:
                time.sleep(0.05)
            copy.stop(2)
        finally:
            copy.remove()
        return Measured(round(time.monotonic() - began, 2), done.cpu_s, done.peak_mb, f"{done.wall_s}")


def _make(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    shutil.chown(directory, "postgres", "postgres")


@contextmanager
def world(scale: int, s3: Radosgw | None) -> Iterator[World]:
    made = World(scale, s3)
    try:
        yield made
    finally:
        made.server.remove()
