"""When a snapshot is due, where it is taken, and when one is to be tried out. Pure.

Times are seconds since 1970 by this node's clock. They only decide when to work, never what may be deleted or trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backups.catalog import SnapshotRecord, Verification
from cluster.model import NodeId, Phase, ServerState, Snapshot

RETRY_S = (60.0, 300.0, 900.0, 3600.0)  # after the first, second, … failure in a row; then the last
FUTURE_S = 24 * 3600.0  # a success further ahead than this was written by a clock that was wrong


@dataclass(frozen=True, slots=True)
class RunHistory:
    """How snapshots have gone so far. None means never."""

    ok_at: float | None = None
    ok_id: str = ""
    failed_at: float | None = None
    failures: int = 0  # in a row, since the last success
    error: str = ""
    where: str = ""  # the repository it is in
    ok_bytes: int | None = None  # what the last one takes in the repository
    kept: int = 0  # how many there are
    oldest_at: float | None = None
    verified_at: float | None = None  # when one was last restored in a test, and could be
    verified_s: float | None = None  # how long that restore took
    doubt: str = ""  # what the last restore test found wrong; "" when nothing
    undone: str = ""  # what could not be done after the last snapshot, and why: deleting old ones, the restore test
    unreadable: str = ""  # records of snapshots that cannot be read: nothing that they may need is deleted
    gap_at: float | None = None  # when WAL was last let go that is in no snapshot; None: the archive is whole
    gap: str = ""  # the file that was


def succeeded(history: RunHistory, *, began: float, at: float, snapshot: str, size: int, where: str = "") -> RunHistory:
    """After a snapshot that took from `began` to `at`. Only WAL that was let go before it began is made up for."""
    new = replace(history, ok_at=at, ok_id=snapshot, where=where, ok_bytes=size, failures=0, failed_at=None, error="")
    return new if history.gap_at is not None and history.gap_at > began else replace(new, gap_at=None, gap="")


def with_verification(history: RunHistory, snapshot: str, result: Verification) -> RunHistory:
    """After a restore test; one of another snapshot than the last says nothing of that."""
    if history.ok_id != snapshot:
        return history
    if result.ok:
        return replace(history, verified_at=result.at, verified_s=result.restore_s, doubt="")
    return replace(history, doubt=f"{snapshot}: {result.text}")


def retry_at(history: RunHistory) -> float | None:
    """When a snapshot that failed is tried again; None: the last one did not fail."""
    if not history.failures or history.failed_at is None:
        return None
    return history.failed_at + RETRY_S[min(history.failures, len(RETRY_S)) - 1]


@dataclass(frozen=True, slots=True)
class Due:
    now: bool
    why: str


def due(
    history: RunHistory,
    *,
    next_slot: float | None,
    now: float,
    settled: bool = True,
    back_at: float | None = None,
) -> Due:
    """Is a snapshot due? `next_slot`: the first scheduled time after the last success; None means no schedule.

    Missed times are made up for by one run. A gap in the archive makes one due at once: restores need a new beginning.
    `settled`: this node has run for a while; a first snapshot does not compete with the start of a new cluster.
    `back_at`: when the repository last answered again after an outage; a failure before that is not waited out.
    """
    if left_s := _pause_left_s(history, now, back_at):
        return Due(False, f"failed {history.failures} times, again in {left_s:.0f} s: {history.error}")
    if history.gap_at is not None:
        return Due(True, "the archived WAL has a gap")
    if next_slot is None:
        return Due(False, "there is no schedule")
    if history.ok_at is None:
        return Due(settled, "there is no snapshot yet")
    if history.ok_at > now + FUTURE_S:
        return Due(True, "the last snapshot is from the future: a clock was wrong")
    if now >= next_slot:
        return Due(True, "scheduled")
    return Due(False, f"next in {next_slot - now:.0f} s")


def _pause_left_s(history: RunHistory, now: float, back_at: float | None) -> float:
    """How long a failure is still to be waited out; a failure in the future is a wrong clock, and forgotten."""
    again, failed_at = retry_at(history), history.failed_at
    if again is None or failed_at is None or not failed_at <= now < again:
        return 0.0
    return 0.0 if back_at is not None and back_at > failed_at else again - now


def source(cluster: Snapshot, *, shared: bool) -> NodeId | None:
    """Which node takes the snapshot: a standby that has caught up, else the primary. None: nobody now.

    A repository that each node has for itself is kept where the WAL is: on the primary.
    """
    view = cluster.view
    if view is None or view.phase is not Phase.OPEN or view.primary is None:
        return None
    report = cluster.reports.get(view.primary)
    if not shared or report is None:
        return view.primary
    ready = [
        s.node
        for s in report.standbys
        if s.caught_up
        and (other := cluster.reports.get(s.node)) is not None
        and other.state is ServerState.STANDBY
        and other.streaming
    ]
    return min(ready, default=view.primary)


def verify_due(snapshots: Sequence[SnapshotRecord], *, wished: bool) -> SnapshotRecord | None:
    """The snapshot to restore in a test: the newest, unless it was tried. None: nothing to do."""
    if not wished or not snapshots or snapshots[-1].verification is not None:
        return None
    return snapshots[-1]


def jitter_s(cluster: str, spread_s: float) -> float:
    """How much later than the schedule this cluster begins: always the same, so that a day stays a day."""
    number = 0
    for letter in cluster.encode():
        number = (number * 131 + letter) % 1_000_003
    return spread_s * number / 1_000_003
