"""Are list-append transactions serializable? Finds cycles of dependencies and names their class. Pure.

Elle's idea: every appended value is unique, so a list that was read tells in which order its writers committed. Between
transactions that gives edges ww (appended next), wr (read what another appended) and rw (read a list before another
appended to it). A cycle means there is no serial order; which edges it has says what kind of anomaly it is:

    G0 only ww · G1c ww and wr · G-single one rw · G-nonadjacent several rw, no two in a row · G2-item several rw
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.history import Outcome, Txn, Verdict

Element = tuple[int, int]  # key, value
Graph = dict[int, dict[int, str]]  # transaction -> later transaction -> strongest kind of edge
RANK = {"ww": 0, "wr": 1, "rw": 2}


@dataclass(slots=True)
class Analysis:
    """Everything found: class of anomaly -> examples, for people."""

    anomalies: dict[str, list[str]] = field(default_factory=dict)
    edges: int = 0

    def add(self, name: str, example: str) -> None:
        self.anomalies.setdefault(name, []).append(example)


def _writers(txns: Sequence[Txn]) -> tuple[dict[Element, int], set[Element], set[Element]]:
    """Who appended what; what a failed transaction appended; what was appended over in the same transaction."""
    writer: dict[Element, int] = {}
    failed: set[Element] = set()
    between: set[Element] = set()
    for txn in txns:
        last: dict[int, int] = {}
        for step in txn.steps:
            if step.append:
                writer[step.key, step.value] = txn.id
                if txn.outcome is Outcome.FAIL:
                    failed.add((step.key, step.value))
                if step.key in last:
                    between.add((step.key, last[step.key]))
                last[step.key] = step.value
    return writer, failed, between


def _judge_reads(txns: Sequence[Txn], found: Analysis) -> dict[int, tuple[int, ...]]:
    """What reads show on their own; returns the longest list seen of each key."""
    _, failed, between = _writers(txns)
    longest: dict[int, tuple[int, ...]] = {}
    for txn in txns:
        if txn.outcome is not Outcome.OK:
            continue
        mine: dict[int, list[int]] = {}
        for step in txn.steps:
            key, seen = step.key, step.read
            if step.append:
                mine.setdefault(key, []).append(step.value)
                continue
            if key in mine and seen[-len(mine[key]) :] != tuple(mine[key]):
                found.add("internal", f"transaction {txn.id} does not see its own appends to {key}")
            if len(set(seen)) != len(seen):
                found.add("duplicate", f"transaction {txn.id} read a value of {key} twice")
            if failed and any((key, value) in failed for value in seen):
                found.add("G1a", f"transaction {txn.id} read an aborted append to {key}")
            if seen and key not in mine and (key, seen[-1]) in between:
                found.add("G1b", f"transaction {txn.id} read {key} in the middle of another transaction")
            known = longest.get(key, ())
            shorter, longer = sorted((known, seen), key=len)
            if longer[: len(shorter)] != shorter:
                found.add("incompatible order", f"key {key}: {shorter[-3:]} against {longer[-3:]}")
            longest[key] = longer
    return longest


def _graph(txns: Sequence[Txn], longest: dict[int, tuple[int, ...]]) -> Graph:
    writer, _, _ = _writers(txns)
    graph: Graph = {txn.id: {} for txn in txns if txn.outcome is not Outcome.FAIL}

    def edge(one: int | None, two: int | None, kind: str) -> None:
        if one is not None and two is not None and one != two and one in graph and two in graph:
            known = graph[one].get(two)
            if known is None or RANK[kind] < RANK[known]:
                graph[one][two] = kind

    for key, values in longest.items():
        for earlier, later in itertools.pairwise(values):
            edge(writer.get((key, earlier)), writer.get((key, later)), "ww")
    for txn in txns:
        if txn.outcome is not Outcome.OK:
            continue
        touched: set[int] = set()
        for step in txn.steps:
            if not step.append and step.key not in touched:
                values, seen = longest.get(step.key, ()), step.read
                if seen:
                    edge(writer.get((step.key, seen[-1])), txn.id, "wr")
                if len(seen) < len(values):
                    edge(txn.id, writer.get((step.key, values[len(seen)])), "rw")
            touched.add(step.key)
    return graph


def _components(graph: Graph) -> list[list[int]]:
    """Strongly connected components of more than one node (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    components: list[list[int]] = []
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(graph[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, later = work[-1]
            for after in later:
                if after not in index:
                    index[after] = low[after] = len(index)
                    stack.append(after)
                    on_stack.add(after)
                    work.append((after, iter(graph[after])))
                    break
                if after in on_stack:
                    low[node] = min(low[node], index[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    members = [stack.pop()]
                    while members[-1] != node:
                        members.append(stack.pop())
                    on_stack.difference_update(members)
                    if len(members) > 1:
                        components.append(members)
    return components


def _shortest_cycle(graph: Graph, component: Sequence[int]) -> list[int]:
    inside = set(component)
    best: list[int] = []
    for start in component[:50]:
        parent: dict[int, int | None] = {start: None}
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if start in graph[node]:
                path = [node]
                while (before := parent[path[-1]]) is not None:
                    path.append(before)
                if not best or len(path) < len(best):
                    best = path[::-1]
                break
            for after in graph[node]:
                if after in inside and after not in parent:
                    parent[after] = node
                    queue.append(after)
    return best


def classify(kinds: Sequence[str]) -> str:
    """The class of a cycle from its edges, in order."""
    anti = kinds.count("rw")
    if anti == 0:
        return "G0" if set(kinds) == {"ww"} else "G1c"
    if anti == 1:
        return "G-single"
    adjacent = any(kinds[i] == "rw" == kinds[(i + 1) % len(kinds)] for i in range(len(kinds)))
    return "G2-item" if adjacent else "G-nonadjacent"


def analyze(txns: Sequence[Txn]) -> Analysis:
    """Everything that is wrong with a history of list-append transactions."""
    found = Analysis()
    longest = _judge_reads(txns, found)
    graph = _graph(txns, longest)
    found.edges = sum(len(later) for later in graph.values())
    for component in _components(graph):
        cycle = _shortest_cycle(graph, component)
        kinds = [graph[cycle[i]][cycle[(i + 1) % len(cycle)]] for i in range(len(cycle))]
        told = " ".join(f"{txn} -{kind}->" for txn, kind in zip(cycle, kinds, strict=True))
        found.add(classify(kinds), f"{told} {cycle[0]}")
    return found


def lost_appends(txns: Sequence[Txn], final: dict[int, tuple[int, ...]]) -> list[Element]:
    """Acknowledged appends that a final read of every key does not show."""
    there = {(key, value) for key, values in final.items() for value in values}
    return [
        (step.key, step.value)
        for txn in txns
        if txn.outcome is Outcome.OK
        for step in txn.steps
        if step.append and (step.key, step.value) not in there
    ]


def serializable(txns: Sequence[Txn], final: dict[int, tuple[int, ...]] | None = None) -> Verdict:
    """`final`: every list as read at the very end; None when that was not done."""
    if not txns:
        return Verdict("lists", None, "no transactions")
    found = analyze(txns)
    if final is not None:
        for key, value in lost_appends(txns, final):
            found.add("lost", f"append of {value} to {key}")
    if found.anomalies:
        told = "; ".join(f"{len(ex)} × {name}, e.g. {ex[0]}" for name, ex in sorted(found.anomalies.items()))
        return Verdict("lists", False, told)
    return Verdict("lists", True, f"{len(txns)} transactions, {found.edges} dependencies, no cycle")
