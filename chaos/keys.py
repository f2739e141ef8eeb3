"""pgbench that logs in with SCRAM keys instead of a password.

`pgbench -C` spends most of its time in libpq, which stretches the password (4,096 rounds of SHA-256, some milliseconds)
for each connection: on one machine that hides what the servers do. libpq 18 takes the keys that come of it
(`flypg connection-string --scram-keys`); psycopg brings that libpq, and pgbench of any version runs with it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import psycopg.pq

from chaos.target import Target, TestbedError

TAKES_KEYS = 180000
SERVICE = "keys"


@contextmanager
def kept_keys(target: Target) -> Iterator[Mapping[str, str]]:
    """The environment in which pgbench logs in as `postgres` with kept keys; they are in a file that only we may read.

    Raises TestbedError without a libpq that takes them.
    """
    answer = json.loads(target.flypg("connection-string", "--direct", "--scram-keys", "--json").stdout)
    keys = {name: value for name, value in parse_qsl(urlsplit(answer["url"]).query) if name.startswith("scram_")}
    with tempfile.TemporaryDirectory(prefix="fpkeys") as directory:
        service = Path(directory) / "service"
        service.touch(mode=0o600)
        lines = [f"[{SERVICE}]", *(f"{name}={value}" for name, value in keys.items())]
        service.write_text("\n".join(lines) + "\n")
        yield {
            "LD_PRELOAD": str(_libpq()),
            "PGSERVICEFILE": str(service),
            "PGSERVICE": SERVICE,
            "PGPASSWORD": "",
            "PGPASSFILE": os.devnull,
        }


def _libpq() -> Path:
    """The libpq that psycopg runs with."""
    if psycopg.pq.version() >= TAKES_KEYS:
        try:
            for file in files("psycopg-binary") or ():
                if file.name.startswith("libpq-"):
                    return Path(str(file.locate()))
        except PackageNotFoundError:
            pass
    raise TestbedError(f"kept keys need libpq 18 from psycopg[binary]; here is {psycopg.pq.version()}")
