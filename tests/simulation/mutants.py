"""Deliberate bugs, each of which the simulation must catch: proof that its checks bite.

Every mutant is a list of replacements that are put in place for one run and taken back after it. `focus` turns the dice
towards the faults under which the bug matters; the code under test stays whole otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from cluster.model import Disk, Phase, Position, Promise, Rule, Snapshot, Spec, Upstream, View
from postgres.instance import InstanceState, Run
from sentinel.actions import Decision, PutView
from tests.simulation.replication import Link
from tests.simulation.scenes import Scene
from tests.simulation.server import EMPTY, names_of
from tests.simulation.sim import Simulation
from tests.simulation.sim_postgres import SimDisk, SimInstance
from tests.simulation.sim_store import StoreClient
from tests.simulation.watch import SimFence
from tests.simulation.world import sleep

Patch = tuple[Any, str, Any]


@dataclass(frozen=True)
class Mutant:
    name: str
    patches: Callable[[], list[Patch]]
    seeds: tuple[int, ...] = ()  # seeds that have caught it: tried first
    focus: tuple[str, ...] = ()  # faults that happen more often
    scenes: tuple[Scene, ...] = ()  # what happens instead of what the dice choose
    busy: bool = False
    size: int | None = None
    spec: Spec | None = None

    def simulation(self, seed: int) -> Simulation:
        return Simulation(seed, focus=self.focus, scenes=self.scenes, busy=self.busy, size=self.size, spec=self.spec)


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The bug is in the code while this lasts."""
    undo = []
    try:
        for owner, name, value in mutant.patches():
            undo.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


# -- promises -----------------------------------------------------------------------------------


def _no_fsync() -> list[Patch]:
    async def write(self: SimDisk, disk: Disk) -> None:
        self.cached = disk
        await sleep(0.0005)

    return [(SimDisk, "write", write)]


def _told_before_disk() -> list[Patch]:
    original = Performer._promise

    async def promise(self: Performer, step: Any, words: Disk) -> Disk:
        if isinstance(step, agent.execute.GivePromise):
            position = await self._instance.detach()
            given = Promise(self._me, step.term, position)
            await self._store.promise(given)
            return await self._write(replace(words, promised=step.term, promise=given))
        return await original(self, step, words)

    return [(Performer, "_promise", promise)]


def _receiver_not_ended() -> list[Patch]:
    """Only the configuration is changed: a receiver that is stuck in a recovery conflict goes on."""

    async def detach(self: SimInstance) -> Position:
        await self._answer()
        self.server.conninfo = None
        self.server.ice.call(self.server.reattach)
        await sleep(0.02)
        return self.server.position

    return [(SimInstance, "detach", detach)]


def _keeps_streaming() -> list[Patch]:
    async def detach(self: SimInstance) -> Position:
        await self._answer()
        return self.server.position

    return [(SimInstance, "detach", detach)]


def _follows_without_promise() -> list[Patch]:
    async def not_below(self: Performer, words: Disk, term: int) -> Disk:
        return words

    return [(Performer, "_not_below", not_below)]


def _any_promise_counts() -> list[Patch]:
    def standing(view: View, snap: Snapshot) -> dict[Any, Promise]:
        return {m.node: snap.promises[m.node] for m in view.members if m.node in snap.promises}

    return [(sentinel.candidates, "standing_promises", standing), (sentinel.decide, "standing_promises", standing)]


def _no_floor() -> list[Patch]:
    async def write_floor(self: Performer, words: Disk, source: Upstream) -> Disk:
        return await self._write(replace(words, copying=True, promised=max(words.promised, source.term)))

    return [(Performer, "_write_floor", write_floor)]


# -- choosing -----------------------------------------------------------------------------------


def _wrong_quorum() -> list[Patch]:
    return [(cluster.quorum, "needed", lambda rule: max(len(rule.voters) - rule.k, 1))]


def _lsn_alone() -> list[Patch]:
    def by_lsn(name: str) -> Any:
        return lambda self, other: getattr(self.lsn, name)(other.lsn)

    return [(Position, name, by_lsn(name)) for name in ("__lt__", "__le__", "__gt__", "__ge__")]


def _promote_before_revoke() -> list[Patch]:
    return [(sentinel.candidates, "missing", lambda rules, promised: None)]


def _not_the_furthest() -> list[Patch]:
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


