"""Is the primary lost? What speaks for it, and how strongly (docs/protocol.md). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from cluster.model import Answer, NodeId, NodeReport, ServerState, Snapshot, View
from sentinel.observe import Observations


class Weight(IntEnum):
    NONE = 0
    OBSERVED = 1  # most others get no answer
    STRONG = 2  # every other node is refused
    FIRST_HAND = 3  # its own keeper says so


@dataclass(frozen=True, slots=True)
class Evidence:
    weight: Weight
    why: str


def _others(view: View, snap: Snapshot) -> list[NodeReport]:
    return [r for m in view.members if m.node != view.primary and (r := snap.reports.get(m.node)) is not None]


def evidence(view: View, snap: Snapshot, seen: Observations, now: float) -> Evidence:
    """Against the primary of this view, which is promoting or open. `cause` of a new term starts with its `why`."""
    primary = view.primary
    assert primary is not None, "there is a primary in this phase"
    report = snap.reports.get(primary)
    restarting = False
    if report is not None and report.term == view.term:
        if report.restarting and seen.restarting_since is not None:
            restarting = True
            if now - seen.restarting_since > snap.spec.restart_within_s:
                return Evidence(Weight.FIRST_HAND, f"{primary} has not come back from its restart")
        elif report.fault:
            return Evidence(Weight.FIRST_HAND, f"{report.fault} on {primary}")
    return _what_others_say(view, snap, primary, restarting)


def _what_others_say(view: View, snap: Snapshot, primary: NodeId, restarting: bool) -> Evidence:
    others = _others(view, snap)
    judges = [r for r in others if r.state in (ServerState.STANDBY, ServerState.STARTING)]
    answers: dict[NodeId, Answer] = {}
    for r in judges:
        if r.verdict is None or r.verdict.term != view.term or r.verdict.primary != primary:
            continue
        # A silent stream ends only after wal_receiver_timeout; "silent" was said with its age in mind already.
        if r.verdict.answer is Answer.SILENT or not r.streaming:
            answers[r.node] = r.verdict.answer
    refused = [n for n, a in answers.items() if a is Answer.REFUSED]
    silent = [n for n, a in answers.items() if a is Answer.SILENT]
    if restarting:
        return Evidence(Weight.NONE, f"{primary} is restarting, as it said")
    if refused and len(refused) == len(judges):
        return Evidence(Weight.STRONG, f"refused: nothing listens on {primary} any more, say {names(refused)}")
    if silent and 2 * (len(silent) + len(refused)) > len(others):
        return Evidence(Weight.OBSERVED, f"no answer from {primary}, say {names(silent + refused)}")
    if silent or refused:
        return Evidence(Weight.NONE, f"only {names(silent + refused)} of {len(others)} cannot reach {primary}")
    if primary not in snap.reports:
        return Evidence(Weight.NONE, f"the agent of {primary} is silent, but its PostgreSQL serves the others")
    return Evidence(Weight.NONE, f"{primary} is well")


def names(nodes: list[NodeId]) -> str:
    return ", ".join(sorted(nodes))
