"""pgbench beside a drill: load that nobody judges. It gives up when its connections end, so it is started again."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Sequence

from chaos.bench import pgbench, program
from chaos.places import Node

SCALE = "1"
PAUSE_S = 0.3  # between two runs, when nobody can be reached
LONGEST_S = "3600"


class Pgbench:
    """Running load of so many clients, through the proxies of these nodes by turns."""

    def __init__(self, primary: Node, nodes: Sequence[Node], clients: int) -> None:
        """Makes its tables first. Raises TestbedError."""
        pgbench(primary, primary.ports.postgres, "-i", "-q", "-s", SCALE)
        self._clients = str(clients)
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(list(nodes),), name="pgbench", daemon=True)
        self._thread.start()

    def _run(self, nodes: Sequence[Node]) -> None:
        for node in itertools.cycle(nodes):
            if self._over.is_set():
                return
            command = [program("pgbench"), "-n", "-h", node.address, "-p", str(node.ports.proxy), "-U", "postgres"]
            command += ["-c", self._clients, "-T", LONGEST_S, node.database]
            env = {**os.environ, "PGPASSWORD": node.password, "PGSSLMODE": node.sslmode, "PGCONNECT_TIMEOUT": "2"}
            with self._lock:
                if self._over.is_set():
                    return
                self._process = subprocess.Popen(
                    command,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            self._process.wait()
            self._over.wait(PAUSE_S)

    def stop(self) -> None:
        """End it. It holds no transaction open for long, so it is simply killed."""
        with self._lock:
            self._over.set()
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
        self._thread.join(timeout=10)
