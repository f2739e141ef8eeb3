"""What a failure of the primary would cost right now. Pure.

The sentinel decides a failover from promises that are given when it happens; before that one can only say who could
give them: the voters that report, run as standbys and stream.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model import Durability, NodeId, Phase, ServerState, Snapshot
from cluster.quorum import needed, satisfied


@dataclass(frozen=True, slots=True)
class Outlook:
    """Could the cluster fail over now without losing an acknowledged write? `why` says what is in the way."""

    safe: bool
    why: str
    candidates: tuple[NodeId, ...] = ()  # who could become primary


def outlook(snapshot: Snapshot | None) -> Outlook:
    """The answer for a primary that fails this instant, alone."""
    view = snapshot.view if snapshot is not None else None
    if snapshot is None or view is None:
        return Outlook(False, "the agreed view of the cluster is not known")
    if view.phase is not Phase.OPEN or view.primary is None:
        return Outlook(False, f"term {view.term} is {view.phase}: there is no primary to fail over from")
    primary = view.primary
    ready = frozenset(node for node in snapshot.reports if node != primary and _streams(snapshot, node))
    candidates = tuple(m.node for m in view.members if m.node in ready and m.may_lead and _in_region(snapshot, m.node))
    if snapshot.spec.paused:
        return Outlook(False, "the cluster is paused by an operator: nobody would fail over", candidates)
    if not any(r.sentinel for node, r in snapshot.reports.items() if node != primary):
        return Outlook(False, f"no sentinel runs outside {primary}: nobody would choose its successor", candidates)
    if snapshot.spec.durability is Durability.ASYNC:
        limit = snapshot.spec.max_lag_bytes
        return Outlook(False, f"durability is async: a failover may lose up to {limit} bytes", candidates)
    for rule in view.rules:
        if rule.lone:
            return Outlook(False, f"{rule.primary} acknowledges writes alone: only it has them all", candidates)
        if not satisfied(rule, ready):
            lacking = needed(rule) - len(rule.voters & ready)
            return Outlook(False, f"{lacking} more of {', '.join(sorted(rule.voters - ready))} must stream", candidates)
    if not candidates:
        return Outlook(False, "no streaming standby is allowed to become primary")
    return Outlook(True, f"{' or '.join(candidates)} would take over with every acknowledged write", candidates)


def _streams(snapshot: Snapshot, node: NodeId) -> bool:
    report = snapshot.reports[node]
    return report.state is ServerState.STANDBY and report.streaming


def _in_region(snapshot: Snapshot, node: NodeId) -> bool:
    region = snapshot.spec.primary_region
    member = snapshot.view.member(node) if snapshot.view is not None else None
    return not region or (member is not None and member.region == region)
