"""What the health checks ask PostgreSQL: one statement without any lock that somebody could hold against it, and one
for slow-moving facts that may fail by itself."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import class_row

from postgres.monitor import Connection

# The functions below the views are used because the views join pg_database and pg_authid: an ALTER or a forgotten LOCK
# there must not turn a node red. 13 to 18 have all of these columns.
VITALS = """
SELECT pg_is_in_recovery() AS in_recovery,
       current_setting('transaction_read_only') = 'on' AS read_only,
       a.used, a.clients, a.oldest_transaction_s, a.oldest_transaction_pid,
       current_setting('superuser_reserved_connections')::int
         + coalesce(current_setting('reserved_connections', true), '0')::int AS reserved,
       current_setting('max_connections')::int AS max_connections,
       r.standbys, s.slots,
       current_setting('archive_mode') <> 'off' AS archiving,
       w.archive_failing, w.archive_failures, w.archive_age_s,
       CASE WHEN pg_is_in_recovery() THEN v.behind_bytes END AS behind_bytes,
       CASE WHEN NOT pg_is_in_recovery() THEN 0
            WHEN v.behind_bytes = 0 THEN 0
            ELSE greatest(0, extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()))
       END::float8 AS behind_s,
       v.contact_age_s
FROM (SELECT count(*)::int AS used,
             (count(*) FILTER (WHERE backend_type = 'client backend'))::int AS clients,
             max(extract(epoch FROM clock_timestamp() - xact_start))
               FILTER (WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())::float8
               AS oldest_transaction_s,
             (array_agg(pid ORDER BY xact_start)
               FILTER (WHERE backend_type = 'client backend' AND xact_start IS NOT NULL
                         AND pid <> pg_backend_pid()))[1] AS oldest_transaction_pid
      FROM pg_stat_get_activity(NULL)) a,
     (SELECT coalesce(array_agg(ARRAY[coalesce(nullif(host(p.client_addr), ''), p.application_name),
                                      coalesce(extract(epoch FROM w.replay_lag), 0)::text]
                                ORDER BY p.application_name)
                        FILTER (WHERE w.pid IS NOT NULL), '{}') AS standbys
      FROM pg_stat_get_wal_senders() w JOIN pg_stat_get_activity(NULL) p ON p.pid = w.pid) r,
     (SELECT coalesce(array_agg(ARRAY[slot_name, active::text, coalesce(wal_status, ''),
                coalesce((CASE WHEN pg_is_in_recovery()
                               THEN pg_wal_lsn_diff(pg_last_wal_receive_lsn(), restart_lsn)
                               ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) END), 0)::text]
              ORDER BY slot_name), '{}') AS slots
      FROM pg_get_replication_slots()) s,
     (SELECT coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) AS archive_failing,
             failed_count::int AS archive_failures,
             extract(epoch FROM clock_timestamp() - last_archived_time)::float8 AS archive_age_s
      FROM pg_stat_get_archiver()) w,
     (SELECT max(greatest(0, pg_wal_lsn_diff(latest_end_lsn, pg_last_wal_replay_lsn())))::int8 AS behind_bytes,
             max(extract(epoch FROM clock_timestamp() - last_msg_receipt_time))::float8 AS contact_age_s
      FROM pg_stat_get_wal_receiver() WHERE status = 'streaming') v
"""

UPKEEP = """
SELECT (SELECT max(age(datfrozenxid)) FROM pg_database)::int8 AS xid_age,
       (SELECT max(mxid_age(datminmxid)) FROM pg_database)::int8 AS mxid_age,
       (SELECT sum(coalesce(pg_stat_get_db_checksum_failures(oid), 0)) FROM pg_database)::int8 AS checksum_failures,
       (SELECT string_agg(datname, ', ' ORDER BY datname) FROM pg_database
         WHERE coalesce(pg_stat_get_db_checksum_failures(oid), 0) > 0) AS checksum_databases
"""


@dataclass(frozen=True, slots=True)
class Vitals:
    """The state of a PostgreSQL that answers. Ages in seconds; None means there is none."""

    in_recovery: bool
    read_only: bool
    used: int  # every process in pg_stat_activity, as Fly counts them
    clients: int
    oldest_transaction_s: float | None
    oldest_transaction_pid: int | None
    reserved: int
    max_connections: int
    standbys: list[list[str]]  # address, seconds behind
    slots: list[list[str]]  # name, "true" when active, wal_status, bytes retained
    archiving: bool
    archive_failing: bool  # the last attempt failed
    archive_failures: int
    archive_age_s: float | None
    behind_bytes: int | None  # standby: received from its upstream and not replayed; None when it does not stream
    behind_s: float | None  # age of the last replayed commit, unless nothing is left to replay; 0 on a primary
    contact_age_s: float | None  # since the upstream was last heard


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Facts that move over days."""

    xid_age: int
    mxid_age: int
    checksum_failures: int
    checksum_databases: str | None


async def vitals(connection: Connection) -> Vitals:
    """How this server is, without waiting for any lock."""
    async with connection.cursor(row_factory=class_row(Vitals)) as cursor:
        await cursor.execute(VITALS)
        row = await cursor.fetchone()
    assert row is not None, "aggregates always have one row"
    return row


async def upkeep(connection: Connection) -> Upkeep:
    """Wraparound and checksum facts, over all databases."""
    async with connection.cursor(row_factory=class_row(Upkeep)) as cursor:
        await cursor.execute(UPKEEP)
        row = await cursor.fetchone()
    assert row is not None, "a SELECT without FROM always has one row"
    return row
