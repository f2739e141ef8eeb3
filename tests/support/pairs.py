"""A primary and a standby of any version, for tests that only look: no replication slots, no pg_basebackup needed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.pgserver import BIN, PgServer


@dataclass
class Pair:
    primary: PgServer
    standby: PgServer


def until(check: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def streams(pair: Pair) -> bool:
    rows = pair.primary.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'")
    return bool(rows)


@contextmanager
def running_pair(binaries: Path = BIN) -> Iterator[Pair]:
    """Both run, and the standby streams."""
    primary, standby = PgServer(binaries=binaries), PgServer(binaries=binaries)
    try:
        primary.initdb(track_io_timing="on", max_wal_senders="10")  # as initdb wrote into the control file
        subprocess.run(["cp", "-a", str(primary.data), str(standby.data)], check=True, timeout=60)
        (standby.data / "standby.signal").touch()
        upstream = f"host=127.0.0.1 port={primary.port} user=postgres application_name=n2_t3"
        standby.configure(
            max_wal_senders="10",
            port=str(standby.port),
            unix_socket_directories=str(standby.sockets),
            primary_conninfo=upstream,
            wal_retrieve_retry_interval="100ms",
        )
        primary.start()
        standby.start()
        pair = Pair(primary, standby)
        until(lambda: streams(pair), "the standby does not stream")
        yield pair
    finally:
        standby.remove()
        primary.remove()
