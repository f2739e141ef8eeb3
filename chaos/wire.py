"""A client whose every wait has an end, also when the server is frozen and its socket stays open.

Theory of operation. A client-side deadline must not send a CancelRequest: PostgreSQL answers a commit whose wait for
standbys was cancelled with success. So this talks to libpq without blocking, waits on the socket with a deadline of its
own, and on time-out only closes the socket. It says of every failure whether the statement had left.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult

CUT_SHORT = "canceling wait for synchronous replication"

# Errors that PostgreSQL raises before anything could have been committed.
DEFINITE = ("25006", "57P03", "53300", "28", "42", "40001", "40P01", "23", "3D000", "0A000", "22")


class WireError(Exception):
    """The server did not answer as hoped. `sent`: the statement had left, so it may have been carried out."""

    def __init__(self, text: str, *, sent: bool, timed_out: bool = False, sqlstate: str = "") -> None:
        super().__init__(text)
        self.sent = sent
        self.timed_out = timed_out
        self.sqlstate = sqlstate

    @property
    def definite(self) -> bool:
        """Did the statement certainly not happen?"""
        return not self.sent or self.sqlstate.startswith(DEFINITE)


def _first_words(raw: bytes) -> str:
    """libpq's first line says what happened, the others guess why."""
    lines = [line.strip() for line in raw.decode(errors="replace").splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def _wait(conn: PGconn, *, write: bool, until: float, sent: bool, what: str) -> None:
    try:
        fd = conn.socket
    except psycopg.Error as error:  # the socket is gone
        raise WireError(str(error), sent=sent) from error
    left = until - time.monotonic()
    poller = select.poll()
    poller.register(fd, select.POLLOUT if write else select.POLLIN)
    if left <= 0 or not poller.poll(left * 1000):
        raise WireError(f"{what}: no answer", sent=sent, timed_out=True)


class Wire:
    """One connection. Not for use by two threads at once."""

    def __init__(self, conn: PGconn) -> None:
        self._conn = conn
        self.warned = False  # the last statement was answered before its standbys were: not a real acknowledgement
        conn.notice_handler = self._notice

    def _notice(self, result: PGresult) -> None:
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
        if CUT_SHORT in message.decode(errors="replace"):
            self.warned = True

    def close(self) -> None:
        self._conn.finish()

    def execute(self, sql: str, params: Sequence[str | int | None] = (), *, timeout_s: float) -> list[tuple[str, ...]]:
        """Rows as text. Raises WireError; the connection is closed then unless it still works."""
        until = time.monotonic() + timeout_s
        self.warned = False
        values = [None if p is None else str(p).encode() for p in params]
        conn = self._conn
        try:
            if values:
                conn.send_query_params(sql.encode(), values)
            else:
                conn.send_query(sql.encode())
        except psycopg.Error as error:
            self.close()
            raise WireError(str(error), sent=True) from error
        try:
            return self._rows(until)
        except WireError as error:
            if not error.sqlstate or conn.status != pq.ConnStatus.OK:
                self.close()
            raise

    def _rows(self, until: float) -> list[tuple[str, ...]]:
        conn = self._conn
        try:
            while conn.flush():
                _wait(conn, write=True, until=until, sent=True, what="statement")
            rows: list[tuple[str, ...]] = []
            failure: WireError | None = None
            while True:
                while conn.is_busy():
                    _wait(conn, write=False, until=until, sent=True, what="statement")
                    conn.consume_input()
                result = conn.get_result()
                if result is None:
                    break
                if result.status == pq.ExecStatus.TUPLES_OK:
                    rows = _texts(result)
                elif result.status != pq.ExecStatus.COMMAND_OK:
                    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
                    told = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
                    failure = WireError(_first_words(told), sent=True, sqlstate=state)
                    if conn.status != pq.ConnStatus.OK:
                        break
        except psycopg.Error as error:
            raise WireError(_first_words(str(error).encode()), sent=True) from error
        if failure is not None:
            raise failure
        return rows


def _texts(result: PGresult) -> list[tuple[str, ...]]:
    return [
        tuple((result.get_value(r, c) or b"").decode() for c in range(result.nfields)) for r in range(result.ntuples)
    ]


def connect(conninfo: str, *, timeout_s: float) -> Wire:
    """A connection, or WireError within `timeout_s`."""
    until = time.monotonic() + timeout_s
    conn = pq.PGconn.connect_start(conninfo.encode())
    try:
        status = pq.PollingStatus.WRITING if conn.status != pq.ConnStatus.BAD else pq.PollingStatus.FAILED
        while status not in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
            _wait(conn, write=status == pq.PollingStatus.WRITING, until=until, sent=False, what="connect")
            status = pq.PollingStatus(conn.connect_poll())
        if status == pq.PollingStatus.FAILED:
            raise WireError(_first_words(conn.error_message), sent=False)
        conn.nonblocking = 1
    except psycopg.Error as error:
        conn.finish()
        raise WireError(str(error), sent=False) from error
    except WireError:
        conn.finish()
        raise
    return Wire(conn)


def listening(host: str, port: int, *, timeout_s: float = 0.3) -> bool:
    """Does something accept connections there?"""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
