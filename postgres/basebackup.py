"""Streams a physical base backup out of a running server, with bounded memory.

psycopg has no replication support, but its thin wrapper of libpq (`psycopg.pq`) has all that `BASE_BACKUP` needs. The
answer is one COPY stream; the first byte of a message says what it is: `n` a new tar begins, `m` the manifest begins,
`d` bytes of either, `p` progress. PostgreSQL 13 and 14 send a COPY stream for each tar, and one for the manifest.

The server compresses, if it can: what it costs to hand two gigabytes through a socket is more than what zstd takes.

While it runs, a temporary replication slot in a second session keeps the WAL that the backup must contain; it vanishes
with that session, so a crash leaks nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import psycopg
from psycopg import pq
from psycopg.pq import abc

from cluster.errors import PostgresUnavailable
from cluster.model import parse_lsn

FIRST_VERSION = 130000  # before 13, there is no manifest
ONE_STREAM = 150000  # before 15, the protocol had another shape
TAR_END = b"\0" * 1024  # before 15, the server leaves it out
TELL_BYTES = 1 << 20
ARCHIVE, MANIFEST, DATA, TOLD = b"nmdp"


@dataclass(frozen=True, slots=True)
class Tablespace:
    oid: int
    location: str


@dataclass(frozen=True, slots=True)
class BackupBegun:
    lsn: int
    timeline: int
    tablespaces: tuple[Tablespace, ...]
    estimated_bytes: int  # of the plain tars, as the server guesses
    compressed: bool = False  # the tars come as zstd


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

    def data(self, chunk: bytes | memoryview) -> None: ...

    def told(self, plain_bytes: int) -> None:
        """The server has sent so many bytes of plain tars by now; told at the end of each tar, and in between."""
        ...


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
        version = connection.server_version
        recovery = _rows(connection, "SHOW in_hot_standby")[0][0] if version >= 140000 else _in_recovery(conninfo)
    finally:
        connection.finish()
    units = {"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "B": 1}
    unit = segment.lstrip("0123456789")
    size = int(segment[: len(segment) - len(unit)]) * units[unit]
    return ServerFacts(system_id or "", version, recovery == "on", size, checksums == "on")


def _in_recovery(conninfo: str) -> str:
    """As `SHOW in_hot_standby` has it from 14 on."""
    connection = pq.PGconn.connect(f"{conninfo} dbname=postgres application_name=flypg_snapshot".encode())
    try:
        if connection.status != pq.ConnStatus.OK:
            raise PostgresUnavailable(f"no connection for a snapshot: {connection.get_error_message().strip()}")
        return "on" if _rows(connection, "SELECT pg_is_in_recovery()")[0][0] == "t" else "off"
    finally:
        connection.finish()


def stream_base_backup(
    conninfo: str,
    label: str,
    sink: BackupSink,
    *,
    max_rate_kib: int = 0,
    fast: bool = True,
    zstd_level: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[BackupBegun, BackupEnded]:
    """Take a backup of the server and pour it into `sink`; blocks until it is complete.

    `conninfo`: a libpq connection string without a database. `max_rate_kib`: KiB per second, 0 means no limit. `fast`:
    checkpoint at once rather than spread. `zstd_level`: have the server compress, if it can; 0 means never. `progress`
    is told how many bytes of plain tars were sent so far. The WAL that makes the backup consistent is inside it. Raises
    PostgresUnavailable when the server refuses or goes away.
    """
    try:
        return _stream(conninfo, label, sink, max_rate_kib, fast, zstd_level, progress)
    except psycopg.Error as error:  # libpq's thin wrapper raises some failures itself, such as a stream that breaks
        raise PostgresUnavailable(f"BASE_BACKUP: {error}") from error


def _stream(
    conninfo: str,
    label: str,
    sink: BackupSink,
    max_rate_kib: int,
    fast: bool,
    zstd_level: int,
    progress: Callable[[int], None] | None,
) -> tuple[BackupBegun, BackupEnded]:
    keeper = _connect(conninfo)
    try:
        _rows(keeper, f'CREATE_REPLICATION_SLOT "{label.lower()}_{keeper.backend_pid}" TEMPORARY PHYSICAL RESERVE_WAL')
        connection = _connect(conninfo)
        try:
            if connection.server_version < FIRST_VERSION:
                raise PostgresUnavailable(
                    f"snapshots need PostgreSQL 13 or newer; this server is {connection.server_version // 10000}"
                )
            if connection.server_version < ONE_STREAM:
                connection.send_query(_old_command(label, max_rate_kib, fast).encode())
                return _receive(connection, _expect(connection, pq.ExecStatus.TUPLES_OK, "start"), sink, progress)
            if zstd_level:
                connection.send_query(_command(label, max_rate_kib, fast, zstd_level).encode())
                first = connection.get_result()
                if not _cannot_compress(first):
                    started = _expected(connection, first, pq.ExecStatus.TUPLES_OK, "start")
                    return _receive(connection, started, sink, progress, compressed=True)
                while connection.get_result() is not None:
                    continue
            connection.send_query(_command(label, max_rate_kib, fast, 0).encode())
            return _receive(connection, _expect(connection, pq.ExecStatus.TUPLES_OK, "start"), sink, progress)
        finally:
            connection.finish()
    finally:
        keeper.finish()


def _cannot_compress(result: abc.PGresult | None) -> bool:
    """Was the server built without zstd? It says so by "not supported", or by "invalid specification"."""
    return (
        result is not None
        and result.status == pq.ExecStatus.FATAL_ERROR
        and result.error_field(pq.DiagnosticField.SQLSTATE) in (b"0A000", b"42601")
    )


def _command(label: str, max_rate_kib: int, fast: bool, zstd_level: int) -> str:
    options = [f"LABEL '{label}'", "PROGRESS", f"CHECKPOINT '{'fast' if fast else 'spread'}'", "WAL", "WAIT false"]
    options += ["TABLESPACE_MAP", "MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'"]
    if max_rate_kib:
        options.append(f"MAX_RATE {_rate(max_rate_kib)}")
    if zstd_level:
        options.append(f"COMPRESSION 'zstd', COMPRESSION_DETAIL 'level={zstd_level}'")
    return f"BASE_BACKUP ({', '.join(options)})"


def _old_command(label: str, max_rate_kib: int, fast: bool) -> str:
    options = [f"LABEL '{label}'", "PROGRESS", *(["FAST"] if fast else []), "WAL", "NOWAIT"]
    options += [f"MAX_RATE {_rate(max_rate_kib)}"] if max_rate_kib else []
    return f"BASE_BACKUP {' '.join(options)} TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"


def _rate(max_rate_kib: int) -> int:
    return max(32, min(max_rate_kib, 1 << 20))


def _expect(connection: abc.PGconn, status: pq.ExecStatus, what: str) -> abc.PGresult:
    return _expected(connection, connection.get_result(), status, what)


def _expected(connection: abc.PGconn, result: abc.PGresult | None, status: pq.ExecStatus, what: str) -> abc.PGresult:
    if result is None or result.status != status:
        message = result.get_error_message() if result is not None else connection.get_error_message()
        raise PostgresUnavailable(f"BASE_BACKUP: {what}: {message.strip() or 'the server said nothing'}")
    return result


def _receive(
    connection: abc.PGconn,
    started: abc.PGresult,
    sink: BackupSink,
    progress: Callable[[int], None] | None,
    *,
    compressed: bool = False,
) -> tuple[BackupBegun, BackupEnded]:
    lsn, timeline = _position(started)
    spaces = _table(_expect(connection, pq.ExecStatus.TUPLES_OK, "tablespaces"))
    tablespaces = tuple(Tablespace(int(oid), where or "") for oid, where, _ in spaces if oid)
    estimate = sum(int(size or 0) for _, _, size in spaces) * 1024
    begun = BackupBegun(lsn, timeline, tablespaces, estimate, compressed)
    sink.begin(begun)
    if connection.server_version >= ONE_STREAM:
        _expect(connection, pq.ExecStatus.COPY_OUT, "data")
        _copy(connection, sink, progress)
    else:
        names = [(f"{oid}.tar", where or "") if oid else ("base.tar", "") for oid, where, _ in spaces]
        _copy_each(connection, names, sink, progress)
    return begun, _end(connection)


def _copy(connection: abc.PGconn, sink: BackupSink, progress: Callable[[int], None] | None) -> None:
    """The stream of 15 and newer."""
    plain = told = received = 0
    while message := _message(connection):
        kind, body = message[0], message[1:]
        if kind == DATA:
            received += len(body)
            sink.data(body)
        elif kind == TOLD:
            (plain,) = struct.unpack("!q", body)
            sink.told(plain)
        elif kind == ARCHIVE:
            name, location, _ = bytes(body).split(b"\0", 2)
            sink.archive(name.decode().removesuffix(".zst"), location.decode())
        elif kind == MANIFEST:
            sink.manifest()
        else:
            raise PostgresUnavailable(f"BASE_BACKUP: a message of an unknown kind: {chr(kind)!r}")
        if progress is not None and max(plain, received) >= told + TELL_BYTES:
            told = max(plain, received)
            progress(told)


def _copy_each(
    connection: abc.PGconn,
    names: list[tuple[str, str]],
    sink: BackupSink,
    progress: Callable[[int], None] | None,
) -> None:
    """The streams of 13 and 14: each tar, in the order in which it was announced, then the manifest."""
    received = told = 0
    for name, location in names:
        _expect(connection, pq.ExecStatus.COPY_OUT, name)
        sink.archive(name, location)
        while body := _message(connection):
            received += len(body)
            sink.data(body)
            if progress is not None and received >= told + TELL_BYTES:
                told = received
                progress(told)
        sink.data(TAR_END)
    _expect(connection, pq.ExecStatus.COPY_OUT, "manifest")
    sink.manifest()
    while body := _message(connection):
        sink.data(body)


def _message(connection: abc.PGconn) -> memoryview | None:
    """The next message of a COPY stream; None at its end."""
    length, message = connection.get_copy_data(0)
    if length == -1:
        return None
    if length < 0:
        raise PostgresUnavailable(f"BASE_BACKUP: the stream broke: {connection.get_error_message().strip()}")
    return message


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
