"""The bugs of mutants.py, each as the replacements that put it into the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import agent.execute
import agent.plan
import agent.plan_primary
import agent.plan_standby
import cluster.quorum
import sentinel.candidates
import sentinel.decide
import sentinel.rules
import sentinel.switchover
import tests.simulation.sim_postgres
from agent.execute import Performer
from agent.keeper import Keeper
from agent.local import Local
from agent.steps import OpenGate, Plan, StartPrimary
from cluster.model import Disk, Phase, Position, Promise, Rule, Snapshot, Upstream, View
from postgres.instance import InstanceState, Run
from sentinel.actions import Decision, PutView
from tests.simulation.replication import Link
from tests.simulation.server import EMPTY, names_of
from tests.simulation.sim_postgres import SimDisk, SimInstance
from tests.simulation.sim_store import StoreClient
from tests.simulation.watch import SimFence
from tests.simulation.world import sleep

Patch = tuple[Any, str, Any]  # of what, which name, by what


# -- promises -----------------------------------------------------------------------------------


def no_fsync() -> list[Patch]:
    async def write(self: SimDisk, disk: Disk) -> None:
        self.cached = disk
        await sleep(0.0005)

    return [(SimDisk, "write", write)]


def told_before_disk() -> list[Patch]:
    original = Performer._promise

    async def promise(self: Performer, step: Any, words: Disk) -> Disk:
        if isinstance(step, agent.execute.GivePromise):
            position = await self._instance.detach()
            given = Promise(self._me, step.term, position)
            await self._store.promise(given)
            return await self._write(replace(words, promised=step.term, promise=given))
        return await original(self, step, words)

    return [(Performer, "_promise", promise)]


def receiver_not_ended() -> list[Patch]:
    """Only the configuration is changed: a receiver that is stuck in a recovery conflict goes on."""

    async def detach(self: SimInstance) -> Position:
        await self._answer()
        self.server.conninfo = None
        self.server.ice.call(self.server.reattach)
        await sleep(0.02)
        return self.server.position

    return [(SimInstance, "detach", detach)]


def keeps_streaming() -> list[Patch]:
    async def detach(self: SimInstance) -> Position:
        await self._answer()
        return self.server.position

    return [(SimInstance, "detach", detach)]


def follows_without_promise() -> list[Patch]:
    async def not_below(self: Performer, words: Disk, term: int) -> Disk:
        return words

    return [(Performer, "_not_below", not_below)]


def any_promise_counts() -> list[Patch]:
    def standing(view: View, snap: Snapshot) -> dict[Any, Promise]:
        return {m.node: snap.promises[m.node] for m in view.members if m.node in snap.promises}

    return [(sentinel.candidates, "standing_promises", standing), (sentinel.decide, "standing_promises", standing)]


def no_floor() -> list[Patch]:
    async def write_floor(self: Performer, words: Disk, source: Upstream) -> Disk:
        return await self._write(replace(words, copying=True, promised=max(words.promised, source.term)))

    return [(Performer, "_write_floor", write_floor)]


# -- choosing -----------------------------------------------------------------------------------


def wrong_quorum() -> list[Patch]:
    return [(cluster.quorum, "needed", lambda rule: max(len(rule.voters) - rule.k, 1))]


def lsn_alone() -> list[Patch]:
    def by_lsn(name: str) -> Any:
        return lambda self, other: getattr(self.lsn, name)(other.lsn)

    return [(Position, name, by_lsn(name)) for name in ("__lt__", "__le__", "__gt__", "__ge__")]


def promote_before_revoke() -> list[Patch]:
    return [(sentinel.candidates, "missing", lambda rules, promised: None)]


def not_the_furthest() -> list[Patch]:
    original = sentinel.candidates.choose

    def choose(view: View, snap: Snapshot, *rest: Any) -> Any:
        chosen = original(view, snap, *rest)
        if isinstance(chosen, sentinel.candidates.Chosen):
            standing = sentinel.candidates.standing_promises(view, snap)
            there = [p for n, p in standing.items() if n in snap.reports]
            least = min(there, key=lambda p: (p.position, p.node))
            rule = sentinel.candidates.first_rule(view, snap, least, {p.node: p for p in there})
            return sentinel.candidates.Chosen(least, rule)
        return chosen

    return [(sentinel.decide, "choose", choose)]


def ignores_unopened() -> list[Patch]:
    """A term that is being promoted lists its own rule only."""
    original = sentinel.decide.promote

    def promote(view: View, *arguments: Any) -> View:
        new = original(view, *arguments)
        return replace(new, rules=new.rules[-1:])

    return [(sentinel.decide, "promote", promote), (sentinel.switchover, "promote", promote)]


def believes_the_chosen() -> list[Patch]:
    """The newest term speaks for those before it, though nobody who has promised stands on its timeline."""

    def binding(view: View, promises: Any) -> tuple[Rule, ...]:
        return tuple(rule for rule in view.rules if rule.term == view.rules[-1].term)

    return [(sentinel.candidates, "binding", binding)]


def reuses_timeline() -> list[Patch]:
    original = sentinel.decide.promote

    def promote(view: View, snap: Snapshot, term: int, position: Position, *rest: Any) -> View:
        new = original(view, snap, term, position, *rest)
        timeline = position.timeline + 1
        branch = replace(new.branches[-1], timeline=timeline)
        return replace(new, timeline=timeline, branches=(*new.branches[:-1], branch))

    return [(sentinel.decide, "promote", promote), (sentinel.switchover, "promote", promote)]


def no_stubs() -> list[Patch]:
    """PostgreSQL chooses the timeline by itself, and nobody looks which."""
    original = agent.plan_primary._promoting

    async def promote(self: SimInstance, timeline: int, rule: Rule) -> None:
        await self._answer()
        self.server.set_names(names_of(rule))
        self.server.ice.call(self.server.promote, rule.term)

    def promoting(view: View, local: Local) -> Plan:
        position = local.instance.position
        return original(replace(view, timeline=position.timeline) if position is not None else view, local)

    return [(SimInstance, "promote", promote), (agent.plan_primary, "_promoting", promoting)]


def stale_leader() -> list[Patch]:
    """The view is written without comparing what was read."""

    async def put_view(self: StoreClient, view: View, **rest: Any) -> None:
        store = self.store
        events, outcomes = rest.get("events", ()), rest.get("outcomes", ())
        await sleep(0.2)  # it thinks slowly, too
        await self._write(lambda: store.put_view(view, store.view_revision, store.leader, events, outcomes))  # type: ignore[arg-type]

    return [(StoreClient, "put_view", put_view)]


# -- rules --------------------------------------------------------------------------------------


def adjusting(change: Callable[[View, View], View]) -> list[Patch]:
    original = sentinel.rules.adjust

    def adjust(view: View, *arguments: Any) -> Decision:
        decision = original(view, *arguments)
        if isinstance(decision.action, PutView):
            return Decision(replace(decision.action, view=change(view, decision.action.view)), decision.why)
        return decision

    return [(sentinel.decide, "adjust", adjust)]


def no_joint() -> list[Patch]:
    return adjusting(lambda old, new: replace(new, rules=new.rules[-1:]))


def rules_unnumbered() -> list[Patch]:
    return adjusting(lambda old, new: replace(new, rules=tuple(replace(r, serial=0) for r in new.rules)))


def shrinks_unheard() -> list[Patch]:
    """The old rules are dropped before the primary says that it runs the new one."""
    original = sentinel.decide.adjust

    def adjust(view: View, snap: Snapshot, *rest: Any) -> Decision:
        if view.phase is Phase.OPEN and len(view.rules) > 1:
            return Decision(PutView(replace(view, rules=view.rules[-1:])), "presumably in force")
        return original(view, snap, *rest)

    return [(sentinel.decide, "adjust", adjust)]


def false_barrier() -> list[Patch]:
    async def barrier(self: SimInstance, rule: Rule) -> None:
        await self._answer()
        self.server.insert("barrier")
        self.server.barrier_at = len(self.server.wal)

    async def apply_rule(self: SimInstance, rule: Rule) -> None:
        await self._answer()
        self.server.set_names(names_of(rule))

    return [(SimInstance, "barrier", barrier), (SimInstance, "apply_rule", apply_rule)]


def one_step_from_empty() -> list[Patch]:
    """From nobody to somebody without seeing a commit wait: the new rule is believed when the walsenders show it."""

    async def apply_rule(self: SimInstance, rule: Rule) -> None:
        await self._answer()
        server, wanted = self.server, names_of(rule)
        server.set_names(wanted)
        for _ in range(20):
            await sleep(0.01)
            if all(link.names == wanted for link in server.senders):
                return

    return [(SimInstance, "apply_rule", apply_rule)]


def empty_on_standbys() -> list[Patch]:
    return [(tests.simulation.sim_postgres, "NOBODYS", EMPTY)]


def names_unstamped() -> list[Patch]:
    """A standby is counted by its name, whatever the term it follows."""

    def counted(self: Link) -> bool:
        return self.streaming and self.below.node in {name.rpartition("_t")[0] for name in self.names[0]}

    return [(Link, "counted", property(counted))]


# -- primaries ----------------------------------------------------------------------------------


def starts_alone() -> list[Patch]:
    def alone(view: View, local: Local) -> Plan:
        if view.primary == local.me and view.rule is not None and local.instance.run is Run.DOWN:
            return Plan(StartPrimary(view.rule), "it was primary when etcd last answered")
        return Plan(None, "etcd does not answer")

    return [(agent.plan, "_alone", alone)]


def gate_first() -> list[Patch]:
    original = agent.plan_primary._serving

    def serving(snap: Snapshot, view: View, local: Local, now: float) -> Plan:
        return original(snap, view, local, now) if local.instance.gate_open else Plan(OpenGate(), "clients are waiting")

    return [(agent.plan_primary, "_serving", serving)]


def old_timeline() -> list[Patch]:
    """A promotion that was cut short is taken for one that was completed."""
    original = agent.plan_primary._down

    def down(snap: Snapshot, view: View, local: Local, now: float) -> Plan:
        if view.phase is Phase.PROMOTING and local.disk.was_primary == view.term and view.rule is not None:
            return Plan(StartPrimary(view.rule), "it had become primary")
        return original(snap, view, local, now)

    return [(agent.plan_primary, "_down", down)]


def promotion_rule_presumed() -> list[Patch]:
    original = agent.plan_primary._promoting

    def promoting(view: View, local: Local) -> Plan:
        asked = view.rule if local.promoting == view.term else local.asked
        return original(view, replace(local, asked=asked))

    return [(agent.plan_primary, "_promoting", promoting)]


def fence_asleep() -> list[Patch]:
    return [(SimFence, "arm", lambda self, until: None)]


def adopts_unfenced() -> list[Patch]:
    """An agent that has never read the store leaves the primary that it finds alone."""
    original = Keeper._arm

    def arm(self: Keeper, inst: InstanceState) -> None:
        if self.snap is None:
            self._fence.disarm()
        else:
            original(self, inst)

    return [(Keeper, "_arm", arm)]


# -- standbys -----------------------------------------------------------------------------------


def forks_unseen() -> list[Patch]:
    return [(agent.plan_standby, "on_line", lambda branches, position, current: True)]


def pause_ignored() -> list[Patch]:
    original = agent.plan.plan_next

    def plan_next(snap: Snapshot | None, *rest: Any) -> Plan:
        return original(snap and replace(snap, spec=replace(snap.spec, paused=False)), *rest)

    return [(agent.keeper, "plan_next", plan_next)]