def _ignores_unopened() -> list[Patch]:
    """A term that is being promoted lists its own rule only."""
    original = sentinel.decide.promote

    def promote(view: View, *arguments: Any) -> View:
        new = original(view, *arguments)
        return replace(new, rules=new.rules[-1:])

    return [(sentinel.decide, "promote", promote), (sentinel.switchover, "promote", promote)]


def _reuses_timeline() -> list[Patch]:
    original = sentinel.decide.promote

    def promote(view: View, snap: Snapshot, term: int, position: Position, *rest: Any) -> View:
        new = original(view, snap, term, position, *rest)
        timeline = position.timeline + 1
        branch = replace(new.branches[-1], timeline=timeline)
        return replace(new, timeline=timeline, branches=(*new.branches[:-1], branch))

    return [(sentinel.decide, "promote", promote), (sentinel.switchover, "promote", promote)]


def _no_stubs() -> list[Patch]:
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


def _stale_leader() -> list[Patch]:
    """The view is written without comparing what was read."""

    async def put_view(self: StoreClient, view: View, **rest: Any) -> None:
        store = self.store
        events, outcomes = rest.get("events", ()), rest.get("outcomes", ())
        await sleep(0.2)  # it thinks slowly, too
        await self._write(lambda: store.put_view(view, store.view_revision, store.leader, events, outcomes))  # type: ignore[arg-type]

    return [(StoreClient, "put_view", put_view)]


# -- rules --------------------------------------------------------------------------------------


def _adjusting(change: Callable[[View, View], View]) -> list[Patch]:
    original = sentinel.rules.adjust

    def adjust(view: View, *arguments: Any) -> Decision:
        decision = original(view, *arguments)
        if isinstance(decision.action, PutView):
            return Decision(replace(decision.action, view=change(view, decision.action.view)), decision.why)
        return decision

    return [(sentinel.decide, "adjust", adjust)]


def _no_joint() -> list[Patch]:
    return _adjusting(lambda old, new: replace(new, rules=new.rules[-1:]))


def _rules_unnumbered() -> list[Patch]:
    return _adjusting(lambda old, new: replace(new, rules=tuple(replace(r, serial=0) for r in new.rules)))


def _shrinks_unheard() -> list[Patch]:
    """The old rules are dropped before the primary says that it runs the new one."""
    original = sentinel.decide.adjust

    def adjust(view: View, snap: Snapshot, *rest: Any) -> Decision:
        if view.phase is Phase.OPEN and len(view.rules) > 1:
            return Decision(PutView(replace(view, rules=view.rules[-1:])), "presumably in force")
        return original(view, snap, *rest)

    return [(sentinel.decide, "adjust", adjust)]


def _false_barrier() -> list[Patch]:
    async def barrier(self: SimInstance, rule: Rule) -> None:
        await self._answer()
        self.server.insert("barrier")
        self.server.barrier_at = len(self.server.wal)

    async def apply_rule(self: SimInstance, rule: Rule) -> None:
        await self._answer()
        self.server.set_names(names_of(rule))

    return [(SimInstance, "barrier", barrier), (SimInstance, "apply_rule", apply_rule)]


def _one_step_from_empty() -> list[Patch]:
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


def _empty_on_standbys() -> list[Patch]:
    return [(tests.simulation.sim_postgres, "NOBODYS", EMPTY)]


def _names_unstamped() -> list[Patch]:
    """A standby is counted by its name, whatever the term it follows."""

    def counted(self: Link) -> bool:
        return self.streaming and self.below.node in {name.rpartition("_t")[0] for name in self.names[0]}

    return [(Link, "counted", property(counted))]


# -- primaries ----------------------------------------------------------------------------------


def _starts_alone() -> list[Patch]:
    def alone(view: View, local: Local) -> Plan:
        if view.primary == local.me and view.rule is not None and local.instance.run is Run.DOWN:
            return Plan(StartPrimary(view.rule), "it was primary when etcd last answered")
        return Plan(None, "etcd does not answer")

    return [(agent.plan, "_alone", alone)]


def _gate_first() -> list[Patch]:
    original = agent.plan_primary._serving

    def serving(snap: Snapshot, view: View, local: Local, now: float) -> Plan:
        return original(snap, view, local, now) if local.instance.gate_open else Plan(OpenGate(), "clients are waiting")

    return [(agent.plan_primary, "_serving", serving)]


