"""Did at most one server acknowledge writes at a time, and is the history of timelines one line? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaos.history import Verdict, Write


def doubly_acknowledged(writes: Sequence[Write]) -> list[Write]:
    """Acknowledged writes that began when a server of a later timeline had already acknowledged one."""
    acknowledged = [w for w in writes if w.acknowledged and w.timeline]
    first: dict[int, float] = {}
    for w in acknowledged:
        first[w.timeline] = min(w.done, first.get(w.timeline, w.done))
    overtaken: dict[int, float] = {}  # timeline -> when a later one first acknowledged
    earliest = float("inf")
    for timeline in sorted(first, reverse=True):
        overtaken[timeline] = earliest
        earliest = min(earliest, first[timeline])
    return [w for w in acknowledged if w.invoked > overtaken[w.timeline]]


def one_primary(writes: Sequence[Write]) -> Verdict:
    """One server per timeline, and never two that acknowledge at the same time."""
    servers: dict[int, set[str]] = {}
    for w in writes:
        if w.acknowledged and w.timeline:
            servers.setdefault(w.timeline, set()).add(w.server)
    shared = {t: names for t, names in servers.items() if len(names) > 1}
    if shared:
        timeline, names = min(shared.items())
        return Verdict("one primary", False, f"on timeline {timeline} several servers acknowledged: {sorted(names)}")
    doubled = doubly_acknowledged(writes)
    if doubled:
        w = doubled[0]
        text = f"{len(doubled)} writes acknowledged by a deposed server, first {w.id} by {w.server}"
        return Verdict("one primary", False, f"{text} on timeline {w.timeline}")
    if not servers:
        return Verdict("one primary", None, "no acknowledged write names its server")
    told = ", ".join(f"{next(iter(names))} (timeline {t})" for t, names in sorted(servers.items()))
    return Verdict("one primary", True, f"acknowledged one after another by {told}")


@dataclass(frozen=True, slots=True)
class Switch:
    """A line of a timeline history file: this history left timeline `timeline` at `lsn`."""

    timeline: int
    lsn: int


def parse_history(text: str) -> tuple[Switch, ...]:
    """The switches of a `.history` file, oldest first. Raises ValueError for a line that is none."""
    switches = []
    for line in text.splitlines():
        fields = line.split("#", 1)[0].split()
        if fields:
            high, _, low = fields[1].partition("/")
            switches.append(Switch(int(fields[0]), (int(high, 16) << 32) | int(low, 16)))
    return tuple(switches)


def one_line(histories: Mapping[str, tuple[int, tuple[Switch, ...]]]) -> Verdict:
    """Is every node's history a beginning of the longest one? `histories`: node -> (its timeline, its switches)."""
    if not histories:
        return Verdict("one line", None, "no node told its history")
    longest_node, (timeline, switches) = max(histories.items(), key=lambda item: (item[1][0], len(item[1][1])))
    line = (*(s.timeline for s in switches), timeline)
    for node, (its, own) in sorted(histories.items()):
        if own != switches[: len(own)]:
            return Verdict(
                "one line", False, f"{node} left the common history: {own} against {switches} of {longest_node}"
            )
        if its not in line:
            return Verdict("one line", False, f"{node} is on timeline {its}, which {longest_node} never was on")
    return Verdict("one line", True, "timelines " + " → ".join(map(str, line)))
