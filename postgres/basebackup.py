"""Streams a physical base backup out of a running server, with bounded memory.

psycopg has no replication support, but its thin wrapper of libpq (`psycopg.pq`) has all that `BASE_BACKUP` needs. The
answer is one COPY stream; the first byte of a message says what it is: `n` a new tar begins, `m` the manifest begins,
`d` bytes of either, `p` progress.

While it runs, a temporary replication slot in a second session keeps the WAL that the backup must contain; it vanishes
with that session, so a crash leaks nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from psycopg import pq
from psycopg.pq import abc

from cluster.errors import PostgresUnavailable
from cluster.model import parse_lsn

FIRST_VERSION = 150000  # before 15, the protocol had another shape


@dataclass(frozen=True, slots=True)
class Tablespace:
    oid: int
    location: str


@dataclass(frozen=True, slots=True)
class BackupBegun:
    lsn: int
    timeline: int
    tablespaces: tuple[Tablespace, ...]
    estimated_bytes: int  # of the tars, as the server guesses


@dataclass(frozen=True, slots=True)
class BackupEnded:
    lsn: int  # the data is consistent once WAL up to here was replayed
    timeline: int
    damaged_pages: bool  # the server found page checksums that do not fit; everything was sent all the same


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a snapshot wants to know about the server it is taken from."""

    system_id: str
    version: int  # e.g. 150018
    in_recovery: bool
    segment_bytes: int
    data_checksums: bool


class BackupSink(Protocol):
    """Takes the stream. What it raises ends the backup."""

    def begin(self, backup: BackupBegun) -> None: ...

    def archive(self, name: str, location: str) -> None:
        """A tar begins: `base.tar`, or `<oid>.tar` of the tablespace at `location`."""
        ...

    def manifest(self) -> None:
        """PostgreSQL's backup_manifest begins."""
        ...

    def data(self, chunk: bytes) -> None: ...


def _connect(conninfo: str) -> abc.PGconn:
    connection = pq.PGconn.connect(f"{conninfo} replication=true application_name=flypg_snapshot".encode())
    if connection.status != pq.ConnStatus.OK:
        message = connection.get_error_message()
        connection.finish()
        raise PostgresUnavailable(f"no replication connection for a snapshot: {message.strip()}")
    return connection


def _rows(connection: abc.PGconn, query: str) -> list[tuple[str | None, ...]]:
    result = connection.exec_(query.encode())
    if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        raise PostgresUnavailable(f"{query.split()[0]}: {result.get_error_message().strip()}")
    return _table(result)


def _table(result: abc.PGresult) -> list[tuple[str | None, ...]]:
    def text(row: int, column: int) -> str | None:
        value = result.get_value(row, column)
        return None if value is None else value.decode()

    return [tuple(text(r, c) for c in range(result.nfields)) for r in range(result.ntuples)]


def _position(result: abc.PGresult) -> tuple[int, int]:
    lsn, timeline = _table(result)[0][:2]
    assert lsn is not None and timeline is not None, "BASE_BACKUP always says where it is"
    return parse_lsn(lsn), int(timeline)


