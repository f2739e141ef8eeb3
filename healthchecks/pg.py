"""The pg check: what this PostgreSQL says of itself, in Fly's words, and what is worth knowing before it hurts. Pure.

Fly's lines come first and in Fly's order; ours follow and only ever warn, since no restart cures them.
"""

from __future__ import annotations

from cluster.model import Phase
from healthchecks.config import Thresholds
from healthchecks.lines import Line
from healthchecks.provider import BackupStats
from healthchecks.role import Claim, Facts, Role
from healthchecks.text import duration, size
from postgres.check_queries import Upkeep, Vitals


def judge(vitals: Vitals, facts: Facts, claim: Claim, limits: Thresholds, seconds: float) -> list[Line]:
    """Fly's lines: transactions, replication, connections."""
    if vitals.in_recovery:
        lines = [_expect_read_only(vitals, claim, seconds), _replication(facts, seconds)]
    else:
        lines = [_expect_writes(vitals, claim, seconds)]
        lines += [_lag(address, float(behind), limits, seconds) for address, behind in vitals.standbys]
    used = f"{vitals.used} used, {vitals.reserved} reserved, {vitals.max_connections} max"
    return [*lines, Line("connections", used, seconds=seconds)]


def _expect_read_only(vitals: Vitals, claim: Claim, seconds: float) -> Line:
    if vitals.read_only:
        return Line("transactions", "readonly", seconds=seconds)
    return Line("transactions", "read/write but expected readonly", passed=False, seconds=seconds)


def _expect_writes(vitals: Vitals, claim: Claim, seconds: float) -> Line:
    if claim.role is not Role.PRIMARY:
        return Line("transactions", f"read/write but expected readonly: {claim.why}", passed=False, seconds=seconds)
    if vitals.read_only:
        return Line("transactions", "readonly but expected read/write", passed=False, seconds=seconds)
    return Line("transactions", "read/write", seconds=seconds)


def _replication(facts: Facts, seconds: float) -> Line:
    view, local = facts.view, facts.instance
    if local is None or local.upstream is None:
        return Line("replication", "not attached to a primary", warning=True, seconds=seconds)
    member = view.member(view.primary) if view is not None and view.phase is Phase.OPEN else None
    if member is not None and view is not None and view.term == local.upstream.term and member.node != facts.node:
        if local.upstream.node != member.node:
            text = f'primary mismatch detected: current: "{member.host}", expected "{local.upstream.host}"'
            return Line("replication", text, passed=False, seconds=seconds)
        if not local.streaming:
            return Line("replication", f"not streaming from {local.upstream.host}", warning=True, seconds=seconds)
    return Line("replication", f"syncing from {local.upstream.host}", seconds=seconds)


def _lag(address: str, behind_s: float, limits: Thresholds, seconds: float) -> Line:
    text = f"{address} is lagging {duration(behind_s)}"
    if limits.lag_fail_s and behind_s >= limits.lag_fail_s:
        return Line("replicationLag", text, passed=False, seconds=seconds)
    warning = bool(limits.lag_warn_s) and behind_s >= limits.lag_warn_s
    return Line("replicationLag", text, warning=warning, seconds=seconds)


def judge_more(vitals: Vitals, limits: Thresholds, seconds: float) -> list[Line]:
    """Lines that only warn: connections near the limit, slots, archiving, long transactions."""
    usable = max(1, vitals.max_connections - vitals.reserved)
    percent = 100.0 * vitals.clients / usable
    near = bool(limits.connections_warn_percent) and percent > limits.connections_warn_percent
    lines = [
        Line("connectionsLimit", f"{vitals.clients} of {usable} for clients ({percent:.0f}%)", True, near, seconds),
        _slots(vitals, limits, seconds),
        _archiving(vitals, limits, seconds),
    ]
    oldest = vitals.oldest_transaction_s
    if oldest is None:
        lines.append(Line("longTransactions", "no transaction is open", seconds=seconds))
    else:
        text = f"the oldest is open for {duration(oldest)} (pid {vitals.oldest_transaction_pid})"
        long = bool(limits.transaction_warn_s) and oldest > limits.transaction_warn_s
        lines.append(Line("longTransactions", text, warning=long, seconds=seconds))
    return lines


def _slots(vitals: Vitals, limits: Thresholds, seconds: float) -> Line:
    if not vitals.slots:
        return Line("replicationSlots", "none", seconds=seconds)
    lost = [name for name, _, status, _ in vitals.slots if status == "lost"]
    if lost:
        text = f"{', '.join(lost)} lost: its standby can only come back from the archive or a new copy"
        return Line("replicationSlots", text, warning=True, seconds=seconds)
    name, active, _, kept = max(vitals.slots, key=lambda slot: float(slot[3]))
    retained = max(0, int(float(kept)))
    text = f"{len(vitals.slots)} slots, {name} ({'active' if active == 'true' else 'inactive'}) keeps {size(retained)}"
    warning = bool(limits.slot_warn_bytes) and retained > limits.slot_warn_bytes
    return Line("replicationSlots", text, warning=warning, seconds=seconds)


def _archiving(vitals: Vitals, limits: Thresholds, seconds: float) -> Line:
    if not vitals.archiving:
        return Line("archiving", "off", seconds=seconds)
    if vitals.in_recovery:
        return Line("archiving", "done by the primary", seconds=seconds)
    age = vitals.archive_age_s
    if vitals.archive_failing:
        since = "never succeeded" if age is None else f"last succeeded {duration(age)} ago"
        return Line("archiving", f"failing ({vitals.archive_failures} failures, {since})", True, True, seconds)
    if age is None:
        return Line("archiving", "nothing to archive yet", seconds=seconds)
    return Line("archiving", f"last segment {duration(age)} ago", seconds=seconds)


def judge_upkeep(upkeep: Upkeep, limits: Thresholds, seconds: float) -> list[Line]:
    """Wraparound and checksums."""
    age = max(upkeep.xid_age, upkeep.mxid_age)
    old = bool(limits.xid_age_warn) and age > limits.xid_age_warn
    lines = [Line("wraparound", f"oldest transaction id is {age} old, writes stop near 2000000000", True, old, seconds)]
    if upkeep.checksum_failures:
        text = f"{upkeep.checksum_failures} failures in {upkeep.checksum_databases}: restore or fail over"
        lines.append(Line("checksums", text, warning=True, seconds=seconds))
    else:
        lines.append(Line("checksums", "no failures", seconds=seconds))
    return lines


def judge_snapshots(backups: BackupStats | None, limits: Thresholds) -> list[Line]:
    """The age of the newest snapshot and what is wrong with the backups; no line where none are configured."""
    if backups is None:
        return []
    if backups.newest_age_s is None:
        wrong = f": {backups.problems[0]}" if backups.problems else ""
        return [Line("snapshots", f"there is none yet{wrong}", warning=True)]
    text = f"the newest of {backups.snapshots} is {duration(backups.newest_age_s)} old"
    old = bool(limits.snapshot_age_warn_s) and backups.newest_age_s > limits.snapshot_age_warn_s
    if backups.problems:
        return [Line("snapshots", f"{backups.problems[0]}; {text}", warning=True)]
    if backups.last_succeeded is False:
        return [Line("snapshots", f"the last attempt failed; {text}", warning=True)]
    return [Line("snapshots", text, warning=old)]
