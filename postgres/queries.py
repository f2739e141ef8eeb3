"""Every statement flypg sends to PostgreSQL: a constant beside one function with a typed answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from psycopg import sql
from psycopg.errors import DuplicateObject
from psycopg.rows import class_row

from cluster.errors import InstanceError
from cluster.model import Position, parse_lsn
from postgres import scram
from postgres.connection import Connection

LOOK = """
SELECT r AS in_recovery,
  current_setting('server_version_num')::int AS version,
  current_setting('synchronous_standby_names') AS names,
  CASE WHEN r THEN NULL ELSE pg_current_wal_flush_lsn() END::text AS flushed,
  CASE WHEN r THEN NULL ELSE pg_current_wal_insert_lsn() END::text AS inserted,
  CASE WHEN r THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END AS timeline,
  CASE WHEN r THEN pg_last_wal_receive_lsn() END::text AS received,
  CASE WHEN r THEN pg_last_wal_replay_lsn() END::text AS replayed,
  (SELECT json_build_array(status, received_tli) FROM pg_stat_wal_receiver) AS receiver,
  (SELECT json_agg(json_build_array(pid, application_name, state, sync_state, flush_lsn,
     extract(epoch FROM replay_lag), reply_time::text)) FROM pg_stat_replication) AS walsenders,
  (SELECT array_agg(slot_name::text) FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary) AS slots,
  CASE WHEN r THEN '' ELSE (SELECT count(*) || ' ' || max(oid::int8) FROM pg_database WHERE datallowconn) END
    AS databases
FROM (SELECT pg_is_in_recovery() AS r) AS s
"""


@dataclass(frozen=True, slots=True)
class Look:
    """The answer to LOOK. LSNs as PostgreSQL prints them; None where the role of the server has none."""

    in_recovery: bool
    version: int
    names: str
    flushed: str | None
    inserted: str | None
    timeline: str | None  # hexadecimal
    received: str | None
    replayed: str | None
    receiver: list[Any] | None
    walsenders: list[list[Any]] | None
    slots: list[str] | None
    databases: str = ""  # changes when one was made; "" on a standby


async def look(connection: Connection) -> Look:
    """All that an idle keeper wants to know, in one statement."""
    async with connection.cursor(row_factory=class_row(Look)) as cursor:
        await cursor.execute(LOOK)
        row = await cursor.fetchone()
    assert row is not None, "a SELECT from one row has one row"
    return row


async def _one(connection: Connection, query: str, *parameters: object) -> tuple[Any, ...]:
    cursor = await connection.execute(cast(Any, query), parameters or None)
    row = await cursor.fetchone()
    assert row is not None, "asked for exactly one row"
    return cast("tuple[Any, ...]", row)


PENDING = "SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM pg_settings WHERE pending_restart"


async def pending_restart(connection: Connection) -> tuple[str, ...]:
    return tuple((await _one(connection, PENDING))[0])


LOADED = """SELECT pg_conf_load_time()::text, current_setting('synchronous_standby_names'),
  current_setting('primary_conninfo')"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What this backend runs with, and when it read that."""

    at: str
    names: str
    conninfo: str


async def loaded(connection: Connection) -> Loaded:
    return Loaded(*await _one(connection, LOADED))


IN_RECOVERY = "SELECT pg_is_in_recovery()"


async def in_recovery(connection: Connection) -> bool:
    cursor = await connection.execute(IN_RECOVERY)
    return await cursor.fetchone() == (True,)


STANDBY = """SELECT pg_is_in_recovery(), pg_last_wal_receive_lsn()::text, pg_last_wal_replay_lsn()::text,
  (SELECT received_tli FROM pg_stat_wal_receiver), (SELECT count(*) FROM pg_stat_wal_receiver),
  (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup')"""


@dataclass(frozen=True, slots=True)
class Standby:
    """Where a standby stands. `received` is None until it has streamed since its last start."""

    in_recovery: bool
    received: int | None
    replayed: int | None
    received_timeline: int | None  # of a receiver that runs
    receiving: bool
    startup_waits_for: str | None

    @property
    def at_end_of_local_wal(self) -> bool:
        return self.startup_waits_for in ("RecoveryRetrieveRetryInterval", "RecoveryWalStream", "RecoveryWalAll")


