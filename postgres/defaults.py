"""What PostgreSQL is configured with when the operator has not said otherwise: fits a 256 MB machine, grows with it.
Pure.

A node's memory is shared with the agent (70 MB at most), HAProxy and PgBouncer; the smallest Fly machine has 256 MB.
"""

from __future__ import annotations

from collections.abc import Mapping

GB_IN_MB = 1024
SMALL_MB = 1000  # below, PostgreSQL and the agent leave little room for work on backups


def _clamp(value: float, low: int, high: int) -> int:
    return int(max(low, min(high, value)))


def max_connections(memory_mb: int) -> int:
    for limit_mb, connections in ((512, 100), (1024, 150), (2048, 200), (8192, 300)):
        if memory_mb <= limit_mb:
            return connections
    return 500


def _wal_sizes(part_mb: float, least_mb: int) -> dict[str, str]:
    """How much WAL may lie between two checkpoints, and be kept for standbys: `part_mb` of its volume each, at most."""
    most = _clamp(part_mb, least_mb, 4096)
    return {
        "max_wal_size": f"{most}MB",
        "min_wal_size": f"{_clamp(most / 4, 32, 1024)}MB",
        "wal_keep_size": f"{_clamp(part_mb / 4, 32, 1024)}MB",
        "max_slot_wal_keep_size": f"{_clamp(part_mb, least_mb, 64 * GB_IN_MB)}MB",
    }


def machine_defaults(memory_mb: int, volume_mb: int, cores: int, wal_volume_mb: int | None = None) -> dict[str, str]:
    """Settings for a machine of `memory_mb` with `cores`, whose data volume has `volume_mb` in all.

    `wal_volume_mb`: of the volume that WAL has to itself; None: it shares that of the data.
    """
    shared = _clamp(memory_mb / 8 if memory_mb < 512 else memory_mb / 4, 16, 16 * GB_IN_MB)
    connections = max_connections(memory_mb)
    work_kb = _clamp(memory_mb * 1024 / connections / 4, 1024, 64 * 1024)
    workers = _clamp(cores, 1, 16)
    return {
        "max_connections": str(connections),
        "shared_buffers": f"{shared}MB",
        "effective_cache_size": f"{_clamp(memory_mb / 2, 64, 512 * GB_IN_MB)}MB",
        "work_mem": f"{work_kb}kB",
        "maintenance_work_mem": f"{_clamp(memory_mb / 16, 16, 2048)}MB",
        "autovacuum_work_mem": f"{_clamp(memory_mb / 32, 8, 1024)}MB",
        "autovacuum_max_workers": "2" if memory_mb < 1024 else "3",
        "max_worker_processes": str(max(8, workers)),
        "max_parallel_workers": str(workers),
        "max_parallel_workers_per_gather": str(_clamp(cores / 2, 0, 4)) if memory_mb >= 1024 else "0",
        **(_wal_sizes(volume_mb / 10, 128) if wal_volume_mb is None else _wal_sizes(wal_volume_mb / 4, 64)),
        "max_wal_senders": "16",
        "max_replication_slots": "16",
        "superuser_reserved_connections": "5",
        "max_standby_streaming_delay": "5s",
        "checkpoint_completion_target": "0.9",
        "random_page_cost": "1.1",
        "jit": "off",
        "wal_compression": "on",
        "log_checkpoints": "off",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_lock_waits": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }


LEAST = {  # below this replication or our own connection would stop working
    "max_wal_senders": 10,
    "max_replication_slots": 10,
    "max_connections": 20,
    "superuser_reserved_connections": 3,
}


def with_least(parameters: Mapping[str, str], demands: Mapping[str, int]) -> dict[str, str]:
    """`parameters`, none of them below what we need (LEAST) and what the control file demands of a standby."""
    raised = dict(parameters)
    for name in LEAST.keys() | demands.keys():
        least = max(LEAST.get(name, 0), demands.get(name, 0))
        value = raised.get(name, "")
        if not value.strip().isdigit() or int(value) < least:
            raised[name] = str(least)
    return raised