def _old_timeline() -> list[Patch]:
    """A promotion that was cut short is taken for one that was completed."""
    original = agent.plan_primary._down

    def down(snap: Snapshot, view: View, local: Local, now: float) -> Plan:
        if view.phase is Phase.PROMOTING and local.disk.was_primary == view.term and view.rule is not None:
            return Plan(StartPrimary(view.rule), "it had become primary")
        return original(snap, view, local, now)

    return [(agent.plan_primary, "_down", down)]


def _promotion_rule_presumed() -> list[Patch]:
    original = agent.plan_primary._promoting

    def promoting(view: View, local: Local) -> Plan:
        asked = view.rule if local.promoting == view.term else local.asked
        return original(view, replace(local, asked=asked))

    return [(agent.plan_primary, "_promoting", promoting)]


def _fence_asleep() -> list[Patch]:
    return [(SimFence, "arm", lambda self, until: None)]


def _adopts_unfenced() -> list[Patch]:
    """An agent that has never read the store leaves the primary that it finds alone."""
    original = Keeper._arm

    def arm(self: Keeper, inst: InstanceState) -> None:
        if self.snap is None:
            self._fence.disarm()
        else:
            original(self, inst)

    return [(Keeper, "_arm", arm)]


# -- standbys -----------------------------------------------------------------------------------


def _forks_unseen() -> list[Patch]:
    return [(agent.plan_standby, "on_line", lambda branches, position, current: True)]


def _pause_ignored() -> list[Patch]:
    original = agent.plan.plan_next

    def plan_next(snap: Snapshot | None, *rest: Any) -> Plan:
        return original(snap and replace(snap, spec=replace(snap.spec, paused=False)), *rest)

    return [(agent.keeper, "plan_next", plan_next)]


# n1 is cut off as primary and goes on writing what nobody acknowledges; its successor is lost, and the last node cannot
# promise before n1 has: the longest WAL is now on the older timeline.
LONG_DEAD_BRANCH = (
    Scene("start", "isolate", "n1", 6.0),
    Scene("2 open", "freeze", "other", 8.0, after_s=1.0),
    Scene("2 open", "power", "primary", 20.0, after_s=1.0),
    Scene("3 revoking", "freeze_agent", "other", 3.0),
)
# Both standbys are in a recovery conflict, the primary's agent sleeps, and an operator asks for a failover.
STUCK = (
    Scene("start", "stuck", "n2", 15.0),
    Scene("start", "stuck", "n3", 15.0),
    Scene("start", "freeze_agent", "n1", 12.0, after_s=0.5),
    Scene("start", "failover", "n2", 0.0, after_s=0.6),
)
# The agent of a primary that is cut off from everything is killed and started again.
ADOPTED = (
    Scene("start", "isolate", "n1", 24.0),
    Scene("start", "kill_agent", "n1", 1.0, after_s=3.0),
)
# The old primary does not hear that it was deposed, and is reached under the new one's address.
WRONG_HOST = (
    Scene("start", "freeze_agent", "n1", 12.0, after_s=0.5),
    Scene("start", "failover", "n2", 0.0, after_s=0.6),
    Scene("2 promoting", "misroute", "primary", 10.0),
)
# One standby lags; the other, which alone has everything, is lost as soon as it was chosen.
LOST_PROMOTING = (
    Scene("start", "cut_from_primary", "n2", 15.0),
    Scene("start", "power", "n1", 15.0, after_s=0.7),
    Scene("2 promoting", "power", "primary", 10.0),
)
# The leader sleeps while it is about to write, and another has led for a while when it goes on.
SLEEPING_LEADER = (
    Scene("start", "power", "n1", 20.0, after_s=1.0),
    Scene("2 revoking", "freeze_agent", "leader", 12.0, after_s=0.15),
)
# A primary is cut off from everything, and its agent sleeps.
ALONE_AND_ASLEEP = (
    Scene("start", "isolate", "n1", 24.0),
    Scene("start", "freeze_agent", "n1", 24.0, after_s=1.0),
)
# n1 has just been rewound, below what it once acknowledged, when its new primary is lost.
LOST_AFTER_REWIND = (
    Scene("start", "isolate", "n1", 5.0),
    Scene("n1 rewind", "power", "primary", 15.0),
)