async def standby(connection: Connection) -> Standby:
    recovery, received, replayed, timeline, count, waits = await _one(connection, STANDBY)
    return Standby(recovery, _lsn(received), _lsn(replayed), timeline, count > 0, waits)


def _lsn(text: str | None) -> int | None:
    return parse_lsn(text) if text is not None else None


async def identify(replication: Connection) -> tuple[str, Position]:
    """System id and position of a server, as it would tell a standby. Needs a replication connection."""
    cursor = await replication.execute("IDENTIFY_SYSTEM")
    row = await cursor.fetchone()
    assert row is not None, "IDENTIFY_SYSTEM answers with a row"
    return str(row[0]), Position(int(row[1]), parse_lsn(row[2]))


EMIT = "SELECT pg_logical_emit_message(true, 'flypg', %s)::text"
FLUSHED = "SELECT pg_current_wal_flush_lsn()::text"


async def emit(connection: Connection, text: str) -> list[str]:
    """Commit something tiny that needs acknowledgement like any write; the warnings that came with it."""
    warnings: list[str] = []
    connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or "a warning"))
    await connection.execute(EMIT, (text,))
    return warnings


NUDGE = """BEGIN; SET LOCAL synchronous_commit = local;
  SELECT pg_logical_emit_message(true, 'flypg', 'nudge'); COMMIT"""


async def nudge(connection: Connection) -> None:
    """Something for standbys to confirm, so that commits which wait are looked at now and not with the next status of a
    standby, up to a second later. Waits for nobody itself."""
    await connection.execute(NUDGE)


async def flushed(connection: Connection) -> int:
    return parse_lsn((await _one(connection, FLUSHED))[0])


REPLAY_WAITS = """
EXISTS (SELECT FROM pg_stat_activity AS replay WHERE replay.backend_type = 'startup'
        AND (replay.wait_event LIKE 'RecoveryConflict%' OR replay.wait_event_type IN ('Lock', 'BufferPin')))
"""
END_READERS = f"""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid() AND {REPLAY_WAITS}
"""


async def replay_waits(connection: Connection) -> bool:
    """Does replay wait for readers at this moment?"""
    return bool((await _one(connection, f"SELECT {REPLAY_WAITS}"))[0])


async def end_readers(connection: Connection) -> int:
    """End the transactions of readers if replay waits for one. How many that were."""
    return int((await _one(connection, END_READERS))[0])


WALSENDERS = "SELECT application_name, state, sync_state, flush_lsn::text FROM pg_stat_replication"


@dataclass(frozen=True, slots=True)
class Sender:
    name: str
    state: str
    sync_state: str
    flushed: int | None


async def walsenders(connection: Connection) -> list[Sender]:
    cursor = await connection.execute(WALSENDERS)
    return [Sender(name, state, sync, _lsn(lsn)) for name, state, sync, lsn in await cursor.fetchall()]


WAIT_OF = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
CHECKPOINTER = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'checkpointer'"


async def wait_event(connection: Connection, pid: int) -> str | None:
    cursor = await connection.execute(WAIT_OF, (pid,))
    row = await cursor.fetchone()
    return row[0] if row else None


async def checkpointer_waits_for(connection: Connection) -> str | None:
    cursor = await connection.execute(CHECKPOINTER)
    row = await cursor.fetchone()
    return row[0] if row else None


STUCK = """SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity
  WHERE backend_type IN ('client backend', 'walwriter') AND lower(wait_event) IN ('walsync', 'walwrite', 'walinitsync',
    'walinitwrite', 'datafileextend', 'datafilewrite', 'datafilesync', 'datafileflush', 'slruwrite', 'slrusync')"""


async def stuck_in_writing(connection: Connection) -> frozenset[int]:
    """Processes that at this moment wait for WAL or data to reach the disk."""
    return frozenset((await _one(connection, STUCK))[0])


async def terminate(connection: Connection, pid: int) -> None:
    await connection.execute("SELECT pg_terminate_backend(%s)", (pid,))


