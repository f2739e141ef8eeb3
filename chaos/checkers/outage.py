"""For how long did clients get no write acknowledged? Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.history import NEVER, Verdict, Write


@dataclass(frozen=True, slots=True)
class Outage:
    """The longest time without an acknowledged write of one kind of client. Seconds."""

    path: str
    length_s: float  # NEVER: no write that began after the fault was ever acknowledged
    began: float  # the last acknowledgement before it
    ended: float


def outage(writes: Sequence[Write], path: str, *, fault: float) -> Outage:
    """The longest gap between acknowledged writes of `path` that reaches past `fault`.

    A run that never recovered has no gap between successes, so the absence of a success after the fault is looked for
    first. A client that tried until the end and was not heard any more was away until then, at least.
    """
    tried = [w for w in writes if w.path == path]
    mine = [w for w in tried if w.acknowledged]
    times = sorted(w.done for w in mine)
    if not any(w.invoked >= fault for w in mine):
        return Outage(path, NEVER, times[-1] if times else fault, NEVER)
    if times[0] > fault:
        times.insert(0, fault)
    times.append(max(w.done for w in tried))
    gaps = [(later - earlier, earlier, later) for earlier, later in itertools.pairwise(times) if later > fault]
    length, began, ended = max(gaps)
    return Outage(path, length, began, ended)


def outage_verdict(found: Sequence[Outage], *, bound_s: float) -> Verdict:
    """Within the bound for every kind of client?"""
    told = ", ".join(f"{o.path} {o.length_s:.2f} s" if o.length_s != NEVER else f"{o.path} for ever" for o in found)
    if not found:
        return Verdict("outage", None, "no client wrote anything")
    worst = max(o.length_s for o in found)
    return Verdict("outage", worst <= bound_s, f"{told} (bound {bound_s:g} s)")
