"""Where this node's ports 5432 and 5434 should lead, from what the cluster has agreed on. Pure.

5432 leads to the primary of an open term, or of one that only waits to be called open, its barrier passed, and nowhere
else; at any other time new connections are held, not refused.
5434 leads to the standbys that stream from that primary: those of this node's region, else any, else to the primary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.model import HandoverStage, Member, NodeId, NodeReport, Phase, ServerState, Spec, View
from cluster.quorum import barrier_passed


@dataclass(frozen=True, slots=True, order=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Route:
    """Where clients are sent, and whose established sessions may live on."""

    primary: Address | None  # where new connections of 5432 go; None: hold them
    keep: Address | None  # server whose sessions through 5432 may go on; all others are cut
    readers: tuple[Address, ...]  # where new connections of 5434 go, sorted; empty: hold them
    readers_keep: frozenset[Address]  # servers whose sessions through 5434 may go on, beside the readers
    why: str


HOLD = Route(None, None, (), frozenset(), "nothing is known of the cluster yet")


def address_of(member: Member) -> Address:
    return Address(member.host, member.ports.postgres)


def choose_route(
    view: View | None,
    reports: Mapping[NodeId, NodeReport],
    spec: Spec,
    me: NodeId,
    lag_bytes: Mapping[NodeId, int] | None = None,
) -> Route:
    """Where clients of node `me` go. `lag_bytes`: how far standbys are behind; one not in it is not known to lag."""
    if view is None:
        return HOLD
    primary = view.member(view.primary)
    is_open = view.phase is Phase.OPEN or barrier_passed(view, reports.get(view.primary) if view.primary else None)
    served = address_of(primary) if primary is not None and is_open else None
    streaming = _streaming(view, reports)
    readers, readers_why = _readers(view, streaming, spec, me, lag_bytes or {}, served)
    keep = frozenset(address_of(m) for m in streaming) | ({served} if served is not None else frozenset())
    if not is_open:
        return Route(None, None, readers, keep, f"held: term {view.term} is {view.phase}, not open; {readers_why}")
    if primary is None or served is None:
        return Route(None, None, readers, keep, f"held: the primary {view.primary} is not a member; {readers_why}")
    if view.handover is not None and view.handover.stage is HandoverStage.STOP:
        why = f"held: {primary.node} hands over to {view.handover.target}; {readers_why}"
        return Route(None, served, readers, keep, why)
    return Route(served, served, readers, keep, f"{primary.node} is primary of term {view.term}; {readers_why}")


def _streaming(view: View, reports: Mapping[NodeId, NodeReport]) -> tuple[Member, ...]:
    """Members that are standbys of the current primary; while there is none, any standby may still answer reads."""
    found = []
    for member in view.members:
        report = reports.get(member.node)
        if report is None or report.state is not ServerState.STANDBY:
            continue
        attached = report.streaming and report.following == view.primary
        if view.phase is not Phase.OPEN or attached:
            found.append(member)
    return tuple(found)


def _readers(
    view: View,
    streaming: tuple[Member, ...],
    spec: Spec,
    me: NodeId,
    lag_bytes: Mapping[NodeId, int],
    primary: Address | None,
) -> tuple[tuple[Address, ...], str]:
    mine = view.member(me)
    region = mine.region if mine is not None else ""
    near = [m for m in streaming if m.region == region and lag_bytes.get(m.node, 0) <= spec.read_max_lag_bytes]
    if near:
        return _addresses(near), f"reads go to {_names(near)}"
    if streaming:
        return _addresses(
            streaming
        ), f"reads go to {_names(streaming)}: no standby of this region is within the lag limit"
    if primary is not None:
        return (primary,), "reads go to the primary: no standby streams"
    return (), "reads are held: no standby streams and there is no primary"


def _addresses(members: list[Member] | tuple[Member, ...]) -> tuple[Address, ...]:
    return tuple(sorted(address_of(m) for m in members))


def _names(members: list[Member] | tuple[Member, ...]) -> str:
    return ", ".join(sorted(m.node for m in members))