MUTANTS: tuple[Mutant, ...] = (
    Mutant("a promise is not fsynced", _no_fsync),
    Mutant("a promise is told before it is on disk", _told_before_disk),
    Mutant("a promise is given before the receiver has ended", _receiver_not_ended, scenes=STUCK, size=3, spec=Spec()),
    Mutant(
        "a standby keeps streaming after its promise",
        _keeps_streaming,
        focus=("freeze", "isolate", "cut_from_nodes", "freeze_postgres"),
    ),
    Mutant("a new primary is followed without promising its term", _follows_without_promise),
    Mutant(
        "promises of earlier terms count",
        _any_promise_counts,
        seeds=(6, 62, 72),
        focus=("freeze", "isolate", "cut_from_nodes", "freeze_postgres"),
    ),
    Mutant("there is no floor under a node that is rewound", _no_floor, scenes=LOST_AFTER_REWIND, size=3, spec=Spec()),
    Mutant(
        "one promise too few is enough", _wrong_quorum, focus=("freeze", "isolate", "cut_from_nodes", "freeze_postgres")
    ),
    Mutant("positions are compared without their timelines", _lsn_alone, scenes=LONG_DEAD_BRANCH, size=3, spec=Spec()),
    Mutant(
        "a primary is chosen before the old one is revoked",
        _promote_before_revoke,
        focus=("freeze", "isolate", "cut_from_nodes", "freeze_postgres"),
    ),
    Mutant("not the furthest is chosen", _not_the_furthest, focus=("cut_pair", "kill_postgres")),
    Mutant(
        "rules of terms that never opened are forgotten", _ignores_unopened, scenes=LOST_PROMOTING, size=3, spec=Spec()
    ),
    Mutant("a timeline is used twice", _reuses_timeline),
    Mutant("PostgreSQL chooses the timeline", _no_stubs),
    Mutant("the view is written without comparing", _stale_leader, scenes=SLEEPING_LEADER, size=3, spec=Spec()),
    Mutant("a rule is replaced at once", _no_joint, focus=("cut_pair", "kill_postgres", "power")),
    Mutant(
        "a rule that comes back is taken for applied",
        _rules_unnumbered,
        seeds=(18, 53, 108),
        focus=("cut_pair", "kill_postgres", "freeze_postgres", "change_spec"),
    ),
    Mutant("an old rule is dropped unheard", _shrinks_unheard, focus=("cut_pair", "kill_postgres", "freeze_agent")),
    Mutant("the barrier proves nothing", _false_barrier),
    Mutant("a rule after none is believed at once", _one_step_from_empty, focus=("power", "kill_all_postgres")),
    Mutant("standbys wait for nobody", _empty_on_standbys, focus=("kill_postgres", "failover")),
    Mutant("replication carries no term", _names_unstamped, scenes=WRONG_HOST, size=3, spec=Spec()),
    Mutant(
        "a primary starts without the view's word",
        _starts_alone,
        seeds=(46, 53, 55),
        focus=("cut_from_store", "store_outage", "kill_postgres"),
    ),
    Mutant("clients are let in before the barrier", _gate_first),
    Mutant(
        "a promotion cut short is taken for done",
        _old_timeline,
        seeds=(34, 53, 62),
        focus=("kill_postgres", "kill_all_postgres", "blink"),
    ),
    Mutant(
        "the rule of a promotion is presumed",
        _promotion_rule_presumed,
        seeds=(10, 48, 161),
        focus=("kill_postgres", "power", "cut_pair"),
    ),
    Mutant("the fence does nothing", _fence_asleep, scenes=ALONE_AND_ASLEEP, size=3, spec=Spec()),
    Mutant("a new agent forgets the fence", _adopts_unfenced, scenes=ADOPTED, size=3, spec=Spec()),
    Mutant("forks are not seen", _forks_unseen),
    Mutant("a pause is ignored", _pause_ignored, focus=("pause", "kill_postgres")),
)


def catch(mutant: Mutant, seed: int) -> str:
    """What the simulation says about this bug under this seed; "" when it does not notice."""
    with planted(mutant):
        try:
            mutant.simulation(seed).run()
        except AssertionError as violation:
            return str(violation) or type(violation).__name__
    return ""


__all__ = ["MUTANTS", "Mutant", "catch", "planted"]
