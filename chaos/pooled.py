"""Clients of the pooler that note what became of every statement: how many failed, and how long any had to wait.

Runs as a process of its own, like the write probe: `python -m chaos.pooled JOB.json`. A client keeps its connection as
applications do, and connects anew at once when it has lost it. Patience is long: a wait is measured, not an error.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.places import environment
from chaos.wire import Wire, WireError, connect

PATIENCE_S = 30.0
STATEMENT = "INSERT INTO flypg_pooled (at) VALUES (now())"
SCHEMA = ("CREATE TABLE IF NOT EXISTS flypg_pooled (at timestamptz)", "TRUNCATE flypg_pooled")
STAGGER_S = 0.01


@dataclass(frozen=True, slots=True)
class Op:
    """One statement, with the connection it may have needed. Times are seconds on this machine's monotonic clock."""

    client: int
    began: float
    ended: float
    error: str  # "" when it was answered
    sent: bool  # had the statement left? False: the connection could not be had


@dataclass(frozen=True, slots=True)
class Told:
    """What clients saw of one event."""

    ops: int
    errors: int
    in_flight: int  # statements that were under way when it happened: no pooler can save these
    stall_s: float  # the longest that any statement took
    texts: dict[str, int]  # errors by their text


def judge(ops: Sequence[Op], *, since: float, until: float, at: float | None = None) -> Told:
    """What clients saw between `since` and `until`. `at`: when a server was broken, None when none was. Pure."""
    mine = [op for op in ops if op.ended >= since and op.began <= until]
    failed = [op for op in mine if op.error]
    in_flight = sum(1 for op in mine if at is not None and op.began <= at <= op.ended)
    stall_s = max((op.ended - op.began for op in mine), default=0.0)
    return Told(len(mine), len(failed), in_flight, round(stall_s, 3), dict(Counter(op.error for op in failed)))


class _Client:
    def __init__(
        self,
        number: int,
        endpoint: str,
        pause_s: float,
        leave: bool,
        lock: threading.Lock,
        ops: list[list[object]],
    ) -> None:
        self._number = number
        self._endpoint = endpoint
        self._pause_s = pause_s
        self._leave = leave
        self._lock = lock
        self._ops = ops
        self._rng = random.Random(number)
        self._wire: Wire | None = None

    def run(self, stop: threading.Event) -> None:
        stop.wait(self._number * STAGGER_S)
        while not stop.is_set():
            self._one()
            stop.wait(self._pause_s * (0.5 + self._rng.random()))
        if self._wire is not None:
            self._wire.close()

    def _one(self) -> None:
        began, error, sent = time.monotonic(), "", False
        try:
            if self._wire is None:
                self._wire = connect(self._endpoint, timeout_s=PATIENCE_S)
            sent = True
            self._wire.execute(STATEMENT, timeout_s=PATIENCE_S)
            if self._leave:
                self._wire.close()
                self._wire = None
        except WireError as trouble:
            error = str(trouble)[:120]
            if self._wire is not None:
                self._wire.close()
            self._wire = None
        with self._lock:
            self._ops.append([self._number, began, time.monotonic(), error, sent])


def run(endpoints: Sequence[str], log: str, clients: int, pause_s: float, leave: bool) -> None:
    """Work until SIGTERM, or until whoever started us is gone."""
    stop, lock = threading.Event(), threading.Lock()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    ops: list[list[object]] = []
    each = [_Client(n, endpoints[n % len(endpoints)], pause_s, leave, lock, ops) for n in range(clients)]
    threads = [threading.Thread(target=client.run, args=(stop,)) for client in each]
    for thread in threads:
        thread.start()
    with open(log, "a", encoding="utf-8") as file:
        while True:
            stopping = stop.wait(0.1) or os.getppid() != parent
            if stopping:
                stop.set()
                for thread in threads:
                    thread.join()
            with lock:
                done, ops[:] = list(ops), []
            file.writelines(json.dumps(op) + "\n" for op in done)
            file.flush()
            if stopping:
                return


def parse(lines: Iterable[str]) -> list[Op]:
    """The statements behind complete lines of a log."""
    return [Op(*json.loads(line)) for line in lines if line.endswith("\n")]


class PooledLoad:
    """Running clients, as a measurement holds them."""

    def __init__(
        self, endpoints: Sequence[str], directory: Path, *, clients: int, pause_s: float, leave: bool = False
    ) -> None:
        """`leave`: they leave after each statement, and connect anew for the next."""
        self._log = directory / "pooled.jsonl"
        self._log.write_text("")
        job = directory / "pooled.job"
        descriptor = os.open(job, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump([list(endpoints), str(self._log), clients, pause_s, leave], file)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.pooled", str(job)],
            env=environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._clients = clients

    def ops(self) -> list[Op]:
        with self._log.open(encoding="utf-8") as file:
            return parse(file)

    def wait_all(self, since: float, timeout_s: float) -> bool:
        """Wait until every client had an answer to a statement that began after `since`."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and self._process.poll() is None:
            if len({op.client for op in self.ops() if op.began >= since and not op.error}) == self._clients:
                return True
            time.sleep(0.2)
        return False

    def stop(self) -> list[Op]:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=PATIENCE_S + 5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self.ops()


def main(argv: Sequence[str]) -> int:
    path = Path(argv[0])
    endpoints, log, clients, pause_s, leave = json.loads(path.read_text())
    path.unlink()
    run(endpoints, log, clients, pause_s, leave)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
