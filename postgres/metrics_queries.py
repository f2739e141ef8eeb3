"""What a scrape asks PostgreSQL, for versions 13 to 18: where a column moved, the value comes from its new home.

Every statement names its columns, takes no lock stronger than a reader's, and is bounded by the session's timeouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from postgres.monitor import Connection

Cell = Any  # str, int, float, bool or None, as psycopg returns it


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to one statement."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


STATIC = """
SELECT version() AS version, current_setting('server_version_num')::int AS number,
       extract(epoch FROM pg_postmaster_start_time())::float8 AS postmaster_start,
       extract(epoch FROM pg_conf_load_time())::float8 AS conf_load
"""

BGWRITER_16 = """
SELECT checkpoints_timed, checkpoints_req, checkpoint_write_time, checkpoint_sync_time, buffers_checkpoint,
       buffers_clean, maxwritten_clean, buffers_backend, buffers_backend_fsync, buffers_alloc,
       floor(extract(epoch FROM stats_reset))::int8 AS stats_reset
FROM pg_stat_bgwriter
"""

# Up to 16 a standby's restartpoints were counted as checkpoints: the sum keeps that meaning. Writes by backends moved
# to pg_stat_io, which counts operations, and from 18 on bytes too, since one operation may then write several buffers.
BGWRITER_17 = """
SELECT c.num_timed + c.restartpoints_timed AS checkpoints_timed,
       c.num_requested + c.restartpoints_req AS checkpoints_req,
       c.write_time AS checkpoint_write_time, c.sync_time AS checkpoint_sync_time,
       c.buffers_written AS buffers_checkpoint, b.buffers_clean, b.maxwritten_clean,
       io.writes AS buffers_backend, io.fsyncs AS buffers_backend_fsync, b.buffers_alloc,
       floor(extract(epoch FROM b.stats_reset))::int8 AS stats_reset
FROM pg_stat_bgwriter b, pg_stat_checkpointer c,
     (SELECT coalesce(sum({writes}), 0)::int8 AS writes, coalesce(sum(fsyncs), 0)::int8 AS fsyncs
      FROM pg_stat_io
      WHERE object = 'relation' AND backend_type NOT IN ('checkpointer', 'background writer')) io
"""
CHECKPOINTER = """
SELECT num_timed, num_requested, restartpoints_timed, restartpoints_req, restartpoints_done, write_time, sync_time,
       buffers_written, floor(extract(epoch FROM stats_reset))::int8 AS stats_reset
FROM pg_stat_checkpointer
"""

DATABASES = "(SELECT oid, datname FROM pg_database ORDER BY oid LIMIT {databases})"

ACTIVITY = """
SELECT d.datname, s.state, coalesce(a.count, 0) AS count, coalesce(a.max_tx_duration, 0) AS max_tx_duration
FROM (VALUES ('active'), ('idle'), ('idle in transaction'), ('idle in transaction (aborted)'),
             ('fastpath function call'), ('disabled')) s(state)
CROSS JOIN {databases} d
LEFT JOIN (SELECT datid, state, count(*) AS count,
                  max(extract(epoch FROM now() - xact_start))::float8 AS max_tx_duration
           FROM pg_stat_get_activity(NULL) WHERE datid <> 0 GROUP BY 1, 2) a ON a.state = s.state AND a.datid = d.oid
"""
LOCKS = """
SELECT d.datname, m.mode, coalesce(l.count, 0) AS count
FROM (VALUES ('accesssharelock'), ('rowsharelock'), ('rowexclusivelock'), ('shareupdateexclusivelock'),
             ('sharelock'), ('sharerowexclusivelock'), ('exclusivelock'), ('accessexclusivelock'),
             ('sireadlock')) m(mode)
CROSS JOIN {databases} d
LEFT JOIN (SELECT database, lower(mode) AS mode, count(*) AS count FROM pg_locks
           WHERE database IS NOT NULL GROUP BY 1, 2) l ON l.mode = m.mode AND l.database = d.oid
