"""A plain PostgreSQL for tests: initdb, start, stop, kill; as the user `postgres` when we are root."""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from tests.support.ports import free_ports

BIN = Path("/usr/lib/postgresql/15/bin")
ENV = {"PATH": os.defpath, "LC_ALL": "C", "HOME": "/tmp"}


def as_postgres() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


_templates: dict[tuple[str, ...], PgServer] = {}  # by the programs, and the arguments of initdb


class PgServer:
    """One server. `root` is open to the user `postgres` all the way down; its socket is in `sockets`."""

    def __init__(self, data: Path | None = None, binaries: Path = BIN) -> None:
        self.binaries = binaries
        self.root = Path(tempfile.mkdtemp(prefix="fp"))
        self.root.chmod(0o755)
        self.data = data or self.root / "data"
        self.sockets = self.root / "s"
        self.sockets.mkdir()
        self.port = free_ports(1)[0]
        if os.geteuid() == 0:
            shutil.chown(self.sockets, "postgres", "postgres")
            shutil.chown(self.root, "postgres", "postgres")

    def program(self, name: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [str(self.binaries / name), *map(str, arguments)],
            env=ENV,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
            **as_postgres(),
        )
        assert done.returncode == 0, f"{name}: {done.stderr}{done.stdout}"
        return str(done.stdout)

    def initdb(self, *arguments: str, **settings: str) -> None:
        """A new data directory, copied from one made before with the same arguments: that takes a tenth of the time."""
        kind = (str(self.binaries), *arguments)
        template = _templates.get(kind)
        if template is None:
            template = PgServer(binaries=self.binaries)
            usual = ("-U", "postgres", "--auth=trust", "-k", "-N", "--locale=C", "-E", "UTF8")
            template.program("initdb", "-D", template.data, *usual, *arguments)
            _templates[kind] = template
            atexit.register(template.remove)
        subprocess.run(["cp", "-a", str(template.data), str(self.data)], check=True)
        self.configure(**settings)

    def configure(self, **settings: str) -> None:
        values = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.sockets),
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_wal_senders": "5",
            "wal_keep_size": "256MB",
            "log_min_messages": "info",
            **settings,
        }
        with (self.data / "postgresql.conf").open("a") as file:
            for name, value in values.items():
                escaped = value.replace("'", "''")
                file.write(f"{name} = '{escaped}'\n")

    def start(self, *, wait: bool = True) -> None:
        with (self.root / "log").open("ab") as log:
            if os.geteuid() == 0:
                shutil.chown(self.root / "log", "postgres", "postgres")
            self.process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.data)],
                env=ENV,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_postgres(),
            )
        deadline = time.monotonic() + 60
        while wait:
            try:
                with self.connect():
                    return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.root / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.05)

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.sockets),
            port=self.port,
            user="postgres",
            dbname=database,
            autocommit=True,
            connect_timeout=10,
        )

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def conninfo(self) -> str:
        return f"host={self.sockets} port={self.port} user=postgres"

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self, number: int = signal.SIGQUIT) -> None:
        process = getattr(self, "process", None)
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)
