"""Loads whose answers can be judged: a bank, registers, and list-append transactions, through ports 5432 and 6432; and
readers of the bank on standbys, through 5434, where each snapshot has to be whole, however old it is.

Runs as a process of its own, like the write probe: `python -m chaos.workloads JOB.json`. Each line of its log is one
operation. Every value written is unique, and few clients share a key, so that the checkers decide in linear time.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.history import NEVER, BankRead, Outcome, RegisterOp, Step, Txn
from chaos.places import environment
from chaos.wire import Wire, WireError, connect

ACCOUNTS, TOTAL = 6, 600
KEYS = 5
TXNS_PER_LIST = 40  # lists stay short: every read carries the whole of one
TIMEOUT_S = 1.0
PAUSE_S = 0.02
LEAVE = 0.05  # the chance that a reader of the balances connects anew for the next look

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS flypg_bank (id int PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0))",
    "CREATE TABLE IF NOT EXISTS flypg_register (key int PRIMARY KEY, value bigint)",
    "CREATE TABLE IF NOT EXISTS flypg_list (key int PRIMARY KEY, value bigint[] NOT NULL)",
    "TRUNCATE flypg_bank, flypg_register, flypg_list",
    f"INSERT INTO flypg_bank SELECT i, {TOTAL // ACCOUNTS} FROM generate_series(1, {ACCOUNTS}) i",
    f"INSERT INTO flypg_register SELECT i, NULL FROM generate_series(0, {KEYS - 1}) i",
)
TRANSFER = (
    "UPDATE flypg_bank SET balance = balance + CASE id WHEN $1 THEN -$3::int ELSE $3::int END WHERE id IN ($1, $2)"
)
BALANCES = "SELECT balance, coalesce(host(inet_server_addr()) || ':' || inet_server_port(), '') FROM flypg_bank"
APPEND = (
    "INSERT INTO flypg_list (key, value) VALUES ($1, ARRAY[$2::bigint])"
    " ON CONFLICT (key) DO UPDATE SET value = flypg_list.value || $2::bigint"
)
READ_LIST = "SELECT array_to_string(value, ',') FROM flypg_list WHERE key = $1"


@dataclass(slots=True)
class Worker:
    """One client: a connection, its randomness, its log."""

    number: int
    endpoints: Sequence[str]
    rng: random.Random
    note: Callable[[list[object]], None]
    wire: Wire | None = None
    turn: int = 0
    at: int = 0

    def connected(self) -> Wire:
        if self.wire is None:
            self.wire = connect(self.endpoints[self.at], timeout_s=TIMEOUT_S)
        return self.wire

    def drop(self) -> None:
        if self.wire is not None:
            self.wire.close()
            self.wire = None
        self.at = (self.at + 1) % len(self.endpoints)

    def unique(self) -> int:
        self.turn += 1
        return self.turn * 100 + self.number


def balances(worker: Worker) -> None:
    """Look at all the money. The connection is left now and then: HAProxy chooses a server for a new one."""
    wire = worker.connected()
    rows = wire.execute(f"{BALANCES} ORDER BY id", timeout_s=TIMEOUT_S)
    server = rows[0][1] if rows else ""
    worker.note(["bank", time.monotonic(), server, [int(balance) for balance, _ in rows]])
    if worker.rng.random() < LEAVE:
        worker.drop()


def bank(worker: Worker) -> None:
    """Move some money, or look at all of it."""
    if worker.rng.random() < 0.5:
        balances(worker)
        return
    wire = worker.connected()
    one, two = worker.rng.sample(range(1, ACCOUNTS + 1), 2)
    try:
        wire.execute(TRANSFER, [one, two, worker.rng.randint(1, 20)], timeout_s=TIMEOUT_S)
    except WireError as error:
        if error.sqlstate != "23514":  # overdrawn: refused, as it should be
            raise


def register(worker: Worker) -> None:
    """Write one register, or read it."""
    key = worker.rng.randrange(KEYS)
    wire = worker.connected()
    invoked = time.monotonic()
    if worker.rng.random() < 0.5:
        ((value,),) = wire.execute("SELECT coalesce(value, 0) FROM flypg_register WHERE key = $1", [key], timeout_s=1)
        worker.note(["register", key, False, int(value) or None, invoked, time.monotonic()])
        return
    value_written = worker.unique()
    try:
        wire.execute("UPDATE flypg_register SET value = $2 WHERE key = $1", [key, value_written], timeout_s=TIMEOUT_S)
    except WireError as error:
        if not error.definite:
            worker.note(["register", key, True, value_written, invoked, None])
        raise
    worker.note(["register", key, True, value_written, invoked, None if wire.warned else time.monotonic()])


def lists(worker: Worker) -> None:
    """A serializable transaction of one to three appends and reads."""
    wire = worker.connected()
    key = worker.turn // TXNS_PER_LIST
    invoked, number = time.monotonic(), worker.unique()
    steps: list[list[object]] = []
    outcome = Outcome.FAIL
    trouble: WireError | None = None
    try:
        wire.execute("BEGIN ISOLATION LEVEL SERIALIZABLE", timeout_s=TIMEOUT_S)
        for part in range(worker.rng.randint(1, 3)):
            mine = max(0, key - worker.rng.randint(0, 1))
            if worker.rng.random() < 0.5:
                value = number * 10 + part
                steps.append([True, mine, value, []])
                wire.execute(APPEND, [mine, value], timeout_s=TIMEOUT_S)
            else:
                rows = wire.execute(READ_LIST, [mine], timeout_s=TIMEOUT_S)
                steps.append([False, mine, 0, [int(v) for v in rows[0][0].split(",")] if rows else []])
        outcome = Outcome.UNKNOWN
        wire.execute("COMMIT", timeout_s=TIMEOUT_S)
        outcome = Outcome.UNKNOWN if wire.warned else Outcome.OK
    except WireError as error:
        trouble = error
        if outcome is Outcome.UNKNOWN and error.sqlstate in ("40001", "40P01"):
            outcome = Outcome.FAIL
    worker.note(["txn", number, invoked, time.monotonic(), outcome.value, steps])
    if trouble is not None:
        if not trouble.sqlstate.startswith("40"):
            raise trouble
        wire.execute("ROLLBACK", timeout_s=TIMEOUT_S)


PRIMARY, POOLED, READ_ONLY = "primary", "pooled", "read-only"  # 5432, 6432, 5434
CLIENTS: tuple[tuple[Callable[[Worker], None], str], ...] = (
    (bank, PRIMARY),
    (bank, POOLED),
    (balances, READ_ONLY),
    (register, PRIMARY),
    (register, PRIMARY),
    (register, POOLED),
    (lists, PRIMARY),
    (lists, PRIMARY),
    (lists, POOLED),
)


def _loop(worker: Worker, turn: Callable[[Worker], None], stop: threading.Event) -> None:
    while not stop.wait(PAUSE_S):
        try:
            turn(worker)
        except WireError:
            worker.drop()
    worker.drop()


def run(endpoints: Mapping[str, Sequence[str]], log: str, seed: int) -> None:
    """Work until SIGTERM, or until whoever started us is gone."""
    stop, lock = threading.Event(), threading.Lock()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    with open(log, "a", encoding="utf-8") as file:

        def note(row: list[object]) -> None:
            with lock:
                file.write(json.dumps(row) + "\n")

        threads = []
        for number, (turn, port) in enumerate(CLIENTS, start=1):
            where = endpoints[port]
            worker = Worker(number, where, random.Random(f"{seed}/{number}"), note, at=number % len(where))
            threads.append(threading.Thread(target=_loop, args=(worker, turn, stop)))
            threads[-1].start()
        while not stop.wait(0.2):
            if os.getppid() != parent:
                stop.set()
        for thread in threads:
            thread.join()


@dataclass(frozen=True, slots=True)
class Observed:
    """What the clients noted."""

    reads: list[BankRead]
    registers: list[RegisterOp]
    txns: list[Txn]


def parse(lines: Iterable[str]) -> Observed:
    """The operations behind complete lines of a log."""
    found = Observed([], [], [])
    for line in lines:
        if not line.endswith("\n"):
            continue
        kind, *row = json.loads(line)
        if kind == "bank":
            found.reads.append(BankRead(row[0], row[1], tuple(row[2])))
        elif kind == "register":
            key, write, value, invoked, done = row
            found.registers.append(RegisterOp(key, write, value, invoked, NEVER if done is None else done))
        else:
            number, invoked, done, outcome, steps = row
            told = tuple(Step(append, key, value, tuple(read)) for append, key, value, read in steps)
            found.txns.append(Txn(number, invoked, done, Outcome(outcome), told))
    return found


class Load:
    """Running workloads, as a drill holds them."""

    def __init__(self, endpoints: Mapping[str, Sequence[str]], directory: Path, seed: int) -> None:
        """`endpoints`: where to connect, for PRIMARY, POOLED and READ_ONLY."""
        self._log = directory / "load.jsonl"
        self._log.write_text("")
        job = directory / "load.job"
        descriptor = os.open(job, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(
                {
                    "endpoints": {port: list(where) for port, where in endpoints.items()},
                    "log": str(self._log),
                    "seed": seed,
                },
                file,
            )
        command = [sys.executable, "-m", "chaos.workloads", str(job)]
        self._process = subprocess.Popen(
            command, env=environment({}), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def stop(self) -> Observed:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with self._log.open(encoding="utf-8") as file:
            return parse(file)


def main(argv: Sequence[str]) -> int:
    path = Path(argv[0])
    job = json.loads(path.read_text())
    path.unlink()
    run(job["endpoints"], job["log"], job["seed"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
