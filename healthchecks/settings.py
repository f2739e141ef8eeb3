"""The settings of checks and metrics: FLYPG_CHECK_*, FLYPG_METRICS_*; listed in docs/checks.md and docs/metrics.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cluster import values as read
from cluster.errors import SettingsError
from cluster.values import Values
from healthchecks.config import HttpConfig, Thresholds, fly

PREFIXES = ("FLYPG_CHECK_", "FLYPG_METRICS_")
ELSEWHERE = ("FLYPG_METRICS_PORT",)  # read with the other ports


@dataclass(frozen=True, slots=True)
class Key:
    """A setting: the field it fills, and what it means to an operator."""

    key: str
    field: str
    kind: str  # percent, seconds, bytes, count, flag, loads
    help: str


PROFILE = "FLYPG_CHECK_PROFILE"
CHECKS = (
    Key("FLYPG_CHECK_DISK_FREE_PERCENT", "disk_free_fail_percent", "percent", "checkDisk fails below this"),
    Key("FLYPG_CHECK_LOAD_PER_CPU", "load_fail_per_cpu", "loads", "checkLoad fails above, for 1, 5 and 15 minutes"),
    Key("FLYPG_CHECK_PRESSURE_PERCENT", "pressure_fail_percent", "percent", "memory, cpu and io fail above this"),
    Key("FLYPG_CHECK_PRESSURE_WARN_PERCENT", "pressure_warn_percent", "percent", "they warn above this, over 60 s"),
    Key(
        "FLYPG_CHECK_MEMORY_FULL_PERCENT",
        "memory_full_fail_percent",
        "percent",
        "memory fails when every task waits",
    ),
    Key("FLYPG_CHECK_LAG_S", "lag_fail_s", "seconds", "replicationLag fails from here on"),
    Key("FLYPG_CHECK_LAG_WARN_S", "lag_warn_s", "seconds", "replicationLag warns from here on"),
    Key("FLYPG_CHECK_CONNECTIONS_PERCENT", "connections_warn_percent", "percent", "connectionsLimit warns above this"),
    Key("FLYPG_CHECK_SLOT_BYTES", "slot_warn_bytes", "bytes", "replicationSlots warns above this"),
    Key("FLYPG_CHECK_TRANSACTION_S", "transaction_warn_s", "seconds", "longTransactions warns above this"),
    Key("FLYPG_CHECK_XID_AGE", "xid_age_warn", "count", "wraparound warns above this"),
    Key("FLYPG_CHECK_SNAPSHOT_AGE_S", "snapshot_age_warn_s", "seconds", "snapshots warns above this"),
    Key("FLYPG_CHECK_CERTIFICATE_S", "certificate_warn_s", "seconds", "certificate warns when it ends within this"),
    Key(
        "FLYPG_CHECK_STALE_S",
        "stale_after_s",
        "seconds",
        "PostgreSQL not looked at for so long has no role",
    ),
)
METRICS = (
    Key("FLYPG_METRICS_SETTINGS", "settings_metrics", "flag", "`pg_settings_*`"),
    Key("FLYPG_METRICS_TABLES", "table_metrics", "flag", "`pg_stat_user_tables_*`, of every database"),
    Key("FLYPG_METRICS_STATEMENTS", "statement_metrics", "flag", "`pg_stat_statements_*`, per user and database"),
    Key("FLYPG_METRICS_MAX_DATABASES", "max_databases", "count", "series for so many databases at most, the oldest"),
    Key("FLYPG_METRICS_MAX_TABLES", "max_tables", "count", "series for so many tables at most"),
)


def _loads(values: Values, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    found = values.get(key)
    if not found:
        return default
    try:
        one, five, fifteen = (float(part) for part in found.split(","))
    except ValueError:
        raise SettingsError(key, found, "must be three numbers, like 10,4,2") from None
    if min(one, five, fifteen) < 0:
        raise SettingsError(key, found, "must not be negative")
    return one, five, fifteen


READERS: dict[str, Callable[[Values, str, Any], object]] = {
    "percent": lambda values, key, default: read.number(values, key, default, at_least=0, at_most=100),
    "seconds": lambda values, key, default: read.seconds(values, key, default, at_least=0),
    "bytes": lambda values, key, default: read.size(values, key, default, at_least=0),
    "count": lambda values, key, default: read.integer(values, key, default, at_least=0),
    "flag": read.flag,
    "loads": _loads,
}


def configured(config: HttpConfig, values: Values) -> HttpConfig:
    """`config` with what the operator has set. Raises SettingsError, also for a key that nobody reads."""
    known = {PROFILE, *ELSEWHERE, *(key.key for key in (*CHECKS, *METRICS))}
    for key in values:
        if key.startswith(PREFIXES) and key not in known:
            raise SettingsError(key, values[key], f"is not a setting{read.nearest(key, known)}")
    profile = read.choice(values, PROFILE, ("flypg", "fly"), "flypg")
    limits = fly() if profile == "fly" else config.thresholds
    found: dict[str, Any] = {
        key.field: READERS[key.kind](values, key.key, getattr(limits, key.field)) for key in CHECKS
    }
    chosen: dict[str, Any] = {
        key.field: READERS[key.kind](values, key.key, getattr(config, key.field)) for key in METRICS
    }
    return replace(config, thresholds=replace(Thresholds(), **found), **chosen)
