"""The write probe: two clients that write one row after another and note what became of each.

`steady` keeps one connection for as long as it lives and reconnects at once; `fresh` connects anew for each write. Runs
as a process of its own, so that a busy drill cannot make it look as if the database had paused:

    python -m chaos.writer JOB.json

JOB.json: {"endpoints": [conninfo…], "log": FILE, "every_ms": 3, "fresh_every_ms": 20, "timeout_ms": 1000,
           "first_id": 1, "run": 0}
It writes a line of JSON per operation to `log` and ends on SIGTERM. A client whose connection fails goes to the next
endpoint. The job's file holds a password: it is created 0600 and removed once read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from chaos.history import Outcome, Write
from chaos.places import environment
from chaos.wire import Wire, WireError, connect

TABLE = "flypg_drill"
INSERT = (
    f"INSERT INTO {TABLE} (id, run) VALUES ($1, $2) RETURNING"
    " host(inet_server_addr()) || ':' || inet_server_port(), left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"
)
EVERY_MS, FRESH_EVERY_MS = 3.0, 20.0  # between two writes of a client
FRESH_IDS = 1_000_000_000  # the fresh client counts from here, so that no id is ever used twice


def schema(run: int) -> str:
    """Make an empty table that takes rows of this run only.

    A statement that was given up in an earlier run may still be on its way: TCP tries again for half a minute after a
    cut, and its row would count as one of ours.
    """
    columns = f"id bigint NOT NULL, run bigint NOT NULL CHECK (run = {run:d})"
    at = "at timestamptz NOT NULL DEFAULT clock_timestamp()"
    return f"DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} ({columns}, {at})"  # one transaction


@dataclass(frozen=True, slots=True)
class Job:
    endpoints: tuple[str, ...]
    log: str
    every_ms: float = EVERY_MS
    fresh_every_ms: float = FRESH_EVERY_MS
    timeout_ms: float = 1000.0  # of a statement
    connect_ms: float = 2000.0  # longer: routers hold new connections while a primary is being chosen
    first_id: int = 1
    prefix: str = ""  # before the names of the clients
    run: int = 0  # what the table takes


class Client:
    """One of the two clients, in its own thread."""

    def __init__(self, path: str, job: Job, stop: threading.Event, log: TextIO, lock: threading.Lock) -> None:
        self._path = path
        self._job = job
        self._stop = stop
        self._log = log
        self._lock = lock
        self._wire: Wire | None = None
        self._endpoint = 0
        self._name = job.prefix + path
        self._id = job.first_id + (FRESH_IDS if path == "fresh" else 0)

    def run(self) -> None:
        pause = (self._job.fresh_every_ms if self._path == "fresh" else self._job.every_ms) / 1000
        while not self._stop.is_set():
            write = self._one()
            self._note(write)
            if write.acknowledged and self._path == "fresh":
                self._drop()
            self._stop.wait(pause if write.acknowledged else min(pause, 0.005))
        self._drop()

    def _one(self) -> Write:
        number, self._id = self._id, self._id + 1
        invoked = time.monotonic()
        connect_s = self._job.connect_ms / 1000
        try:
            if self._wire is None:
                self._wire = connect(self._job.endpoints[self._endpoint], timeout_s=connect_s)
            ((server, timeline),) = self._wire.execute(
                INSERT, [number, self._job.run], timeout_s=self._job.timeout_ms / 1000
            )
        except WireError as error:
            outcome = Outcome.FAIL if error.definite else Outcome.UNKNOWN
            self._drop()
            self._endpoint = (self._endpoint + 1) % len(self._job.endpoints)
            return Write(self._name, number, invoked, time.monotonic(), outcome, str(error)[:160])
        done = time.monotonic()
        if self._wire.warned:
            return Write(self._name, number, invoked, done, Outcome.UNKNOWN, "answered before its standbys", server)
        return Write(self._name, number, invoked, done, Outcome.OK, "", server, int(timeline, 16))

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _note(self, w: Write) -> None:
        row = [w.path, w.id, w.invoked, w.done, w.outcome.value, w.error, w.server, w.timeline]
        with self._lock:
            self._log.write(json.dumps(row) + "\n")


def run(job: Job) -> None:
    """Write until SIGTERM."""
    stop, lock = threading.Event(), threading.Lock()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(job.log, "a", encoding="utf-8") as log:
        clients = [Client(path, job, stop, log, lock) for path in ("steady", "fresh")]
        threads = [
            threading.Thread(target=client.run, name=path) for client, path in zip(clients, ("s", "f"), strict=True)
        ]
        for thread in threads:
            thread.start()
        parent = os.getppid()
        while not stop.wait(0.1):
            with lock:
                log.flush()
            if os.getppid() != parent:  # whoever started us is gone, and nobody will read the log
                stop.set()
        for thread in threads:
            thread.join()


def parse(lines: Iterable[str]) -> list[Write]:
    """The writes behind complete lines of a probe's log."""
    writes = []
    for line in lines:
        if line.endswith("\n"):
            name, number, invoked, done, outcome, error, server, timeline = json.loads(line)
            writes.append(Write(name, number, invoked, done, Outcome(outcome), error, server, timeline))
    return writes


class Probe:
    """A running write probe, as a drill holds it."""

    def __init__(
        self,
        endpoints: Sequence[str],
        directory: Path,
        *,
        run: int,
        prefix: str = "",
        first_id: int = 1,
        before: Sequence[str] = (),
        slower: int = 1,
    ) -> None:
        """`run`: what `schema` was given. `prefix`: tells this probe's clients from those of another.

        `before`: what its command line begins with. `slower`: so many times the usual pause between two writes."""
        self.log = directory / f"{prefix}probe.jsonl"
        self.paths = (f"{prefix}steady", f"{prefix}fresh")
        self._job = directory / f"{prefix}probe.job"
        self.log.write_text("")
        descriptor = os.open(self._job, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            pace = {"every_ms": EVERY_MS * slower, "fresh_every_ms": FRESH_EVERY_MS * slower}
            told = {
                "endpoints": list(endpoints),
                "log": str(self.log),
                "first_id": first_id,
                "prefix": prefix,
                "run": run,
            }
            json.dump(told | pace, file)
        command = [*before, sys.executable, "-m", "chaos.writer", str(self._job)]
        self._process = subprocess.Popen(
            command, env=environment({}), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def writes(self) -> list[Write]:
        with self.log.open(encoding="utf-8") as file:
            return parse(file)

    def acknowledged_since(self, moment: float) -> bool:
        """Has every client had a write acknowledged that began after `moment`?"""
        seen = {w.path for w in self._latest() if w.acknowledged and w.invoked >= moment}
        return seen.issuperset(self.paths)

    def _latest(self) -> list[Write]:
        """The last few hundred writes."""
        size = self.log.stat().st_size
        with self.log.open("rb") as file:
            file.seek(max(0, size - 64_000))
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
        return parse(lines[1:] if size > 64_000 else lines)

    def wait_acknowledged(self, moment: float, timeout_s: float) -> bool:
        """Wait until both clients write again; False when they do not within `timeout_s`."""
        until = time.monotonic() + timeout_s
        while not self.acknowledged_since(moment):
            if time.monotonic() > until or self._process.poll() is not None:
                return False
            time.sleep(0.1)
        return True

    def stop(self) -> list[Write]:
        """End the probe and return all it noted."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._job.unlink(missing_ok=True)
        return self.writes()


def main(argv: Sequence[str]) -> int:
    path = Path(argv[0])
    raw = json.loads(path.read_text())
    path.unlink()
    raw["endpoints"] = tuple(raw["endpoints"])
    run(Job(**raw))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
