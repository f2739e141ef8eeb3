"""What this node and its cluster look like now, as JSON: GET /node, /cluster, /history. No secrets. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cluster.model import Event, Member, NodeId, Position, Snapshot, format_lsn, unstamped
from healthchecks.certificate import certificate_json
from healthchecks.provider import BackupStats
from healthchecks.role import Claim, Facts, Role
from postgres.check_queries import Vitals
from postgres.instance import InstanceState, Walsender

Json = dict[str, Any]
ROLES = {Role.PRIMARY: "primary", Role.STANDBY: "standby", Role.NONE: None}


def finite(value: float) -> float | None:
    """JSON has no infinity: null stands for it."""
    return None if value in (float("inf"), float("-inf")) or value != value else round(value, 3)


def node_json(
    facts: Facts, claim: Claim, member: Member, vitals: Vitals | None, backups: BackupStats | None = None
) -> Json:
    """The live state of one node, for `flypg status`. `vitals`: None when PostgreSQL did not answer just now."""
    local, view = facts.instance, facts.view
    return {
        "node": facts.node,
        "host": member.host,
        "region": member.region,
        "role": ROLES[claim.role],
        "why": claim.why,
        "certificate": certificate_json(facts.certificate),
        "term": view.term if view is not None else None,
        "phase": str(view.phase) if view is not None else None,
        "primary": view.primary if view is not None else None,
        "etcd_age_s": finite(facts.snapshot_age_s),
        "observed_age_s": finite(facts.instance_age_s),
        "authority_s": finite(facts.authority_s) if claim.role is Role.PRIMARY else None,
        "authority_forever": claim.role is Role.PRIMARY and facts.authority_until == float("inf"),
        "problem": facts.problem,
        "postgres": _postgres(local, vitals) if local is not None else None,
        "backups": _backups(backups) if backups is not None else None,
    }


def _backups(backups: BackupStats) -> Json:
    """Ages are by this node's clock: whoever asks may have another."""
    return {k: finite(v) if isinstance(v, float) else v for k, v in asdict(backups).items()}


def _postgres(local: InstanceState, vitals: Vitals | None) -> Json:
    position = local.position
    return {
        "data": str(local.data),
        "state": str(local.run),
        "in_recovery": local.in_recovery,
        "server_version": local.server_version or None,
        "timeline": position.timeline if position is not None else None,
        "lsn": format_lsn(position.lsn) if position is not None else None,
        "replayed_lsn": format_lsn(local.replayed) if local.replayed is not None else None,
        "lag_bytes": vitals.behind_bytes if vitals is not None else None,
        "lag_s": vitals.behind_s if vitals is not None else None,
        "connections": vitals.clients if vitals is not None else None,
        "upstream": local.upstream.node if local.upstream is not None else None,
        "streaming": local.streaming,
        "gate_open": local.gate_open,
        "rule": local.names,
        "pending_restart": list(local.pending_restart),
        "fault": local.fault,
        "job": _job(local),
        "standbys": _standbys(local),
    }


def _job(local: InstanceState) -> Json | None:
    job = local.job
    if job is None:
        return None
    told = {"kind": str(job.kind), "running": job.running, "error": job.error, "progress": job.progress}
    return told | {"seeded": job.seeded, "note": job.note}


def standby_lag(sender: Walsender, here: Position | None) -> tuple[int | None, float | None]:
    """How far a standby is behind its server at `here`: bytes and seconds. None: unknown.

    PostgreSQL knows no seconds once a standby has caught up and nothing more is written: that is none at all."""
    if here is None or sender.flushed is None:
        return None, sender.lag_s
    behind = max(0, here.lsn - sender.flushed)
    return behind, 0.0 if sender.lag_s is None and behind == 0 else sender.lag_s


def _standbys(local: InstanceState) -> list[Json]:
    """Who streams from this server, and how far behind each is in bytes and seconds; null means unknown."""
    found = []
    for sender in local.walsenders:
        ours = unstamped(sender.name)
        behind, late = standby_lag(sender, local.position)
        found.append(
            {
                "node": ours[0] if ours is not None else sender.name,
                "term": ours[1] if ours is not None else None,
                "state": sender.state,
                "sync_state": sender.sync_state,
                "lag_bytes": behind,
                "lag_s": finite(late) if late is not None else None,
            }
        )
    return found


def cluster_json(name: str, snapshot: Snapshot | None, age_s: float) -> Json:
    """The whole cluster, with Patroni's `members` first so that its readers find what they know."""
    view = snapshot.view if snapshot is not None else None
    if snapshot is None or view is None:
        return {"scope": name, "members": [], "etcd_age_s": finite(age_s)}
    return {
        "scope": name,
        "members": [_member(snapshot, member) for member in view.members],
        "etcd_age_s": finite(age_s),
        "term": view.term,
        "phase": str(view.phase),
        "primary": view.primary,
        "timeline": view.timeline,
        "rule": str(view.rule) if view.rule is not None else None,
        "pause": snapshot.spec.paused,
        "durability": str(snapshot.spec.durability),
        "sentinel": snapshot.leader.sentinel if snapshot.leader is not None else None,
        "cause": view.cause,
        "why": view.why,
        "terms": [
            {
                "term": b.term,
                "timeline": b.timeline,
                "primary": b.primary,
                "fork": format_lsn(b.fork),
                "opened": b.opened,
            }
            for b in view.branches
        ],
    }


def patroni_role(snapshot: Snapshot, node: NodeId) -> str:
    view = snapshot.view
    if view is not None and view.primary == node:
        return "leader"
    if view is not None and view.rule is not None and node in view.rule.voters:
        return "quorum_standby"
    return "replica"


def _member(snapshot: Snapshot, member: Member) -> Json:
    report = snapshot.reports.get(member.node)
    lag = behind(snapshot, member.node)
    return {
        "name": member.node,
        "role": patroni_role(snapshot, member.node),
        "state": _state(snapshot, member.node),
        "host": member.host,
        "port": member.ports.postgres,
        "timeline": report.position.timeline if report is not None and report.position is not None else None,
        "lag": lag if lag is not None else "unknown",
        "region": member.region,
        "problem": report.problem if report is not None else "",
        "pending_restart": list(report.pending_restart) if report is not None else [],
        "tags": {"nofailover": member.nofailover, "nosync": member.nosync, "priority": member.priority},
    }


def _state(snapshot: Snapshot, node: NodeId) -> str:
    report = snapshot.reports.get(node)
    if report is None:
        return "no report"
    if report.state in ("primary", "standby"):
        return "streaming" if report.streaming else "running"
    return str(report.state)


def behind(snapshot: Snapshot, node: NodeId) -> int | None:
    """Bytes between the last reported positions of the primary and `node`; None when either is unknown."""
    view = snapshot.view
    if view is None or view.primary is None:
        return None
    ahead, mine = snapshot.reports.get(view.primary), snapshot.reports.get(node)
    if ahead is None or mine is None or ahead.position is None or mine.position is None:
        return None
    return max(0, ahead.position.lsn - mine.position.lsn)


def event_json(event: Event) -> Json:
    return {
        "at": event.at,
        "term": event.term,
        "kind": event.kind,
        "text": event.text,
        "node": event.node,
        "by": event.by,
    }
