"""How backups go, from the agent's memory in the words of checks, metrics and `flypg status`. Pure."""

from __future__ import annotations

from backups.facts import BackupStatus
from backups.lag import archive_lag
from backups.policy import RunHistory
from healthchecks.provider import BackupStats


def backup_stats(status: BackupStatus, written: int | None, now: float) -> BackupStats:
    """`written`: where this node's WAL ends, if that is known; `now`: seconds since 1970."""
    history, wal = status.history, status.wal
    lag = archive_lag(wal.queue if wal else None, written, now=now, timeout_s=status.archive_timeout_s)
    return BackupStats(
        snapshots=history.kept or (1 if history.ok_at is not None else 0),
        newest_age_s=_age(history.ok_at, now),
        newest_bytes=history.ok_bytes,
        oldest_age_s=_age(history.oldest_at, now),
        last_succeeded=history.failures == 0 if history.ok_at or history.failed_at else None,
        failures_total=history.failures,
        archive_lag_bytes=lag.bytes,
        archive_ready_segments=wal.queue.ready if wal is not None else None,
        verified_age_s=_age(history.verified_at, now),
        repository=status.url,
        newest_id=history.ok_id,
        verified_s=history.verified_s,
        newest_verified=_newest_verified(history),
        next_in_s=_next_in_s(status, now),
        running=status.running,
        archiving=status.archiving,
        archive_lag_s=lag.s,
        archive_last=wal.last if wal is not None else "",
        archive_dropped_total=wal.dropped if wal is not None else 0,
        archive_conflicts_total=wal.conflicts if wal is not None else 0,
        gap_age_s=_age(history.gap_at, now),
        problems=_problems(status),
        warnings=status.warnings,
    )


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else now - at


def _newest_verified(history: RunHistory) -> bool:
    at, since = history.verified_at, history.ok_at
    return at is not None and since is not None and at >= since and not history.doubt


def _next_in_s(status: BackupStatus, now: float) -> float | None:
    planned = [at for at in (status.next_at, status.retry_at) if at is not None]
    return min(planned) - now if planned else None


def _problems(status: BackupStatus) -> tuple[str, ...]:
    """What is wrong, the worst first."""
    history, wal = status.history, status.wal
    found = []
    if wal is not None and wal.error:
        found.append(f"WAL is not archived: {wal.error}")
    if history.gap_at is not None:
        found.append(f"the archived WAL has a gap at {history.gap}, until the next snapshot")
    if history.failures:
        times = "" if history.failures == 1 else f" {history.failures} times"
        found.append(f"the last snapshot failed{times}: {history.error}")
    if history.unreadable:
        found.append(f"a snapshot's record cannot be read, no WAL is deleted: {history.unreadable}")
    if history.undone:
        found.append(history.undone)
    if history.doubt:
        found.append(f"the last restore test failed: {history.doubt}")
    if wal is not None and wal.conflicts:
        found.append(f"{wal.conflicts} WAL files were refused: others have their names (flypg backups check)")
    return tuple(found)
