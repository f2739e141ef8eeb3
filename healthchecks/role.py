"""Which role this node may claim now, from what it knows in memory. Pure.

A node claims to be primary only with the agreed view, its own PostgreSQL and unexpired authority all saying so, and a
look at PostgreSQL that is not old. Nothing here asks a server, so the answer stands however much hangs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.model import NodeId, Phase, Snapshot, View
from healthchecks.certificate import CertificateStats
from healthchecks.provider import Provider
from healthchecks.text import without_roles
from postgres.instance import InstanceState, Run


class Role(StrEnum):
    """The words that flyctl and the HAProxy of older nodes look for."""

    PRIMARY = "leader"
    STANDBY = "replica"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the node knows at `now` (seconds of its boottime)."""

    now: float
    node: NodeId
    snapshot: Snapshot | None
    snapshot_age_s: float
    instance: InstanceState | None
    instance_age_s: float
    authority_until: float
    problem: str = ""
    certificate: CertificateStats | None = None

    @property
    def view(self) -> View | None:
        return self.snapshot.view if self.snapshot is not None else None

    @property
    def authority_s(self) -> float:
        """Seconds of authority left; inf for a lone primary, 0 without."""
        return max(0.0, self.authority_until - self.now)


def gather(provider: Provider) -> Facts:
    return Facts(
        now=provider.clock.boottime(),
        node=provider.node(),
        snapshot=provider.snapshot(),
        snapshot_age_s=provider.snapshot_age_s(),
        instance=provider.instance(),
        instance_age_s=provider.instance_age_s(),
        authority_until=provider.authority_until(),
        problem=provider.problem(),
        certificate=provider.certificate(),
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """A role, and why it is not another."""

    role: Role
    why: str


def _none(why: str) -> Claim:
    return Claim(Role.NONE, without_roles(why))


def claim(facts: Facts, stale_after_s: float) -> Claim:
    """The role this node may claim. `why` of a node without one never contains the name of a role."""
    local = facts.instance
    if local is None:
        return _none("this node has not looked at a PostgreSQL yet")
    if facts.instance_age_s > stale_after_s:
        return _none(f"nobody has looked at PostgreSQL for {facts.instance_age_s:.0f} s")
    if local.run is not Run.UP or local.in_recovery is None:
        return _none(f"PostgreSQL is {_state(local)}" + (f": {facts.problem}" if facts.problem else ""))
    if local.in_recovery:
        return Claim(Role.STANDBY, "in recovery")
    return _primary(facts, local)


def _state(local: InstanceState) -> str:
    if local.job is not None and local.job.running:
        return f"being prepared ({local.job.kind})"
    return {Run.DOWN: "down", Run.STARTING: "starting", Run.HUNG: "not answering", Run.UP: "up, but did not say more"}[
        local.run
    ]


def _primary(facts: Facts, local: InstanceState) -> Claim:
    view = facts.view
    if view is None:
        return _none("not in recovery, and the agreed view of the cluster is not known")
    if view.primary != facts.node:
        return _none(f"not in recovery, but term {view.term} belongs to another node")
    if view.phase is not Phase.OPEN:
        return _none(f"term {view.term} is {view.phase}, not open yet")
    if not local.gate_open:
        return _none(f"term {view.term} is open, but clients are not let in yet")
    if facts.authority_until <= facts.now:
        return _none("authority has run out: neither etcd nor enough standbys have confirmed it lately")
    return Claim(Role.PRIMARY, f"of term {view.term}")
