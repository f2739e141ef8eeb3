"""May this node still act as primary at `now`? Pure.

Two proofs, either is enough: a lease that etcd confirmed, or the standbys themselves, since a standby that streams
under this term has not promised a later one. Authority bounds how long a stale read is possible; writes do not rest on
it (docs/protocol.md). All times are seconds of this machine's boottime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cluster.model import LeaseProof, NodeId, Rule

FOREVER = float("inf")


def lease_valid_until(lease: LeaseProof | None, margin_s: float) -> float:
    """Until when the lease proves authority; 0 when there is none."""
    return lease.asked_at + lease.ttl_s - margin_s if lease is not None else 0.0


def standbys_valid_until(rules: Iterable[Rule], replied: Mapping[NodeId, float], window_s: float) -> float:
    """Until when the standbys prove authority: k of every rule have replied, the k-th latest `window_s` ago at most.

    `replied`: for each streaming standby of this term, a moment at or before its last reply.
    """
    until = FOREVER
    for rule in rules:
        if rule.lone:
            return 0.0  # no standby can speak for a rule without voters
        times = sorted((replied[n] for n in rule.voters if n in replied), reverse=True)
        if len(times) < rule.k:
            return 0.0
        until = min(until, times[rule.k - 1] + window_s)
    return until if until != FOREVER else 0.0


def valid_until(
    rules: tuple[Rule, ...],
    lease: LeaseProof | None,
    replied: Mapping[NodeId, float],
    *,
    margin_s: float,
    window_s: float,
    asynchronous: bool,
) -> float:
    """Until when this node may act as primary. A lone primary needs no proof (nobody can be promoted beside it),
    unless durability is asynchronous, where only the lease counts."""
    by_lease = lease_valid_until(lease, margin_s)
    if asynchronous:
        return by_lease
    if rules and all(rule.lone for rule in rules):
        return FOREVER
    return max(by_lease, standbys_valid_until(rules, replied, window_s))
