"""The read probe: a client of the read-only port that asks, again and again, for the newest row of the write probe.

Runs as a process of its own, as the write probe does: `python -m chaos.reader JOB.json`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.history import Read
from chaos.places import environment
from chaos.wire import Wire, WireError, connect
from chaos.writer import FRESH_IDS, TABLE

NEWEST = (
    "SELECT coalesce(max(id), 0), host(inet_server_addr()) || ':' || inet_server_port()"
    f" FROM {TABLE} WHERE id < {FRESH_IDS}"
)
EVERY_S = 0.05
READS_PER_CONNECTION = 20  # then a new one: HAProxy chooses the server when a client connects
TIMEOUT_S = 1.0


def run(endpoints: Sequence[str], log: str) -> None:
    """Read until SIGTERM, or until whoever started us is gone."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent, wire, used, at = os.getppid(), None, 0, 0
    with open(log, "a", encoding="utf-8", buffering=1) as file:
        while not stop.wait(EVERY_S) and os.getppid() == parent:
            invoked = time.monotonic()
            try:
                wire = wire or connect(endpoints[at], timeout_s=TIMEOUT_S)
                ((newest, server),) = wire.execute(NEWEST, timeout_s=TIMEOUT_S)
                row = [invoked, time.monotonic(), True, int(newest), server]
                used += 1
            except WireError:
                row, used = [invoked, time.monotonic(), False, 0, ""], READS_PER_CONNECTION
            if used >= READS_PER_CONNECTION:
                _close(wire)
                wire, used, at = None, 0, (at + 1) % len(endpoints)
            file.write(json.dumps(row) + "\n")
        _close(wire)


def _close(wire: Wire | None) -> None:
    if wire is not None:
        wire.close()


class Reader:
    """A running read probe, as a drill holds it."""

    def __init__(self, endpoints: Sequence[str], directory: Path) -> None:
        self._log = directory / "reads.jsonl"
        self._log.write_text("")
        self._job = directory / "reads.job"
        descriptor = os.open(self._job, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"endpoints": list(endpoints), "log": str(self._log)}, file)
        command = [sys.executable, "-m", "chaos.reader", str(self._job)]
        self._process = subprocess.Popen(
            command, env=environment({}), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def stop(self) -> list[Read]:
        """End the probe and return all it noted."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._job.unlink(missing_ok=True)
        with self._log.open(encoding="utf-8") as file:
            return [Read(*json.loads(line)) for line in file if line.endswith("\n")]


def main(argv: Sequence[str]) -> int:
    path = Path(argv[0])
    job = json.loads(path.read_text())
    path.unlink()
    run(job["endpoints"], job["log"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
