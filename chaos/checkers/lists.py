"""Are list-append transactions serializable? Finds cycles of dependencies and names their class. Pure.

Elle's idea: every appended value is unique, so a list that was read tells in which order its writers committed. Between
transactions that gives edges ww (appended next), wr (read what another appended) and rw (read a list before another
appended to it). A cycle means there is no serial order; which edges it has says what kind of anomaly it is
(chaos/checkers/cycles.py). What needs no cycle to be wrong:

    internal            a transaction contradicts itself: its own appends are not there, or a list changed meanwhile
    G1a                 what a failed transaction appended was seen
    G1b                 what a transaction appended over itself was seen as the end of a list
    torn                the appends of one transaction are not there together, in their order
    from nowhere        a value that nobody appended
    duplicate           a value twice in one list
    incompatible order  two lists of which neither is the beginning of the other
    lost                acknowledged, and not there in the end
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chaos.checkers.cycles import Graph, Search, classify
from chaos.history import NEVER, Outcome, Step, Txn, Verdict

Element = tuple[int, int]  # key, value
FINAL = -1  # number of the read that ends a history


@dataclass(slots=True)
class Analysis:
    """Everything found: class of anomaly -> examples, for people."""

    anomalies: dict[str, list[str]] = field(default_factory=dict)
    edges: int = 0

    def add(self, name: str, example: str) -> None:
        self.anomalies.setdefault(name, []).append(example)


@dataclass(slots=True)
class _Appends:
    """What transactions appended, whatever became of them."""

    writer: dict[Element, int] = field(default_factory=dict)
    failed: set[Element] = field(default_factory=set)
    before: dict[Element, int] = field(default_factory=dict)  # appended just before it by the same transaction
    between: set[Element] = field(default_factory=set)  # appended over in the same transaction


def _appends(txns: Sequence[Txn]) -> _Appends:
    """Raises ValueError when a value was appended to a list by two transactions: nothing could be told then."""
    found = _Appends()
    for txn in txns:
        last: dict[int, int] = {}
        for step in txn.steps:
            if not step.append:
                continue
            element = step.key, step.value
            if element in found.writer:
                raise ValueError(f"{step.value} was appended to {step.key} more than once: values must be unique")
            found.writer[element] = txn.id
            if txn.outcome is Outcome.FAIL:
                found.failed.add(element)
            if step.key in last:
                found.before[element] = last[step.key]
                found.between.add((step.key, last[step.key]))
            last[step.key] = step.value
    return found


def _judge_txn(txn: Txn, appends: _Appends, longest: dict[int, tuple[int, ...]], found: Analysis) -> None:
    """What the reads of one transaction show on their own; updates the longest list seen of each key."""
    mine: dict[int, tuple[int, ...]] = {}  # appended since the key was last read
    before: dict[int, tuple[int, ...]] = {}  # the list as it was last read
    for step in txn.steps:
        key, seen = step.key, step.read
        if step.append:
            mine[key] = (*mine.get(key, ()), step.value)
            continue
        own = mine.get(key, ())
        if key in before and seen != before[key] + own:
            found.add("internal", f"transaction {txn.id} read {key} twice: {before[key][-3:]}, then {seen[-3:]}")
        elif own and seen[-len(own) :] != own:
            found.add("internal", f"transaction {txn.id} does not see its own appends to {key}")
        before[key] = seen
        if seen and not own and (key, seen[-1]) in appends.between and appends.writer[key, seen[-1]] != txn.id:
            found.add("G1b", f"transaction {txn.id} read {key} in the middle of another transaction")
        mine.pop(key, None)
        known = longest.get(key, ())
        if seen[: len(known)] == known:
            _judge_values(txn, key, seen, len(known), appends, found)
            longest[key] = seen
        elif known[: len(seen)] != seen:
            found.add("incompatible order", f"key {key}: {known[-3:]} against {seen[-3:]}")
            _judge_values(txn, key, seen, 0, appends, found)
            longest[key] = max(known, seen, key=len)


def _judge_values(txn: Txn, key: int, seen: tuple[int, ...], since: int, appends: _Appends, found: Analysis) -> None:
    """Where the values from place `since` on come from; the ones before were looked at already."""
    if since < len(seen) and len(set(seen)) != len(seen):
        found.add("duplicate", f"transaction {txn.id} read a value of {key} twice")
    for at in range(since, len(seen)):
        value = seen[at]
        if (before := appends.before.get((key, value))) is not None and (at == 0 or seen[at - 1] != before):
            found.add("torn", f"in {key}, {value} is not just after {before}, as its transaction appended them")
        if (key, value) in appends.failed:
            found.add("G1a", f"transaction {txn.id} read an aborted append to {key}: {value}")
        elif (key, value) not in appends.writer:
            found.add("from nowhere", f"transaction {txn.id} read {value} in {key}, which nobody appended")


def _graph(txns: Sequence[Txn], appends: _Appends, longest: Mapping[int, tuple[int, ...]]) -> Graph:
    writer = appends.writer
    graph: Graph = {txn.id: {} for txn in txns if txn.outcome is not Outcome.FAIL}

    def edge(one: int | None, two: int | None, kind: str) -> None:
        if one is not None and two is not None and one != two and one in graph and two in graph:
            graph[one].setdefault(two, set()).add(kind)

    for key, values in longest.items():
        for earlier, later in itertools.pairwise(values):
            edge(writer.get((key, earlier)), writer.get((key, later)), "ww")
    for txn in txns:
        if txn.outcome is not Outcome.OK:
            continue
        appended: set[int] = set()
        for step in txn.steps:
            if step.append:
                appended.add(step.key)
            elif step.key not in appended:
                values, seen = longest.get(step.key, ()), step.read
                if seen:
                    edge(writer.get((step.key, seen[-1])), txn.id, "wr")
                if len(seen) < len(values):
                    edge(txn.id, writer.get((step.key, values[len(seen)])), "rw")
    return graph


def analyze(txns: Sequence[Txn], final: Mapping[int, tuple[int, ...]] | None = None) -> Analysis:
    """Everything that is wrong with a history of list-append transactions. `final`: every list at the very end."""
    found = Analysis()
    if final is not None:
        for key, value in lost_appends(txns, final):
            found.add("lost", f"append of {value} to {key}")
        steps = tuple(Step(False, key, 0, values) for key, values in sorted(final.items()))
        txns = [*txns, Txn(FINAL, NEVER, NEVER, Outcome.OK, steps)]
    appends = _appends(txns)
    longest: dict[int, tuple[int, ...]] = {}
    for txn in txns:
        if txn.outcome is Outcome.OK:
            _judge_txn(txn, appends, longest, found)
    graph = _graph(txns, appends, longest)
    found.edges = sum(len(later) for later in graph.values())
    for cycle in Search(graph).all():
        told = " ".join(f"{txn} -{kind}->" for txn, kind in cycle)
        found.add(classify([kind for _, kind in cycle]), f"{told} {cycle[0][0]}")
    return found


def lost_appends(txns: Sequence[Txn], final: Mapping[int, tuple[int, ...]]) -> list[Element]:
    """Acknowledged appends that a final read of every key does not show."""
    there = {(key, value) for key, values in final.items() for value in values}
    return [
        (step.key, step.value)
        for txn in txns
        if txn.outcome is Outcome.OK
        for step in txn.steps
        if step.append and (step.key, step.value) not in there
    ]


def serializable(txns: Sequence[Txn], final: Mapping[int, tuple[int, ...]] | None = None) -> Verdict:
    """`final`: every list as read at the very end; None when that was not done."""
    if not txns:
        return Verdict("lists", None, "no transactions")
    found = analyze(txns, final)
    if found.anomalies:
        told = "; ".join(f"{len(ex)} × {name}, e.g. {ex[0]}" for name, ex in sorted(found.anomalies.items()))
        return Verdict("lists", False, told)
    return Verdict("lists", True, f"{len(txns)} transactions, {found.edges} dependencies, no cycle")
