"""Free ports on loopback for testbeds that run side by side, outside the kernel's range for outgoing connections."""

from __future__ import annotations

import fcntl
import os
import socket

FIRST, LAST = 20000, 32000
COUNTER = "/tmp/flypg-test-ports"  # of each user: another's may not be written to


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """`count` ports that nobody listens on and that were not given out lately (a counter shared under a lock)."""
    user = os.geteuid()
    descriptor = os.open(f"{COUNTER}-{user}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read().strip()
        first = FIRST + user * 1009 % (LAST - FIRST)  # away from where other users begin
        port = int(text) if text.isdigit() and FIRST <= int(text) < LAST else first
        found: list[int] = []
        while len(found) < count:
            port = port + 1 if port + 1 < LAST else FIRST
            if _free(port):
                found.append(port)
        file.seek(0)
        file.truncate()
        file.write(str(port))
        return found
