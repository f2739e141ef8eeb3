"""What a drill showed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from chaos.checkers.durability import Durability
from chaos.checkers.outage import Outage
from chaos.history import NEVER, Read, Verdict, Write
from chaos.phases import Band, Phases


@dataclass(frozen=True, slots=True)
class Told:
    """A line of the cluster's own history, with the moment it became visible."""

    at: float
    kind: str
    text: str
    by: str


@dataclass(slots=True)
class Result:
    """What a drill showed. Moments are monotonic seconds."""

    drill: str
    about: str
    seed: int
    victim: str
    bar_s: float
    limit_s: float
    began: float
    when: str  # wall clock, for people
    fault: float = 0.0
    broken: float = 0.0  # when all that was to be broken was
    mended: float = 0.0
    healed: float | None = None  # None: it did not become complete again
    ended: float = 0.0
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    durability: Durability | None = None
    doubled: int = 0  # acknowledged by a deposed server
    phases: Phases | None = None
    failovers: int = 0
    verdicts: list[Verdict] = field(default_factory=list)
    roles: list[Band] = field(default_factory=list)
    events: list[Told] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    faults: list[Band] = field(default_factory=list)  # what was broken when, by name, where it was more than one thing
    again: str = ""  # how to run it again, where that is more than its name and seed

    @property
    def replay(self) -> str:
        """The command that runs the same again."""
        return self.again or f"flypg drill run {self.drill} --seed {self.seed}"

    @property
    def passed(self) -> bool:
        return bool(self.verdicts) and all(v.ok is not False for v in self.verdicts) and self.durability is not None

    @property
    def lost(self) -> int:
        return len(self.durability.lost) if self.durability is not None else 0

    @property
    def outage_s(self) -> float | None:
        """The longest outage of the clients that count; None when none was measured."""
        return max((o.length_s for o in self.outages), default=None)

    @property
    def line(self) -> str:
        """The result in one line."""
        word = "PASS" if self.passed else "FAIL"
        if self.durability is None:
            why = "; ".join(v.text for v in self.verdicts if v.ok is False)
            return f"{word}  {self.drill}: {why}"
        told = ", ".join(
            f"{o.path} for ever" if o.length_s == NEVER else f"{o.path} {o.length_s:.2f} s" for o in self.outages
        )
        bar = f" (bar {self.bar_s:g} s)" if self.drill != "soak" else ""
        counted = f"lost {self.lost} of {self.durability.acknowledged}, doubly acknowledged {self.doubled}"
        why = "".join(f"; {v.checker}: {v.text}" for v in self.verdicts if v.ok is False)
        return f"{word}  {self.drill}: outage {told}{bar}; {counted}; {self.failovers} failovers{why}"
