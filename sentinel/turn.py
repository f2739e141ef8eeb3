"""One turn of a sentinel: read everything, decide, do one thing. No asyncio here: a simulation drives it as well."""

from __future__ import annotations

import logging
from dataclasses import replace

from cluster.clock import Clock
from cluster.model import Event, Leadership, NodeId, ServerState, Snapshot
from cluster.store import SentinelStore
from sentinel.actions import Answer, Decision, PutView, Resign
from sentinel.decide import decide
from sentinel.observe import Observations, observe

HOME_DELAY_S = 1.0  # on the primary's node a sentinel lets the others be first
RESIGNED_S = 10.0
GAP_S = 5.0  # an idle sentinel that does not lead looks more often
FOUNDING_S = 5.0  # a new leader looks very often for so long while there is no cluster
SETTLED_S = 15.0  # a new leader looks often for so long


class Sentinel:
    """Campaigns, and while it leads decides for the cluster. `name` is its node's, or a witness' own."""

    def __init__(self, store: SentinelStore, clock: Clock, name: NodeId, log: logging.Logger) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self.name = name
        self.leadership: Leadership | None = None
        self.last: Decision | None = None
        self._seen: Observations | None = None
        self._vacant_since: float | None = None
        self._stand_back_until = 0.0
        self._looked_on: Observations | None = None  # what was seen while another one led
        self._looked_at = float("-inf")
        self.founding = False  # does this leader wait a moment before it founds a cluster?
        self.calm = False  # did the last turn find nothing that time alone could change?

    async def turn(self, snap: Snapshot | None = None) -> bool:
        """Read (or take what was just read), lead if nobody does, decide, act. True: something changed, look again."""
        self.calm = self.founding = False
        snap = snap if snap is not None else await self._store.read()
        if not await self._lead(snap):
            self._seen = None
            self._look_on(snap)
            self.calm = self._vacant_since is None and self.leadership is None
            return False
        now = self._clock.boottime()
        if self._seen is None:
            self._seen, self._looked_on = self._look_on(snap).inherited(now), None
        self._seen = observe(self._seen, snap, now)
        decision = decide(snap, self._seen, now)
        self.founding = snap.view is None and now - self._seen.since < FOUNDING_S
        self._journal(decision)
        settled = now - self._seen.since > SETTLED_S
        self.calm = settled and decision.action is None and self._seen.calm(snap)
        return await self._perform(decision, snap)

    def _look_on(self, snap: Snapshot) -> Observations:
        """Who does not lead sees as well which standbys are away, and may have to do without a leader that died with
        one of them. After a gap of its own it counts anew."""
        now = self._clock.boottime()
        before = self._looked_on if now - self._looked_at < GAP_S else None
        self._looked_on, self._looked_at = observe(before, snap, now), now
        return self._looked_on

    async def _lead(self, snap: Snapshot) -> bool:
        if snap.leader is not None:
            self._vacant_since = None
            if self.leadership is not None and self.leadership != snap.leader:
                self.leadership = None
            if self.leadership is None and snap.leader.sentinel == self.name:
                await self._store.campaign()  # left by an earlier run under this name: the store makes it anew
                return False
            return self.leadership is not None
        self.leadership = None
        now = self._clock.boottime()
        if self._vacant_since is None:
            self._vacant_since = now
        at_home = snap.view is not None and snap.view.primary == self.name and _others_can(snap)
        if now < self._stand_back_until or (at_home and now - self._vacant_since < HOME_DELAY_S):
            return False
        self.leadership = await self._store.campaign()
        if self.leadership is not None:
            self._log.info("leads", extra={"sentinel": self.name})
        return False  # what was read is older than our leadership: decide in the next turn

    @property
    def impatient(self) -> bool:
        """Is there no leader that we know of? Then look again soon."""
        return self._vacant_since is not None

    async def _perform(self, decision: Decision, snap: Snapshot) -> bool:
        assert self.leadership is not None, "only a leader acts"
        match decision.action:
            case None:
                return False
            case PutView(view=view, kind=kind, text=text, node=node, outcomes=outcomes):
                assert snap.view is None or view.term >= snap.view.term, "terms never go back"
                event = Event(self._clock.wall(), view.term, kind, text, node, self.name)
                await self._store.put_view(
                    view,
                    read_at=snap.view_revision,
                    leader=self.leadership,
                    events=(event,) if kind else (),
                    outcomes=outcomes,
                )
            case Answer(request=request, outcome=outcome):
                await self._store.close_request(request, outcome)
            case Resign():
                self._stand_back_until = self._clock.boottime() + RESIGNED_S
                leadership, self.leadership = self.leadership, None
                await self._store.resign(leadership)
        return True

    def _journal(self, decision: Decision) -> None:
        """One line a decision, none for the same one again."""
        if self.last is None or decision != self.last:
            name = type(decision.action).__name__ if decision.action is not None else "wait"
            self._log.info("decision", extra={"action": name, "why": decision.why})
        self.last = replace(decision)


def _others_can(snap: Snapshot) -> bool:
    """Is there another node that might lead? One whose stream the primary has lost has most likely died."""
    view = snap.view
    primary = snap.reports.get(view.primary) if view is not None and view.primary is not None else None
    if primary is None or primary.state is not ServerState.PRIMARY:
        return len(snap.reports) > 1
    return any((r := snap.reports.get(s.node)) is not None and r.sentinel for s in primary.standbys)
