"""PostgreSQL's metrics under the names that postgres_exporter gave them, which dashboards and alerts use. Pure.

Names, types and help texts are those of the exporter that Fly ran (0.8.0). From 0.11.0 on it calls the counters of
pg_stat_bgwriter `…_total`: those are served under both names, so that old and new dashboards work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from healthchecks.exposition import Definition, Family, label_text
from postgres.metrics_queries import Rows

IN_DB = "in this database"
BY_DB = "by queries in this database"


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    help: str
    total: bool = False  # also served as `<name>_total`
    since: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """What becomes of the rows of one statement: a series per row and column."""

    query: str
    prefix: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]


def _c(name: str, help: str, *, total: bool = False, since: str = "") -> Column:
    return Column(name, "counter", help, total, since)


def _g(name: str, help: str) -> Column:
    return Column(name, "gauge", help)


def _u(name: str, view: str, since: str = "") -> Column:
    """A column that the exporter did not know, and so exported without a type."""
    return Column(name, "untyped", f"Unknown metric from {view}", since=since)


def _milliseconds(what: str) -> str:
    return (
        f"Total amount of time that has been spent in the portion of checkpoint processing where files are {what}"
        " to disk, in milliseconds"
    )


FSYNCS = (
    "Number of times a backend had to execute its own fsync call (normally the background writer handles those even"
    " when the backend does its own write)"
)
HITS = (
    "Number of times disk blocks were found already in the buffer cache, so that a read was not necessary (this only"
    " includes hits in the PostgreSQL buffer cache, not the operating system's file system cache)"
)
CONFLICTED = (
    "Number of queries canceled due to conflicts with recovery in this database. (Conflicts occur only on standby"
    " servers; see pg_stat_database_conflicts for details.)"
)
BACKENDS = (
    "Number of backends currently connected to this database. This is the only column in this view that returns a value"
    " reflecting current state; all other columns return the accumulated values since the last reset."
)
TEMP_FILES = (
    "Number of temporary files created by queries in this database. All temporary files are counted, regardless of why"
    " the temporary file was created (e.g., sorting or hashing), and regardless of the log_temp_files setting."
)
TEMP_BYTES = (
    "Total amount of data written to temporary files by queries in this database. All temporary files are counted,"
    " regardless of why the temporary file was created, and regardless of the log_temp_files setting."
)
RESET = "Time at which these statistics were last reset"
CANCELED = "Number of queries in this database that have been canceled due to"

BGWRITER = Table(
    "bgwriter",
    "pg_stat_bgwriter",
    (),
    (
        _c("buffers_alloc", "Number of buffers allocated", total=True),
        _c("buffers_backend", "Number of buffers written directly by a backend", total=True),
        _c("buffers_backend_fsync", FSYNCS, total=True),
        _c("buffers_checkpoint", "Number of buffers written during checkpoints", total=True),
        _c("buffers_clean", "Number of buffers written by the background writer", total=True),
        _c("checkpoint_sync_time", _milliseconds("synchronized"), total=True),
        _c("checkpoint_write_time", _milliseconds("written"), total=True),
        _c("checkpoints_req", "Number of requested checkpoints that have been performed", total=True),
        _c("checkpoints_timed", "Number of scheduled checkpoints that have been performed", total=True),
        _c(
            "maxwritten_clean",
            "Number of times the background writer stopped a cleaning scan because it had written too many buffers",
            total=True,
        ),
        _c("stats_reset", RESET, total=True),
    ),
)
CHECKPOINTER = Table(
    "checkpointer",
    "pg_stat_checkpointer",
    (),
    tuple(
        _c(f"{name}_total", help, since="17")
        for name, help in (
            ("num_timed", "Number of scheduled checkpoints due to timeout"),
            ("num_requested", "Number of requested checkpoints that have been performed"),
            ("restartpoints_timed", "Number of scheduled restartpoints due to timeout"),
            ("restartpoints_req", "Number of requested restartpoints"),
            ("restartpoints_done", "Number of restartpoints that have been performed"),
            ("write_time", _milliseconds("written")),
            ("sync_time", _milliseconds("synchronized")),
            ("buffers_written", "Number of buffers written during checkpoints and restartpoints"),
            ("stats_reset", RESET),
        )
    ),
)
ARCHIVER = Table(
    "archiver",
    "pg_stat_archiver",
    (),
    (
        _c("archived_count", "Number of WAL files that have been successfully archived"),
        _c("failed_count", "Number of failed attempts for archiving WAL files"),
        _g("last_archive_age", "Time in seconds since last WAL segment was successfully archived"),
    ),
)
REPLICATION = Table(
    "replication",
    "pg_stat_replication",
    ("application_name", "client_addr", "slot_name", "state"),
    (
        _g("pg_current_wal_lsn_bytes", "WAL position in bytes"),
        _g("pg_wal_lsn_diff", "Lag in bytes between master and slave"),
        _u("reply_time", "pg_stat_replication"),
    ),
)
LAG = Table("lag", "pg_replication", (), (_g("lag", "Replication lag behind master in seconds"),))
DATABASE = Table(
    "database",
    "pg_stat_database",
    ("datid", "datname"),
    (
        _c("blk_read_time", "Time spent reading data file blocks by backends in this database, in milliseconds"),
        _c("blk_write_time", "Time spent writing data file blocks by backends in this database, in milliseconds"),
        _c("blks_hit", HITS),
        _c("blks_read", f"Number of disk blocks read {IN_DB}"),
        _c("conflicts", CONFLICTED),
        _c("deadlocks", f"Number of deadlocks detected {IN_DB}"),
        _g("numbackends", BACKENDS),
        _c("stats_reset", RESET),
        _c("temp_bytes", TEMP_BYTES),
        _c("temp_files", TEMP_FILES),
        _c("tup_deleted", f"Number of rows deleted {BY_DB}"),
        _c("tup_fetched", f"Number of rows fetched {BY_DB}"),
        _c("tup_inserted", f"Number of rows inserted {BY_DB}"),
        _c("tup_returned", f"Number of rows returned {BY_DB}"),
        _c("tup_updated", f"Number of rows updated {BY_DB}"),
        _c("xact_commit", f"Number of transactions {IN_DB} that have been committed"),
        _c("xact_rollback", f"Number of transactions {IN_DB} that have been rolled back"),
        _u("checksum_failures", "pg_stat_database"),
        _u("checksum_last_failure", "pg_stat_database"),
        *(
            _u(name, "pg_stat_database", since="14")
            for name in (
                "session_time",
                "active_time",
                "idle_in_transaction_time",
                "sessions",
                "sessions_abandoned",
                "sessions_fatal",
                "sessions_killed",
            )
        ),
        _u("parallel_workers_to_launch", "pg_stat_database", since="18"),
        _u("parallel_workers_launched", "pg_stat_database", since="18"),
    ),
)
CONFLICTS = Table(
    "conflicts",
    "pg_stat_database_conflicts",
    ("datid", "datname"),
    (
        _c("confl_bufferpin", f"{CANCELED} pinned buffers"),
        _c("confl_deadlock", f"{CANCELED} deadlocks"),
        _c("confl_lock", f"{CANCELED} lock timeouts"),
        _c("confl_snapshot", f"{CANCELED} old snapshots"),
        _c("confl_tablespace", f"{CANCELED} dropped tablespaces"),
        _u("confl_active_logicalslot", "pg_stat_database_conflicts", since="16"),
    ),
)
ACTIVITY = Table(
    "activity",
    "pg_stat_activity",
    ("datname", "state"),
    (
        _g("count", "number of connections in this state"),
        _g("max_tx_duration", "max duration in seconds any active transaction has been running"),
    ),
)
LOCKS = Table("locks", "pg_locks", ("datname", "mode"), (_g("count", "Number of locks"),))
SIZES = Table("sizes", "pg_database", ("datname",), (_g("size_bytes", "Disk space used by the database"),))
SLOTS = Table(
    "slots",
    "pg_replication_slots",
    ("database", "slot_name"),
    (
        _g("active", "Flag indicating if the slot is active"),
        _g("pg_wal_lsn_diff", "Replication lag in bytes"),
    ),
)
TABLES = Table(
    "tables",
    "pg_stat_user_tables",
    ("datname", "relname", "schemaname"),
    (
        _c("seq_scan", "Number of sequential scans initiated on this table"),
        _c("seq_tup_read", "Number of live rows fetched by sequential scans"),
        _c("idx_scan", "Number of index scans initiated on this table"),
        _c("idx_tup_fetch", "Number of live rows fetched by index scans"),
        _c("n_tup_ins", "Number of rows inserted"),
        _c("n_tup_upd", "Number of rows updated"),
        _c("n_tup_del", "Number of rows deleted"),
        _c("n_tup_hot_upd", "Number of rows HOT updated (i.e., with no separate index update required)"),
        _g("n_live_tup", "Estimated number of live rows"),
        _g("n_dead_tup", "Estimated number of dead rows"),
        _g("n_mod_since_analyze", "Estimated number of rows changed since last analyze"),
        _g("last_vacuum", "Last time at which this table was manually vacuumed (not counting VACUUM FULL)"),
        _g("last_autovacuum", "Last time at which this table was vacuumed by the autovacuum daemon"),
        _g("last_analyze", "Last time at which this table was manually analyzed"),
        _g("last_autoanalyze", "Last time at which this table was analyzed by the autovacuum daemon"),
        _c("vacuum_count", "Number of times this table has been manually vacuumed (not counting VACUUM FULL)"),
        _c("autovacuum_count", "Number of times this table has been vacuumed by the autovacuum daemon"),
        _c("analyze_count", "Number of times this table has been manually analyzed"),
        _c("autoanalyze_count", "Number of times this table has been analyzed by the autovacuum daemon"),
    ),
)
STATEMENTS = Table(
    "statements",
    "pg_stat_statements",
    ("datname", "usename"),
    (
        _c("calls", "Number of times the statements of this user in this database were executed"),
        _c("seconds_total", "Time spent executing them, in seconds"),
        _c("rows_total", "Number of rows they retrieved or changed"),
    ),
)
BASIC = (BGWRITER, CHECKPOINTER, ARCHIVER, REPLICATION, LAG, DATABASE, CONFLICTS, ACTIVITY, LOCKS, SLOTS)
EVERY = (*BASIC, SIZES, TABLES, STATEMENTS)
BY_QUERY: Mapping[str, Table] = {table.query: table for table in EVERY}

UP = Definition(
    "pg_up",
    "gauge",
    "Whether the last scrape of metrics from PostgreSQL was able to connect to the server (1 for yes, 0 for no).",
)
STATIC = Definition(
    "pg_static", "untyped", "Version string as reported by postgres", ("server", "short_version", "version")
)
STARTED = Definition("pg_postmaster_start_time_seconds", "gauge", "Time at which postmaster started", ("server",))
SCRAPE_SECONDS = Definition(
    "pg_exporter_last_scrape_duration_seconds", "gauge", "Duration of the last scrape of metrics from PostgresSQL."
)
SCRAPE_ERROR = Definition(
    "pg_exporter_last_scrape_error",
    "gauge",
    "Whether the last scrape of metrics from PostgreSQL resulted in an error (1 for error, 0 for success).",
)
SCRAPES = Definition(
    "pg_exporter_scrapes_total", "counter", "Total number of times PostgresSQL was scraped for metrics."
)
ALONE = (UP, STATIC, STARTED, SCRAPE_SECONDS, SCRAPE_ERROR, SCRAPES)


def _definitions(table: Table, column: Column) -> Iterator[Definition]:
    labels = tuple(sorted((*table.labels, "server")))
    name = f"{table.prefix}_{column.name}"
    yield Definition(name, column.type, column.help, labels, column.since)
    if column.total:
        yield Definition(f"{name}_total", column.type, column.help, labels, column.since)


def definitions() -> tuple[Definition, ...]:
    """Every metric of this file, for the documentation."""
    found = [d for table in EVERY for column in table.columns for d in _definitions(table, column)]
    return (*found, *ALONE)


def families(table: Table, rows: Rows, server: str) -> list[Family]:
    """The families of a statement's answer. Columns that this version does not have are left out."""
    where = {name: at for at, name in enumerate(rows.columns)}
    names = tuple(sorted((*table.labels, "server")))
    at = tuple(where[name] if name != "server" else -1 for name in names)
    labels = [label_text(names, (server if i < 0 else row[i] for i in at)) for row in rows.rows]
    found: list[Family] = []
    for column in table.columns:
        source = where.get(column.name, where.get(column.name.removesuffix("_total"), -1))
        if source < 0:
            continue
        first: Family | None = None
        for definition in _definitions(table, column):
            family = Family(definition)
            if first is None:
                for text, row in zip(labels, rows.rows, strict=True):
                    family.add(text, row[source])
                first = family
            else:
                family.samples = first.samples
            found.append(family)
    return found
