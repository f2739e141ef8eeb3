"""Deliberate bugs, each of which the simulation must catch: proof that its checks bite.

Every mutant is a list of replacements (bugs.py), put in place for one run and taken back after it. `focus` turns
the dice towards the faults under which the bug matters, `scenes` prescribe them; the rest of the code stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cluster.model import Spec
from tests.simulation import bugs
from tests.simulation.bugs import Patch
from tests.simulation.scenes import Scene
from tests.simulation.sim import Simulation


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
    Mutant("a promise is not fsynced", bugs.no_fsync),
    Mutant("a promise is told before it is on disk", bugs.told_before_disk),
    Mutant(
        "a promise is given before the receiver has ended", bugs.receiver_not_ended, scenes=STUCK, size=3, spec=Spec()
    ),
    Mutant(
        "a standby keeps streaming after its promise",
        bugs.keeps_streaming,
        focus=("freeze", "isolate", "cut_from_nodes", "freeze_postgres"),
    ),
    Mutant("a new primary is followed without promising its term", bugs.follows_without_promise),
    Mutant(
        "promises of earlier terms count",
        bugs.any_promise_counts,
        seeds=(6, 62, 72),
        focus=("freeze", "isolate", "cut_from_nodes", "freeze_postgres"),
    ),
    Mutant(
        "there is no floor under a node that is rewound", bugs.no_floor, scenes=LOST_AFTER_REWIND, size=3, spec=Spec()
    ),
    Mutant(
        "one promise too few is enough",
        bugs.wrong_quorum,
        focus=("freeze", "isolate", "cut_from_nodes", "freeze_postgres"),
    ),
    Mutant(
        "positions are compared without their timelines", bugs.lsn_alone, scenes=LONG_DEAD_BRANCH, size=3, spec=Spec()
    ),
    Mutant(
        "a primary is chosen before the old one is revoked",
        bugs.promote_before_revoke,
        focus=("freeze", "isolate", "cut_from_nodes", "freeze_postgres"),
    ),
    Mutant("not the furthest is chosen", bugs.not_the_furthest, focus=("cut_pair", "kill_postgres")),
    Mutant(
        "rules of terms that never opened are forgotten",
        bugs.ignores_unopened,
        scenes=LOST_PROMOTING,
        size=3,
        spec=Spec(),
    ),
    Mutant(
        "who was chosen speaks for the terms before, even where nobody has what it had",
        bugs.believes_the_chosen,
        scenes=LOST_PROMOTING,
        size=3,
        spec=Spec(),
    ),
    Mutant("a timeline is used twice", bugs.reuses_timeline),
    Mutant("PostgreSQL chooses the timeline", bugs.no_stubs),
    Mutant("the view is written without comparing", bugs.stale_leader, scenes=SLEEPING_LEADER, size=3, spec=Spec()),
    Mutant("a rule is replaced at once", bugs.no_joint, focus=("cut_pair", "kill_postgres", "power")),
    Mutant(
        "a rule that comes back is taken for applied",
        bugs.rules_unnumbered,
        seeds=(18, 53, 108),
        focus=("cut_pair", "kill_postgres", "freeze_postgres", "change_spec"),
    ),
    Mutant("an old rule is dropped unheard", bugs.shrinks_unheard, focus=("cut_pair", "kill_postgres", "freeze_agent")),
    Mutant("the barrier proves nothing", bugs.false_barrier),
    Mutant("a rule after none is believed at once", bugs.one_step_from_empty, focus=("power", "kill_all_postgres")),
    Mutant("standbys wait for nobody", bugs.empty_on_standbys, focus=("kill_postgres", "failover")),
    Mutant("replication carries no term", bugs.names_unstamped, scenes=WRONG_HOST, size=3, spec=Spec()),
    Mutant(
        "a primary starts without the view's word",
        bugs.starts_alone,
        seeds=(46, 53, 55),
        focus=("cut_from_store", "store_outage", "kill_postgres"),
    ),
    Mutant("clients are let in before the barrier", bugs.gate_first),
    Mutant(
        "a promotion cut short is taken for done",
        bugs.old_timeline,
        seeds=(34, 53, 62),
        focus=("kill_postgres", "kill_all_postgres", "blink"),
    ),
    Mutant(
        "the rule of a promotion is presumed",
        bugs.promotion_rule_presumed,
        seeds=(10, 48, 161),
        focus=("kill_postgres", "power", "cut_pair"),
    ),
    Mutant("the fence does nothing", bugs.fence_asleep, scenes=ALONE_AND_ASLEEP, size=3, spec=Spec()),
    Mutant("a new agent forgets the fence", bugs.adopts_unfenced, scenes=ADOPTED, size=3, spec=Spec()),
    Mutant("forks are not seen", bugs.forks_unseen),
    Mutant("a pause is ignored", bugs.pause_ignored, focus=("pause", "kill_postgres")),
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