END_CLIENTS = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
  WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND NOT (usename = %s) AND NOT (usename = %s AND client_addr IS NULL AND application_name LIKE 'flypg%%')"""


async def end_clients(connection: Connection, operator: str, superuser: str) -> int:
    """Terminate every session of a client (never cancel: a cancelled commit wait is answered with success)."""
    return int((await _one(connection, END_CLIENTS, operator, superuser))[0])


async def checkpoint(connection: Connection) -> None:
    await connection.execute("CHECKPOINT")


# A stop in order fills the WAL file up when there is an archive, and the standbys must receive that: up to 16 MB.
LEFT_IN_WAL_FILE = """SELECT CASE WHEN current_setting('archive_mode') = 'off'
    OR EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'logical') THEN 0
  ELSE pg_size_bytes(current_setting('wal_segment_size'))
    - (pg_walfile_name_offset(pg_current_wal_insert_lsn())).file_offset END"""
PIECE, PIECES = 1 << 18, 4  # bytes, and how many are written before others get their turn
LARGEST_FILL = 64 << 20
FILL = "SELECT count(pg_logical_emit_message(false, 'flypg', repeat('.', %s))) FROM generate_series(1, %s)"
FLUSH = "SELECT pg_logical_emit_message(true, 'flypg', '')"


async def fill_wal_file(connection: Connection, keep_bytes: int) -> int:
    """Write the current WAL file full but for some `keep_bytes`; the bytes written. Nothing where nothing is archived;
    nor where there are logical slots, whose readers would see it. It goes at the pace of the standbys whose word
    commits wait for: clients' commits are behind one megabyte of it at most, not behind all."""
    written, most = 0, LARGEST_FILL
    while True:
        row = await (await connection.execute(LEFT_IN_WAL_FILE)).fetchone()
        assert row is not None, "a SELECT without FROM always has one row"
        if not written:
            most = int(row[0])
        pieces = min(PIECES, (int(row[0]) - keep_bytes) // PIECE)
        if pieces <= 0 or most > LARGEST_FILL or written >= most:
            return written
        if not written:
            await connection.execute("SET synchronous_commit = on")
        await connection.execute(FILL, (PIECE, pieces))
        await connection.execute(FLUSH)
        written += pieces * PIECE


HBA_ERRORS = "SELECT line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL ORDER BY 1 LIMIT 1"


async def hba_error(connection: Connection) -> str:
    """What PostgreSQL has against the pg_hba.conf on disk; "" when nothing."""
    cursor = await connection.execute(HBA_ERRORS)
    row = await cursor.fetchone()
    return f"line {row[0]}: {row[1]}" if row else ""


SLOTS = """SELECT slot_name::text, active, restart_lsn::text FROM pg_replication_slots
  WHERE slot_type = 'physical' AND slot_name LIKE 'flypg\\_%'"""


@dataclass(frozen=True, slots=True)
class Slot:
    name: str
    active: bool
    restart: int | None


async def slots(connection: Connection) -> list[Slot]:
    cursor = await connection.execute(SLOTS)
    return [Slot(name, active, _lsn(lsn)) for name, active, lsn in await cursor.fetchall()]


async def create_slot(connection: Connection, name: str) -> None:
    try:
        await connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", (name,))
    except DuplicateObject:
        return


async def drop_slot(connection: Connection, name: str) -> None:
    await connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))


async def advance_slot(connection: Connection, name: str, lsn: str) -> None:
    await connection.execute("SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", (name, lsn))


SOURCE = """SELECT pg_is_in_recovery(), (SELECT timeline_id FROM pg_control_checkpoint()),
  CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END,
  (SELECT sum(pg_database_size(oid)) FROM pg_database)::bigint,
  (SELECT count(*) FROM pg_tablespace WHERE spcname NOT LIKE 'pg\\_%')"""


@dataclass(frozen=True, slots=True)
class Source:
    """What we want to know of a server before copying or rewinding from it."""

    in_recovery: bool
    checkpoint_timeline: int  # in its control file
    timeline: int | None  # that it writes; None when it is a standby
    size_bytes: int
    tablespaces: int


