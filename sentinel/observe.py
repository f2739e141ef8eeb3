"""Since when the leading sentinel has seen what it sees, by its own clock. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model import Answer, Fetch, NodeId, Phase, Snapshot, Verdict, View

FETCH_MAX_S = 15.0  # a node that is to fetch WAL and does not receive any after so long has come to nothing


@dataclass(frozen=True, slots=True)
class Observations:
    """Times are seconds of this sentinel's boottime. A new leader starts with no grudges: all counting starts anew, but
    for standbys that are away: whoever may lead counts that all the time."""

    since: float  # when it began to look
    stage: tuple[object, ...] = ()  # (term, phase, stage of the handover) of the view
    stage_since: float = 0.0
    absent: tuple[tuple[NodeId, float], ...] = ()  # members without a report, since when
    verdicts: tuple[tuple[NodeId, Verdict, float], ...] = ()  # what each node says of the primary, since when
    unattached: tuple[tuple[NodeId, float], ...] = ()  # members that the primary does not see streaming, since when
    asked: tuple[tuple[str, float], ...] = ()  # requests that are open, since when
    restarting_since: float | None = None  # the primary has announced a restart
    given_since: float | None = None  # the primary of an open term has promised a later one
    silent_failover_at: float | None = None  # when a failover without first-hand evidence was last begun
    fetch: tuple[Fetch, float] | None = None  # what a node fetches in this term, and since when
    fruitless: frozenset[NodeId] = frozenset()  # nodes from which nothing could be fetched in this term

    def absent_for(self, node: NodeId, now: float) -> float:
        """Seconds without a report of `node`; 0 when there is one."""
        return next((now - at for n, at in self.absent if n == node), 0.0)

    def unattached_for(self, node: NodeId, now: float) -> float:
        """Seconds since the primary last saw `node` streaming; 0 when it does."""
        return next((now - at for n, at in self.unattached if n == node), 0.0)

    def asked_for(self, request: str, now: float) -> float:
        """Seconds since a request that is open was first seen."""
        return next((now - at for id_, at in self.asked if id_ == request), 0.0)

    def inherited(self, now: float) -> Observations:
        """What a sentinel that begins to lead keeps of what it saw before: since when standbys are away."""
        return Observations(since=now, stage=self.stage, stage_since=now, unattached=self.unattached)

    def calm(self, snap: Snapshot) -> bool:
        """Does nothing that was seen here become something else by waiting? Then only a change in etcd can."""
        timed = (self.restarting_since, self.given_since, self.fetch)
        waits = self.absent or self.unattached or any(since is not None for since in timed)
        view = snap.view
        if waits or view is None or view.phase is not Phase.OPEN or view.handover is not None or len(view.rules) > 1:
            return False
        heard = all(verdict.answer is Answer.OK for _, verdict, _ in self.verdicts)
        return heard and all(request.outcome for request in snap.requests)


def observe(old: Observations | None, snap: Snapshot, now: float) -> Observations:
    """Bring what was seen up to date with what is in etcd now."""
    before = old if old is not None else Observations(since=now)
    view = snap.view
    if view is None:
        return Observations(since=before.since)
    stage = (view.term, view.phase, view.handover.stage if view.handover else None)
    absent_since, asked_since = dict(before.absent), dict(before.asked)
    unattached_since = dict(before.unattached) if before.stage[:1] == (view.term,) else {}
    verdict_since = {n: (v, at) for n, v, at in before.verdicts}
    primary = snap.reports.get(view.primary) if view.primary else None
    attached = {s.node for s in primary.standbys} if primary else None

    absent, verdicts, unattached = [], [], []
    for member in view.members:
        node = member.node
        report = snap.reports.get(node)
        if report is None:
            absent.append((node, absent_since.get(node, now)))
        elif report.verdict is not None and report.verdict.term == view.term:
            known = verdict_since.get(node)
            verdicts.append((node, report.verdict, known[1] if known and known[0] == report.verdict else now))
        if node != view.primary:
            if attached is None:  # the primary says nothing: what it saw last may not be held against anybody
                if node in unattached_since:
                    unattached.append((node, now))
            elif node not in attached:
                unattached.append((node, unattached_since.get(node, now)))

    restarting = primary is not None and primary.restarting
    own = snap.promises.get(view.primary) if view.primary is not None else None
    given = own is not None and own.term > view.term
    fetch = _fetch(before, view, now)
    silent_at = before.silent_failover_at
    if (
        before.stage
        and before.stage[0] != view.term
        and view.phase is Phase.REVOKING
        and view.cause.startswith("no answer")
    ):
        silent_at = now
    return Observations(
        since=before.since,
        stage=stage,
        stage_since=before.stage_since if before.stage == stage else now,
        absent=tuple(absent),
        verdicts=tuple(verdicts),
        unattached=tuple(unattached),
        asked=tuple((r.id, asked_since.get(r.id, now)) for r in snap.requests if not r.outcome),
        restarting_since=(before.restarting_since if before.restarting_since is not None else now)
        if restarting
        else None,
        given_since=(before.given_since if before.given_since is not None else now) if given else None,
        silent_failover_at=silent_at,
        fetch=fetch,
        fruitless=_fruitless(before if before.stage == stage else None, snap, fetch, now),
    )


def _fetch(before: Observations, view: View, now: float) -> tuple[Fetch, float] | None:
    if view.fetch is None:
        return None
    return before.fetch if before.fetch is not None and before.fetch[0] == view.fetch else (view.fetch, now)


def _fruitless(
    before: Observations | None, snap: Snapshot, fetch: tuple[Fetch, float] | None, now: float
) -> frozenset[NodeId]:
    """The sources of this term that led to nothing. `before`: None when the term or its phase is new."""
    known = before.fruitless if before is not None else frozenset[NodeId]()
    if fetch is None or now - fetch[1] <= FETCH_MAX_S:
        return known
    wanted = fetch[0]
    report = snap.reports.get(wanted.node)
    receives = report is not None and report.streaming and report.following == wanted.source
    return known if receives else known | {wanted.source}