"""
ARCHIVER = """
SELECT archived_count, failed_count, extract(epoch FROM now() - last_archived_time)::float8 AS last_archive_age
FROM pg_stat_archiver
"""
REPLICATION = """
SELECT a.application_name, coalesce(host(a.client_addr), '') AS client_addr, w.state,
       coalesce(s.slot_name::text, '') AS slot_name,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::int8 END
         AS pg_current_wal_lsn_bytes,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), w.replay_lsn)::int8 END
         AS pg_wal_lsn_diff,
       floor(extract(epoch FROM w.reply_time))::int8 AS reply_time
FROM pg_stat_get_wal_senders() w
JOIN pg_stat_get_activity(NULL) a ON a.pid = w.pid
LEFT JOIN pg_get_replication_slots() s ON s.active_pid = w.pid
"""
# An idle standby that has replayed all it was sent is not behind; one whose primary is gone is, more every second.
LAG = """
SELECT CASE WHEN NOT pg_is_in_recovery() THEN 0
            WHEN w.status = 'streaming' AND pg_last_wal_replay_lsn() >= w.latest_end_lsn THEN 0
            ELSE greatest(0, extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()))
       END::float8 AS lag
FROM (SELECT 1) one LEFT JOIN pg_stat_get_wal_receiver() w ON true
"""
DATABASE_13 = """
SELECT datid::text AS datid, coalesce(datname, '') AS datname, numbackends, xact_commit, xact_rollback, blks_read,
       blks_hit, tup_returned, tup_fetched, tup_inserted, tup_updated, tup_deleted, conflicts, temp_files, temp_bytes,
       deadlocks, checksum_failures, floor(extract(epoch FROM checksum_last_failure))::int8 AS checksum_last_failure,
       blk_read_time, blk_write_time, {more} floor(extract(epoch FROM stats_reset))::int8 AS stats_reset
FROM pg_stat_database
WHERE datid = 0 OR datid IN (SELECT oid FROM pg_database ORDER BY oid LIMIT {limit})
"""
DATABASE_14 = (
    "session_time, active_time, idle_in_transaction_time, sessions, sessions_abandoned, sessions_fatal,"
    " sessions_killed, "
)
DATABASE_18 = DATABASE_14 + "parallel_workers_to_launch, parallel_workers_launched, "
CONFLICTS = """
SELECT datid::text AS datid, datname, confl_tablespace, confl_lock, confl_snapshot, confl_bufferpin,
       confl_deadlock{more}
FROM pg_stat_database_conflicts
WHERE datid IN (SELECT oid FROM pg_database ORDER BY oid LIMIT {limit})
"""
SIZES = """
SELECT datname, pg_database_size(oid) AS size_bytes, age(datfrozenxid)::int8 AS xid_age
FROM pg_database ORDER BY oid LIMIT {limit}
"""
SLOTS = """
SELECT slot_name::text AS slot_name, coalesce(database_name, '') AS database, active::int AS active,
       (coalesce(wal_status, '') = 'lost')::int AS lost,
       greatest(0, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                        ELSE pg_current_wal_lsn() END, restart_lsn))::int8 AS pg_wal_lsn_diff
FROM (SELECT s.*, (SELECT datname FROM pg_database WHERE oid = s.datoid) AS database_name
      FROM pg_get_replication_slots() s) slots
"""
# What a session starts with, not what this one has set for itself.
SETTINGS = """
SELECT name, CASE WHEN source IN ('session', 'client') THEN reset_val ELSE setting END AS setting,
       coalesce(unit, '') AS unit, short_desc, vartype
FROM pg_settings WHERE vartype IN ('bool', 'integer', 'real')
"""
TABLES = """
SELECT current_database() AS datname, schemaname, relname, seq_scan, seq_tup_read,
       coalesce(idx_scan, 0) AS idx_scan, coalesce(idx_tup_fetch, 0) AS idx_tup_fetch,
       n_tup_ins, n_tup_upd, n_tup_del, n_tup_hot_upd, n_live_tup, n_dead_tup, n_mod_since_analyze,
       coalesce(extract(epoch FROM last_vacuum), 0)::float8 AS last_vacuum,
       coalesce(extract(epoch FROM last_autovacuum), 0)::float8 AS last_autovacuum,
       coalesce(extract(epoch FROM last_analyze), 0)::float8 AS last_analyze,
       coalesce(extract(epoch FROM last_autoanalyze), 0)::float8 AS last_autoanalyze,
       vacuum_count, autovacuum_count, analyze_count, autoanalyze_count
