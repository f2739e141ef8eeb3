"""flypg's own metrics: the cluster's agreement, this node's part in it, and what a failure would cost. Pure.

Every series carries `cluster` and `node`. (Fly adds app, region, host and instance by itself and would overwrite labels
of these names.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cluster.model import Phase, unstamped
from healthchecks.certificate import CertificateStats
from healthchecks.exposition import Definition, Family, Value, label_text
from healthchecks.node import standby_lag
from healthchecks.provider import BackupStats, FenceState, PoolerStats, StoreStats
from healthchecks.role import Claim, Facts, Role
from postgres.instance import Run

BASE = ("cluster", "node")
DEFINITIONS: dict[str, Definition] = {}


def _define(name: str, help: str, *labels: str, type: str = "gauge", prefix: str = "flypg_") -> str:
    full = prefix + name
    DEFINITIONS[full] = Definition(full, type, help, tuple(sorted((*BASE, *labels))))
    return full


BUILD = _define("build_info", "Version of flypg, as a label; the value is 1", "version")
IS_PRIMARY = _define(
    "is_primary", "Does this node claim to be primary: agreed, opened, let in and with authority (0 or 1)"
)
IS_STANDBY = _define("is_standby", "Is this node's PostgreSQL a standby (0 or 1)")
STATE = _define("postgres_state", "State of the local PostgreSQL: 1 for the one it is in", "state")
TERM = _define("term", "Number of the agreed term: it grows by one at every change of primary")
PHASE = _define("phase", "Phase of the agreed term: 1 for the one it is in", "phase")
TIMELINE = _define("timeline", "Timeline of the local PostgreSQL")
WAL = _define(
    "wal_position_bytes", "Position of the local WAL: flushed on a primary, received or replayed on a standby"
)
RULE_VOTERS = _define("rule_voters", "Standbys whose confirmation a commit may wait for, in the newest rule")
RULE_K = _define("rule_confirmations", "Confirmations a commit waits for, in the newest rule; 0 is a lone primary")
RULES = _define("rules", "Rules in force: 2 while the rule changes")
SAFE = _define(
    "can_fail_over", "Could the cluster fail over this instant without losing an acknowledged write (0 or 1)"
)
CANDIDATE = _define("failover_candidate", "Would this node be eligible in such a failover (0 or 1)")
AUTHORITY = _define(
    "authority_seconds", "Seconds this node may still act as primary without another proof; +Inf for a lone one"
)
ETCD_AGE = _define("view_age_seconds", "Seconds since etcd confirmed the view this node acts on")
CONTACT = _define("etcd_contact_age_seconds", "Seconds since etcd last answered this node anything")
CALLS = _define("etcd_requests_total", "Calls to etcd", "operation", type="counter")
ERRORS = _define("etcd_errors_total", "Calls to etcd that failed", "operation", type="counter")
SECONDS = _define("etcd_request_seconds_total", "Time spent in calls to etcd", "operation", type="counter")
LEASE_AGE = _define("lease_age_seconds", "Seconds since the last confirmed renewal of this node's lease was sent")
LEASE_TTL = _define("lease_ttl_seconds", "Time to live of this node's lease")
CERTIFICATE = _define(
    "tls_certificate_expiry_seconds",
    "Seconds until the certificate of this node's servers, or of the cluster's authority, ends; negative once it has",
    "certificate",
)
TLS_PROBLEM = _define("tls_problem", "Is something wrong with this node's certificate; flypg tls show has the words")
OBSERVED = _define("observed_age_seconds", "Seconds since the keeper last looked at PostgreSQL")
PROMISED = _define("promised_term", "The highest term a node has promised, as etcd knows it", "promiser")
MEMBERS = _define("members", "Nodes that belong to the cluster")
REPORTING = _define("members_reporting", "Nodes of the cluster whose report is in etcd, under a live lease")
PAUSED = _define("paused", "Has an operator paused the cluster (0 or 1)")
PENDING = _define("pending_restart", "Settings that wait for a restart of this node's PostgreSQL")
STREAMING = _define("streaming", "Does this standby stream (0 or 1)")
LAG_BYTES = _define(
    "standby_lag_bytes", "WAL a standby has not confirmed as flushed, as the primary sees it", "standby"
)
LAG_SECONDS = _define("standby_lag_seconds", "Seconds a standby's replay is behind, as the primary sees it", "standby")
STANDBY_STREAMS = _define("standby_streaming", "Does a standby stream from this node (0 or 1)", "standby", "sync_state")
REPLAY_BYTES = _define("replay_lag_bytes", "WAL this standby has received and not replayed")
REPLAY_SECONDS = _define("replay_lag_seconds", "Age of the last replayed commit, while something is left to replay")
UPSTREAM = _define("upstream_contact_age_seconds", "Seconds since this standby last heard of its upstream")
SLOT_BYTES = _define("slot_retained_bytes", "WAL a replication slot keeps", "slot")
SLOT_ACTIVE = _define("slot_active", "Is a replication slot in use (0 or 1)", "slot")
SLOT_LOST = _define("slot_lost", "Has a replication slot lost WAL that its standby needs (0 or 1)", "slot")
CHANGES = _define(
    "failovers_total", "Changes of primary, of those the history still has", "kind", "reason", type="counter"
)
LAST_CHANGE = _define("last_failover_timestamp_seconds", "When the last of them was written, seconds since 1970")
FENCE_UP = _define("fence_up", "Does the fence of this node run (0 or 1)")
FENCE_MARGIN = _define(
    "fence_margin_seconds", "Seconds until the fence would stop PostgreSQL; absent while it guards nothing"
)
FENCE_FIRED = _define("fence_fired_total", "Times the fence has stopped PostgreSQL", type="counter")
SNAPSHOTS = _define("snapshots", "Snapshots in the repository")
SNAPSHOT_AGE = _define("snapshot_age_seconds", "Age of the newest snapshot")
SNAPSHOT_BYTES = _define("snapshot_bytes", "Size of the newest snapshot")
SNAPSHOT_OLDEST = _define("snapshot_oldest_age_seconds", "Age of the oldest snapshot: how far back one can go")
SNAPSHOT_OK = _define("snapshot_last_success", "Did the last attempt at a snapshot succeed (0 or 1)")
SNAPSHOT_FAILED = _define("snapshot_failures_total", "Attempts at a snapshot that failed", type="counter")
VERIFIED = _define("restore_verified_age_seconds", "Seconds since a restore was last tried and worked")
ARCHIVE_BYTES = _define("archive_lag_bytes", "WAL that is written and not archived")
ARCHIVE_SECONDS = _define("archive_lag_seconds", "Age of the oldest change that is not archived: what would be lost")
ARCHIVE_DROPPED = _define(
    "archive_dropped_total", "WAL files that were let go unarchived, since the archiver's start", type="counter"
)
ARCHIVE_GAP = _define("archive_gap", "Has the archive a gap that no snapshot makes up for yet (0 or 1)")
SNAPSHOT_NEXT = _define("snapshot_next_seconds", "Seconds until the next snapshot is due; negative: it is overdue")
RESTORE_TOOK = _define("restore_seconds", "How long the last restore that was tried took")
BACKUP_PROBLEMS = _define("backup_problems", "What is wrong with snapshots and archive; flypg status has the words")
ARCHIVE_READY = _define("archive_ready_segments", "WAL segments that wait to be archived")
CHECK = _define("check_passing", "Did a check pass when it last ran (0 or 1)", "check")
CHECK_WARNS = _define("check_warnings", "Lines of a check that warned when it last ran", "check")
CHECK_SECONDS = _define("check_seconds", "How long a check took when it last ran", "check")
DISK_SIZE = _define("disk_size_bytes", "Size of the volume with the data, or of the WAL's own where that is fuller")
DISK_FREE = _define("disk_free_bytes", "Bytes that may still be written on it")
XID_AGE = _define(
    "database_xid_age", "Transactions since the oldest unfrozen one; writes stop near 2000000000", "datname"
)
FAMILY_AGE = _define("metrics_age_seconds", "Age of the rows behind a family of PostgreSQL's metrics", "family")
FAMILY_ERRORS = _define(
    "metrics_errors_total", "Times a family of PostgreSQL's metrics could not be read", "family", type="counter"
)
POOLER_UP = _define("pgbouncer_up", "Does this node's PgBouncer answer (0 or 1)", prefix="")
_POOL = "pgbouncer_pools_"
POOL_CLIENT_ACTIVE = _define(
    "client_active_connections", "Clients linked to a server", "database", "user", prefix=_POOL
)
POOL_CLIENT_WAITING = _define(
    "client_waiting_connections", "Clients that wait for a server", "database", "user", prefix=_POOL
)
POOL_SERVER_ACTIVE = _define(
    "server_active_connections", "Servers linked to a client", "database", "user", prefix=_POOL
)
POOL_SERVER_IDLE = _define(
    "server_idle_connections", "Servers that wait for a client", "database", "user", prefix=_POOL
)
POOL_SERVER_USED = _define(
    "server_used_connections", "Servers idle for so long that they are tested first", "database", "user", prefix=_POOL
)
POOL_MAXWAIT = _define(
    "client_maxwait_seconds", "How long the client that waits longest has waited", "database", "user", prefix=_POOL
)


@dataclass(slots=True)
class Collected:
    """Families under construction, for one node."""

    cluster: str
    node: str
    families: dict[str, Family] = field(default_factory=dict)

    def put(self, name: str, value: Value, **labels: str) -> None:
        """A sample; None is left out, since unknown is not zero."""
        if value is None:
            return
        definition = DEFINITIONS[name]
        values = {"cluster": self.cluster, "node": self.node, **labels}
        text = label_text(definition.labels, (values[label] for label in definition.labels))
        self.families.setdefault(name, Family(definition)).add(text, value)

    def one_of(self, name: str, label: str, current: str | None, every: Iterable[str]) -> None:
        for each in every:
            self.put(name, each == current, **{label: each})


def add_node(out: Collected, facts: Facts, claim: Claim) -> None:
    """The local PostgreSQL and what the node may claim."""
    local = facts.instance
    out.put(IS_PRIMARY, claim.role is Role.PRIMARY)
    out.put(IS_STANDBY, claim.role is Role.STANDBY)
    out.put(AUTHORITY, facts.authority_s)
    out.put(OBSERVED, facts.instance_age_s)
    out.put(ETCD_AGE, facts.snapshot_age_s)
    out.one_of(STATE, "state", str(local.run) if local is not None else None, (str(run) for run in Run))
    if local is None:
        return
    out.put(PENDING, len(local.pending_restart))
    if local.position is not None:
        out.put(TIMELINE, local.position.timeline)
        out.put(WAL, local.position.lsn)
    if local.in_recovery:
        out.put(STREAMING, local.streaming)
    for sender in local.walsenders:
        ours = unstamped(sender.name)
        name = ours[0] if ours is not None else sender.name
        out.put(STANDBY_STREAMS, sender.state == "streaming", standby=name, sync_state=sender.sync_state)
        behind, late = standby_lag(sender, local.position)
        out.put(LAG_BYTES, behind, standby=name)
        out.put(LAG_SECONDS, late, standby=name)


def add_cluster(out: Collected, facts: Facts, safe: bool, candidates: Iterable[str]) -> None:
    """What the cluster has agreed on."""
    snapshot = facts.snapshot
    if snapshot is None:
        return
    for node, promise in snapshot.promises.items():
        out.put(PROMISED, promise.term, promiser=node)
    out.put(PAUSED, snapshot.spec.paused)
    view = snapshot.view
    if view is None:
        return
    out.put(TERM, view.term)
    out.one_of(PHASE, "phase", str(view.phase), (str(phase) for phase in Phase))
    out.put(MEMBERS, len(view.members))
    out.put(REPORTING, sum(1 for member in view.members if member.node in snapshot.reports))
    out.put(RULES, len(view.rules))
    if view.rule is not None:
        out.put(RULE_VOTERS, len(view.rule.voters))
        out.put(RULE_K, view.rule.k)
    out.put(SAFE, safe)
    out.put(CANDIDATE, facts.node in tuple(candidates))


def add_store(out: Collected, stats: StoreStats) -> None:
    """How etcd answers."""
    out.put(CONTACT, stats.contact_age_s)
    out.put(LEASE_AGE, stats.lease_age_s)
    out.put(LEASE_TTL, stats.lease_ttl_s)
    for name, operation in stats.operations.items():
        out.put(CALLS, operation.calls_total, operation=name)
        out.put(ERRORS, operation.errors_total, operation=name)
        out.put(SECONDS, operation.seconds_total, operation=name)


def add_fence(out: Collected, fence: FenceState | None) -> None:
    if fence is not None:
        out.put(FENCE_UP, fence.alive)
        out.put(FENCE_MARGIN, fence.margin_s)
        out.put(FENCE_FIRED, fence.fired_total)


def add_backups(out: Collected, backups: BackupStats | None) -> None:
    if backups is None:
        return
    out.put(SNAPSHOTS, backups.snapshots)
    out.put(SNAPSHOT_AGE, backups.newest_age_s)
    out.put(SNAPSHOT_BYTES, backups.newest_bytes)
    out.put(SNAPSHOT_OLDEST, backups.oldest_age_s)
    out.put(SNAPSHOT_OK, backups.last_succeeded)
    out.put(SNAPSHOT_FAILED, backups.failures_total)
    out.put(VERIFIED, backups.verified_age_s)
    out.put(ARCHIVE_BYTES, backups.archive_lag_bytes)
    out.put(ARCHIVE_READY, backups.archive_ready_segments)
    out.put(ARCHIVE_SECONDS, backups.archive_lag_s)
    out.put(ARCHIVE_DROPPED, backups.archive_dropped_total if backups.archive_ready_segments is not None else None)
    out.put(ARCHIVE_GAP, backups.gap_age_s is not None)
    out.put(SNAPSHOT_NEXT, backups.next_in_s)
    out.put(RESTORE_TOOK, backups.verified_s)
    out.put(BACKUP_PROBLEMS, len(backups.problems))


def add_pools(out: Collected, pooler: PoolerStats | None) -> None:
    if pooler is None:
        return
    out.put(POOLER_UP, pooler.answers)
    for pool in pooler.pools:
        labels = {"database": pool.database, "user": pool.user}
        out.put(POOL_CLIENT_ACTIVE, pool.client_active, **labels)
        out.put(POOL_CLIENT_WAITING, pool.client_waiting, **labels)
        out.put(POOL_SERVER_ACTIVE, pool.server_active, **labels)
        out.put(POOL_SERVER_IDLE, pool.server_idle, **labels)
        out.put(POOL_SERVER_USED, pool.server_used, **labels)
        out.put(POOL_MAXWAIT, pool.maxwait_s, **labels)


def add_changes(out: Collected, counts: Mapping[tuple[str, str], int], last_at: float | None) -> None:
    for (kind, reason), count in counts.items():
        out.put(CHANGES, count, kind=kind, reason=reason)
    out.put(LAST_CHANGE, last_at)


def add_certificate(out: Collected, found: CertificateStats | None) -> None:
    if found is None or not (found.wanted or found.own):
        return
    if found.left_s is not None:
        out.put(CERTIFICATE, found.left_s, certificate="server")
    if found.authority_left_s is not None and not found.own:
        out.put(CERTIFICATE, found.authority_left_s, certificate="authority")
    out.put(TLS_PROBLEM, bool(found.problem))
