"""Cycles of dependencies between transactions, and the class of anomaly that each is. Pure.

    G0 only ww · G1c ww and wr · G-single one rw · G-nonadjacent several rw, no two in a row · G2-item several rw

A part of the graph may hold cycles of several classes. G0 and G1c are looked for in the graph without the weaker edges,
so that a short cycle of a milder class hides none of them; of the milder ones each part tells its worst.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

KINDS = ("ww", "wr", "rw")
UNKNOWN = "?"
Graph = dict[int, dict[int, set[str]]]  # transaction -> later transaction -> kinds of edges
Cycle = list[tuple[int, str]]  # a transaction, and the edge from it to the next
STARTS = 50  # edges of a part from which a cycle is looked for: the shortest that they give is told
STEPS = 3_000_000  # edges looked at in all: a graph that is wrong all over need not be told completely


def classify(kinds: Sequence[str]) -> str:
    """The class of a cycle from its edges, in order."""
    if UNKNOWN in kinds:
        return "cycle of some class"
    anti = kinds.count("rw")
    if anti == 0:
        return "G0" if set(kinds) == {"ww"} else "G1c"
    if anti == 1:
        return "G-single"
    adjacent = any(kinds[i] == "rw" == kinds[(i + 1) % len(kinds)] for i in range(len(kinds)))
    return "G2-item" if adjacent else "G-nonadjacent"


def components(graph: Graph, kinds: Sequence[str]) -> list[list[int]]:
    """Strongly connected components of more than one node, by edges of these kinds (Tarjan, without recursion)."""
    wanted = set(kinds)

    def after_of(node: int) -> Iterator[int]:
        return (after for after, has in graph[node].items() if not wanted.isdisjoint(has))

    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[list[int]] = []
    for root in graph:
        if root in index:
            continue
        work = [(root, after_of(root))]
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
                    work.append((after, after_of(after)))
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
                        found.append(members)
    return found


class Search:
    """Looks for cycles with a budget of steps that all searches share."""

    def __init__(self, graph: Graph, steps: int = STEPS) -> None:
        self._graph = graph
        self._left = steps

    def all(self) -> list[Cycle]:
        """One cycle, a short one, of every class in every part of the graph that has one."""
        found: list[Cycle] = []
        for part in components(self._graph, ("ww",)):
            found += self._shortest(part, "ww", lambda last, kind: kind == "ww")
        for part in components(self._graph, ("ww", "wr")):
            found += self._shortest(part, "wr", lambda last, kind: kind != "rw")
        for part in components(self._graph, KINDS):
            inside = set(part)
            told = any(cycle[0][0] in inside for cycle in found)
            worst = self._shortest(part, "rw", lambda last, kind: kind != "rw")
            worst = worst or self._shortest(part, "rw", lambda last, kind: (last, kind) != ("rw", "rw"))
            if not worst and not told:
                worst = self._shortest(part, "rw", lambda last, kind: True)
                worst = worst or [[(part[0], UNKNOWN)]]  # out of steps: that there is a cycle is known all the same
            found += worst
        return found

    def _shortest(self, part: Sequence[int], first: str, may: Callable[[str, str], bool]) -> list[Cycle]:
        """The shortest cycle that begins with an edge of kind `first`, `may` say which edge may follow which."""
        inside, best, tried = set(part), list[Cycle](), 0
        for one in part:
            for two, kinds in self._graph[one].items():
                if first not in kinds or two not in inside:
                    continue
                if self._left <= 0 or (best and tried >= STARTS):
                    return best
                tried += 1
                cycle = self._back(one, two, first, inside, may)
                if cycle and (not best or len(cycle) < len(best[0])):
                    best = [cycle]
                    if len(cycle) == 2:
                        return best
        return best

    def _back(self, one: int, two: int, first: str, inside: set[int], may: Callable[[str, str], bool]) -> Cycle:
        """The shortest way from `two` back to `one`, the edge from one to two before it; [] when there is none."""
        start = (two, first)
        parent: dict[tuple[int, str], tuple[int, str] | None] = {start: None}
        queue = deque([start])
        while queue and self._left > 0:
            here = queue.popleft()
            node, last = here
            for after, kinds in self._graph[node].items():
                self._left -= 1
                if after not in inside:
                    continue
                for kind in KINDS:
                    if kind not in kinds or not may(last, kind):
                        continue
                    if after == one:
                        if may(kind, first):
                            return self._told(one, first, here, kind, parent)
                        continue
                    # Only whether the last edge was rw matters for what may follow.
                    state = (after, kind if kind == "rw" else "ww")
                    if state not in parent:
                        parent[state] = here
                        queue.append(state)
        return []

    def _told(
        self,
        one: int,
        first: str,
        end: tuple[int, str],
        closing: str,
        parent: dict[tuple[int, str], tuple[int, str] | None],
    ) -> Cycle:
        way = [end]
        while (before := parent[way[-1]]) is not None:
            way.append(before)
        way.reverse()
        nodes = [node for node, _ in way]
        cycle: Cycle = [(one, first)]
        for at, node in enumerate(nodes[:-1]):
            wanted_rw = way[at + 1][1] == "rw"
            kinds = self._graph[node][nodes[at + 1]]
            cycle.append((node, "rw" if wanted_rw else next(k for k in KINDS if k in kinds)))
        return [*cycle, (nodes[-1], closing)]
