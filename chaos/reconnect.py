"""Clients that connect anew for every query, without the price of a password.

`pgbench -C` spends most of its time in libpq, which stretches the password (4,096 rounds of SHA-256, some milliseconds)
for each connection: on one machine that hides what the servers do. These do it once and keep the keys, as RFC 5802 lets
a client do; all else is a login as any other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import BinaryIO

TIMEOUT_S = 20.0


class LoginError(Exception):
    """The server's own words."""


@dataclass(slots=True)
class Login:
    """Who logs in where, with the keys that are known already."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str = "postgres"
    salted: dict[tuple[bytes, int], bytes] = field(default_factory=dict, repr=False)

    def query(self, sql: str) -> None:
        """Connect, ask, leave. Raises LoginError or OSError."""
        with socket.create_connection((self.host, self.port), timeout=TIMEOUT_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with sock.makefile("rb") as answers:
                words = ("user", self.user, "database", self.database, "")
                body = struct.pack("!i", 196608) + b"".join(word.encode() + b"\0" for word in words)
                sock.sendall(struct.pack("!i", len(body) + 4) + body)
                self._authenticate(sock, answers)
                _until_ready(answers)
                sock.sendall(_message(b"Q", sql.encode() + b"\0"))
                _until_ready(answers)
                sock.sendall(_message(b"X", b""))

    def _authenticate(self, sock: socket.socket, answers: BinaryIO) -> None:
        _, body = _expect(answers, b"R")
        if _code(body) == 0:
            return
        if _code(body) != 10 or b"SCRAM-SHA-256\0" not in body:
            raise LoginError(f"asks for another kind of authentication ({_code(body)})")
        nonce = base64.b64encode(secrets.token_bytes(18)).decode()
        first = f"n=,r={nonce}"
        hello = f"n,,{first}".encode()
        sock.sendall(_message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(hello)) + hello))
        _, body = _expect(answers, b"R")
        challenge = body[4:].decode()
        parts = dict(part.split("=", 1) for part in challenge.split(","))
        last = f"c=biws,r={parts['r']}"
        key = hmac.digest(self._salted(base64.b64decode(parts["s"]), int(parts["i"])), b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(key).digest(), f"{first},{challenge},{last}".encode(), "sha256")
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        sock.sendall(_message(b"p", f"{last},p={base64.b64encode(proof).decode()}".encode()))
        _expect(answers, b"R")
        _expect(answers, b"R")

    def _salted(self, salt: bytes, rounds: int) -> bytes:
        known = self.salted.get((salt, rounds))
        if known is None:
            known = self.salted[salt, rounds] = hashlib.pbkdf2_hmac("sha256", self.password.encode(), salt, rounds)
        return known


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _code(body: bytes) -> int:
    return int.from_bytes(body[:4])


def _expect(answers: BinaryIO, wanted: bytes) -> tuple[bytes, bytes]:
    head = answers.read(5)
    if len(head) < 5:
        raise LoginError("the server closed the connection")
    kind, length = struct.unpack("!ci", head)
    body = answers.read(length - 4)
    if kind == b"E":
        raise LoginError(next((p[1:].decode() for p in body.split(b"\0") if p.startswith(b"M")), "no reason given"))
    if wanted and kind != wanted:
        raise LoginError(f"answered {kind!r} where {wanted!r} was expected")
    return kind, body


def _until_ready(answers: BinaryIO) -> None:
    while _expect(answers, b"")[0] != b"Z":
        pass


def rate(login: Login, *, clients: int, for_s: float) -> float:
    """Queries a second, each in a connection of its own. Raises LoginError when one failed."""
    done = [0] * clients
    failed: list[str] = []
    until = time.monotonic() + for_s

    def work(number: int) -> None:
        try:
            while time.monotonic() < until:
                login.query("SELECT 1")
                done[number] += 1
        except (LoginError, OSError) as error:
            failed.append(str(error))

    began = time.monotonic()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise LoginError(failed[0])
    return sum(done) / (time.monotonic() - began)
