"""What an operator can set about checks, commands and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a line warns, and when it fails. Percentages are 0 to 100; 0 means never.

    By default nothing fails that a restart of the node would not cure, but the disk (as Fly's does). `fly()` has the
    limits of Fly's own checks, which go red under honest load.
    """

    disk_free_fail_percent: float = 10.0
    load_fail_per_cpu: tuple[float, float, float] = (50.0, 30.0, 20.0)  # 1, 5 and 15 minutes
    pressure_fail_percent: float = 0.0  # `some`, over any of the three windows, as Fly judges it
    memory_full_fail_percent: float = 40.0  # every task waits for memory, over 60 s
    pressure_warn_percent: float = 60.0
    lag_warn_s: float = 3.0
    lag_fail_s: float = 0.0
    connections_warn_percent: float = 80.0
    slot_warn_bytes: int = 1 << 30
    transaction_warn_s: float = 300.0
    xid_age_warn: int = 300_000_000
    snapshot_age_warn_s: float = 26 * 3600.0
    certificate_warn_s: float = 10 * 86400.0
    archive_age_warn_s: float = 300.0
    stale_after_s: float = 10.0  # a keeper that has not looked for so long does not vouch for its node


def fly() -> Thresholds:
    return Thresholds(load_fail_per_cpu=(10.0, 4.0, 2.0), pressure_fail_percent=10.0, lag_fail_s=3.0)


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Where the server listens and what it offers."""

    listen: tuple[str, ...] = ("0.0.0.0", "::")
    http_port: int = 5500
    metrics_port: int = 9187
    token: str = field(default="", repr=False)  # "" means: commands are open to private networks only
    data_dir: str = "/data"  # whose disk the vm check watches
    wal_dir: str = ""  # and that of this, where it is another one
    server_label: str = ""  # the `server` label of PostgreSQL's series, "host:port"; "" means the member's
    thresholds: Thresholds = Thresholds()
    settings_metrics: bool = True  # pg_settings_*
    table_metrics: bool = False  # pg_stat_user_tables_*: one series per table and column, in every database
    statement_metrics: bool = False  # pg_stat_statements_calls and times, summed per database and user
    max_databases: int = 200  # series per database are kept for the largest so many
    max_tables: int = 5000

    def volumes(self) -> tuple[str, ...]:
        """Directories of which the fullest volume is shown and judged."""
        return (self.data_dir, self.wal_dir) if self.wal_dir else (self.data_dir,)
