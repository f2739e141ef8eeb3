"""Is every acknowledged write there, and none twice? Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chaos.history import Outcome, Verdict, Write


@dataclass(frozen=True, slots=True)
class Durability:
    """What became of the writes. Ids, sorted."""

    acknowledged: int
    lost: tuple[int, ...]  # acknowledged, and not there
    doubled: tuple[int, ...]  # there more than once
    phantom: tuple[int, ...]  # certainly refused, and there all the same
    stray: tuple[int, ...]  # there, and nobody ever tried to write them
    unknown: int
    unknown_there: int

    @property
    def verdict(self) -> Verdict:
        bad = [
            f"{len(ids)} {what} (first: {', '.join(map(str, ids[:5]))})"
            for what, ids in (
                ("acknowledged writes are lost", self.lost),
                ("writes are there twice", self.doubled),
                ("refused writes are there", self.phantom),
                ("rows that nobody wrote", self.stray),
            )
            if ids
        ]
        if bad:
            return Verdict("durability", False, "; ".join(bad))
        if not self.acknowledged:
            return Verdict("durability", None, "no write was acknowledged: nothing could be judged")
        text = f"all {self.acknowledged} acknowledged writes are there once; of {self.unknown} without a clear answer"
        return Verdict("durability", True, f"{text} {self.unknown_there} are there")


def durability(writes: Sequence[Write], rows: Iterable[int]) -> Durability:
    """Compare what clients were told with the ids that a final read found."""
    there = Counter(rows)
    by_outcome: dict[Outcome, set[int]] = {outcome: set() for outcome in Outcome}
    for write in writes:
        by_outcome[write.outcome].add(write.id)
    ok, failed, unknown = by_outcome[Outcome.OK], by_outcome[Outcome.FAIL], by_outcome[Outcome.UNKNOWN]
    return Durability(
        acknowledged=len(ok),
        lost=tuple(sorted(ok - there.keys())),
        doubled=tuple(sorted(i for i, count in there.items() if count > 1)),
        phantom=tuple(sorted(failed & there.keys())),
        stray=tuple(sorted(there.keys() - ok - failed - unknown)),
        unknown=len(unknown),
        unknown_there=len(unknown & there.keys()),
    )