FROM pg_stat_user_tables ORDER BY relid LIMIT {limit}
"""
# Summed: one series per statement would have no bound.
STATEMENTS = """
SELECT d.datname, coalesce(r.rolname, '') AS usename, sum(s.calls)::int8 AS calls,
       (sum(s.total_exec_time) / 1000)::float8 AS seconds_total, sum(s.rows)::int8 AS rows_total
FROM {schema}.pg_stat_statements s
JOIN {databases} d ON d.oid = s.dbid LEFT JOIN pg_roles r ON r.oid = s.userid
GROUP BY 1, 2
"""
STATEMENTS_SCHEMA = """
SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_stat_statements' AND 'pg_stat_statements' = ANY (
  string_to_array(replace(current_setting('shared_preload_libraries'), ' ', ''), ','))
"""
CONNECTABLE = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY oid LIMIT {limit}"


def _bgwriter(version: int) -> str:
    if version < 170000:
        return BGWRITER_16
    writes = "write_bytes / current_setting('block_size')::int" if version >= 180000 else "writes"
    return BGWRITER_17.format(writes=writes)


def _database(version: int) -> str:
    more = DATABASE_18 if version >= 180000 else DATABASE_14 if version >= 140000 else ""
    return DATABASE_13.replace("{more}", more)


def _conflicts(version: int) -> str:
    return CONFLICTS.replace("{more}", ", confl_active_logicalslot" if version >= 160000 else "")


# What a scrape asks, in this order: what needs no catalog first, so that a lock on pg_database costs the least.
STATEMENTS_BY_NAME: Mapping[str, Callable[[int], str | None]] = {
    "bgwriter": _bgwriter,
    "checkpointer": lambda version: CHECKPOINTER if version >= 170000 else None,
    "archiver": lambda version: ARCHIVER,
    "replication": lambda version: REPLICATION,
    "lag": lambda version: LAG,
    "database": _database,
    "conflicts": _conflicts,
    "activity": lambda version: ACTIVITY,
    "locks": lambda version: LOCKS,
    "slots": lambda version: SLOTS,
    "sizes": lambda version: SIZES,
    "settings": lambda version: SETTINGS,
    "tables": lambda version: TABLES,
}


async def _fetch(connection: Connection, sql: str) -> Rows:
    cursor = await connection.execute(sql)
    assert cursor.description is not None, "every statement here is a SELECT"
    return Rows(tuple(column.name for column in cursor.description), tuple(await cursor.fetchall()))


async def read_static(connection: Connection) -> tuple[str, int, float, float]:
    """The version in words, server_version_num, and when the postmaster started and last read its settings."""
    found = await _fetch(connection, STATIC)
    version, number, started, loaded = found.rows[0]
    return str(version), int(number), float(started), float(loaded)


async def read_rows(connection: Connection, name: str, version: int, limit: int) -> Rows | None:
    """The answer to the statement called `name`; None when this version has nothing like it.

    `limit`: at most so many databases, the oldest first; for "tables": so many tables of this database."""
    sql = STATEMENTS_BY_NAME[name](version)
    if sql is None:
        return None
    sql = sql.replace("{databases}", DATABASES.replace("{databases}", str(int(limit))))
    return await _fetch(connection, sql.replace("{limit}", str(int(limit))))


async def read_statements(connection: Connection, limit: int) -> Rows | None:
    """pg_stat_statements summed per database and user. None when this database does not have the extension."""
    found = await _fetch(connection, STATEMENTS_SCHEMA)
    if not found.rows:
        return None
    databases = DATABASES.replace("{databases}", str(int(limit)))
    return await _fetch(connection, STATEMENTS.format(schema=found.rows[0][0], databases=databases))


async def connectable_databases(connection: Connection, limit: int) -> tuple[str, ...]:
    """The databases that take connections, templates excluded; at most `limit`."""
    found = await _fetch(connection, CONNECTABLE.format(limit=int(limit)))
    return tuple(str(row[0]) for row in found.rows)