async def source(connection: Connection) -> Source:
    recovery, checkpoint_timeline, timeline, size, tablespaces = await _one(connection, SOURCE)
    return Source(recovery, checkpoint_timeline, int(timeline, 16) if timeline else None, size, tablespaces)


OLDEST_WAL = """SELECT min(
    ('x' || substr(name, 9, 8))::bit(32)::bigint * 4294967296
    + ('x' || substr(name, 17, 8))::bit(32)::bigint
      * (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'))
  FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'"""


async def oldest_wal(connection: Connection) -> int:
    """The LSN at which the oldest WAL file begins."""
    (found,) = await _one(connection, OLDEST_WAL)
    return int(found or 0)


async def hold_wal(connection: Connection, name: str) -> None:
    """Keep the WAL since the server's last checkpoint, as long as this connection lasts."""
    await connection.execute("SELECT pg_create_physical_replication_slot(%s, true, true)", (name,))


HISTORY = """SELECT (SELECT system_identifier FROM pg_control_system())::text AS system_id,
  current_setting('server_version_num')::int AS version,
  CASE WHEN r THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END AS timeline,
  CASE WHEN r THEN NULL ELSE pg_current_wal_flush_lsn() END::text AS flushed
FROM (SELECT pg_is_in_recovery() AS r) AS s"""


@dataclass(frozen=True, slots=True)
class History:
    """Which history a server writes. `timeline`, `flushed` (LSN): None on a standby."""

    system_id: str
    version: int
    timeline: int | None
    flushed: int | None
    history: str  # the content of its timeline's history file; "" on timeline 1


async def history(connection: Connection) -> History:
    system_id, version, timeline, flushed = await _one(connection, HISTORY)
    text = ""
    if timeline is not None and int(timeline, 16) > 1:
        (found,) = await _one(connection, "SELECT pg_read_file(%s, 0, 1048576, true)", f"pg_wal/{timeline}.history")
        text = str(found or "")
    return History(system_id, version, int(timeline, 16) if timeline else None, _lsn(flushed), text)


POSITION = """SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE
  substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) || ' ' || pg_current_wal_flush_lsn()::text END"""


async def position(connection: Connection) -> Position:
    """What a primary has flushed. Raises InstanceError when it is none."""
    (found,) = await _one(connection, POSITION)
    if found is None:
        raise InstanceError("the source is not a primary: it cannot say where the history stands")
    timeline, lsn = str(found).split()
    return Position(int(timeline, 16), parse_lsn(lsn))


async def ensure_role(connection: Connection, name: str, attributes: str, password: str) -> None:
    """Create or alter `name` so that it has `attributes` and `password`; the server sees only the verifier."""
    cursor = await connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (name,))
    row = await cursor.fetchone()
    if row is not None and row[0] is not None:
        same = await asyncio.to_thread(scram.keys, row[0], password)
        if same is not None:
            return
    verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    statement = sql.SQL("{} ROLE {} WITH " + attributes + " PASSWORD {}").format(
        sql.SQL("ALTER" if row is not None else "CREATE"), sql.Identifier(name), sql.Literal(verifier)
    )
    await connection.execute(statement)


async def values(connection: Connection, names: tuple[str, ...]) -> Mapping[str, str]:
    """The values of these settings. Raises InstanceError for one that does not exist."""
    cursor = await connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", (list(names),))
    found = {str(name): str(value) for name, value in await cursor.fetchall()}
    if missing := sorted(set(names) - set(found)):
        raise InstanceError(f"PostgreSQL knows no setting {missing[0]}")
    return found


STREAM_AGE = "SELECT extract(epoch FROM clock_timestamp() - last_msg_receipt_time)::float8 FROM pg_stat_wal_receiver"


async def stream_age_s(connection: Connection) -> float | None:
    """Seconds since the WAL receiver last heard anything, by this machine's clock; None when there is none."""
    cursor = await connection.execute(STREAM_AGE)
    row = await cursor.fetchone()
    return float(row[0]) if row is not None and row[0] is not None else None