def server_facts(conninfo: str) -> ServerFacts:
    """Look at a server over a replication connection. Raises PostgresUnavailable."""
    connection = _connect(conninfo)
    try:
        system_id = _rows(connection, "IDENTIFY_SYSTEM")[0][0]
        segment = _rows(connection, "SHOW wal_segment_size")[0][0] or ""
        checksums = _rows(connection, "SHOW data_checksums")[0][0]
        recovery = _rows(connection, "SHOW in_hot_standby")[0][0]
        version = connection.server_version
    finally:
        connection.finish()
    units = {"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "B": 1}
    unit = segment.lstrip("0123456789")
    size = int(segment[: len(segment) - len(unit)]) * units[unit]
    return ServerFacts(system_id or "", version, recovery == "on", size, checksums == "on")


def stream_base_backup(
    conninfo: str,
    label: str,
    sink: BackupSink,
    *,
    max_rate_kib: int = 0,
    fast: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[BackupBegun, BackupEnded]:
    """Take a backup of the server and pour it into `sink`; blocks until it is complete.

    `conninfo`: a libpq connection string without a database. `max_rate_kib`: KiB per second, 0 means no limit. `fast`:
    checkpoint at once rather than spread. `progress` is told the bytes received so far. The WAL that makes the backup
    consistent is inside it. Raises PostgresUnavailable when the server refuses or goes away.
    """
    keeper = _connect(conninfo)
    try:
        _rows(keeper, f'CREATE_REPLICATION_SLOT "{label.lower()}_{keeper.backend_pid}" TEMPORARY PHYSICAL RESERVE_WAL')
        connection = _connect(conninfo)
        try:
            if connection.server_version < FIRST_VERSION:
                raise PostgresUnavailable(
                    f"snapshots need PostgreSQL 15 or newer; this server is {connection.server_version // 10000}"
                )
            connection.send_query(_command(label, max_rate_kib, fast).encode())
            return _receive(connection, sink, progress)
        finally:
            connection.finish()
    finally:
        keeper.finish()


def _command(label: str, max_rate_kib: int, fast: bool) -> str:
    options = [f"LABEL '{label}'", "PROGRESS", f"CHECKPOINT '{'fast' if fast else 'spread'}'", "WAL", "WAIT false"]
    options += ["TABLESPACE_MAP", "MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'"]
    if max_rate_kib:
        options.append(f"MAX_RATE {max(32, min(max_rate_kib, 1 << 20))}")
    return f"BASE_BACKUP ({', '.join(options)})"


def _expect(connection: abc.PGconn, status: pq.ExecStatus, what: str) -> abc.PGresult:
    result = connection.get_result()
    if result is None or result.status != status:
        message = result.get_error_message() if result is not None else connection.get_error_message()
        raise PostgresUnavailable(f"BASE_BACKUP: {what}: {message.strip() or 'the server said nothing'}")
    return result


def _receive(
    connection: abc.PGconn, sink: BackupSink, progress: Callable[[int], None] | None
) -> tuple[BackupBegun, BackupEnded]:
    lsn, timeline = _position(_expect(connection, pq.ExecStatus.TUPLES_OK, "start"))
    spaces = _table(_expect(connection, pq.ExecStatus.TUPLES_OK, "tablespaces"))
    tablespaces = tuple(Tablespace(int(oid), where or "") for oid, where, _ in spaces if oid)
    begun = BackupBegun(lsn, timeline, tablespaces, sum(int(size or 0) for _, _, size in spaces) * 1024)
    sink.begin(begun)
    _expect(connection, pq.ExecStatus.COPY_OUT, "data")
    _copy(connection, sink, progress)
    return begun, _end(connection)


def _copy(connection: abc.PGconn, sink: BackupSink, progress: Callable[[int], None] | None) -> None:
    received = 0
    while True:
        length, message = connection.get_copy_data(0)
        if length == -1:
            return
        if length < 0:
            raise PostgresUnavailable(f"BASE_BACKUP: the stream broke: {connection.get_error_message().strip()}")
        kind, body = bytes(message[:1]), bytes(message[1:])
        if kind == b"d":
            received += len(body)
            sink.data(body)
        elif kind == b"n":
            name, location, _ = body.split(b"\0", 2)
            sink.archive(name.decode(), location.decode())
        elif kind == b"m":
            sink.manifest()
        elif kind == b"p":
            assert len(body) == struct.calcsize("!q")
        else:
            raise PostgresUnavailable(f"BASE_BACKUP: a message of an unknown kind: {kind!r}")
        if progress is not None:
            progress(received)


def _end(connection: abc.PGconn) -> BackupEnded:
    """The two results after the stream; a server that found damaged pages ends with an error of that name."""
    result = connection.get_result()
    position: tuple[int, int] | None = None
    damaged = False
    while result is not None:
        if result.status == pq.ExecStatus.TUPLES_OK:
            position = _position(result)
        elif result.status == pq.ExecStatus.FATAL_ERROR:
            message = result.get_error_message().strip()
            if "checksum verification failure" not in message:
                raise PostgresUnavailable(f"BASE_BACKUP: {message}")
            damaged = True
        result = connection.get_result()
    if position is None:
        raise PostgresUnavailable("BASE_BACKUP: the server did not say where the backup ends")
    return BackupEnded(position[0], position[1], damaged)
