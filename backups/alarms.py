"""What people are told of the archive: that it cannot be reached, that it can be again, that WAL was let go. Pure.

An event is written when something changes, never because time goes by: an outage of an hour costs etcd two writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from backups.wal import WalStatus

ALARM_S = 15.0  # a repository that is away for less is not worth a line in the history
GAP_EVERY_S = 60.0  # WAL that is let go without end is written down so often


@dataclass(frozen=True, slots=True)
class Gap:
    """WAL that was let go, and so is not in the archive."""

    at: float  # when the last of it was let go
    name: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What follows from one look at the archiver."""

    events: tuple[str, ...] = ()
    gap: Gap | None = None  # to be written down, so that a snapshot begins anew after it


class ArchiveAlarm:
    """Follows the archiver of one node. Times: seconds since 1970, by this node's clock."""

    def __init__(self) -> None:
        self.back_at: float | None = None  # when the repository last answered again
        self._down_at: float | None = None
        self._told = False
        self._dropped = 0
        self._gap_at: float | None = None

    def look(self, status: WalStatus | None, now: float, *, primary: bool = True) -> Heard:
        """`status`: None while no archiver runs here. `primary`: of the open term; for any other node the repository is
        not away, it does not ask. Whatever was wrong is then somebody else's to say."""
        if status is None:
            self._down_at, self._told, self._dropped = None, False, 0
            return Heard()
        if not primary:
            self._down_at, self._told = None, False
        return Heard(self._reachable(status, now) if primary else (), self._gap(status, now))

    def _reachable(self, status: WalStatus, now: float) -> tuple[str, ...]:
        if status.error:
            self._down_at = now if self._down_at is None else self._down_at
            if self._told or not 0 <= now - self._down_at < ALARM_S:
                told, self._told = self._told, True
                return () if told else (f"WAL is not archived, and kept until it can be: {status.error}",)
            return ()
        if self._down_at is None:
            return ()
        lasted_s, told = now - self._down_at, self._told
        self._down_at, self._told, self.back_at = None, False, now
        return (f"WAL is archived again, after {max(0.0, lasted_s):.0f} s",) if told else ()

    def _gap(self, status: WalStatus, now: float) -> Gap | None:
        if status.dropped < self._dropped:
            self._dropped = 0  # a new archiver counts from nothing
        recent = self._gap_at is not None and 0 <= now - self._gap_at < GAP_EVERY_S
        if status.dropped == self._dropped or recent:
            return None
        self._dropped, self._gap_at = status.dropped, now
        return Gap(status.dropped_at or now, status.dropped_name)
