"""Does each key behave as one register, read and written at one instant per operation? Pure.

Two ways. `zones` (Gibbons and Korach) decides in n log n when every value is written once, which the drills see to.
`search` (Wing and Gong, with Lowe's memory of states seen) decides any history, at a cost that grows with the number of
operations under way at the same time; it gives up after `limit` steps and says so.

An operation without a clear answer returns at infinity: it may take effect at any time after it began, or never. Reads
without an answer say nothing and are left out by the caller.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from chaos.history import NEVER, RegisterOp, Verdict

LIMIT = 8_000_000  # steps of a search: some ten seconds


def zones(ops: Sequence[RegisterOp], initial: int | None = None) -> str:
    """Why the operations on one key are not linearizable; "" when they are. Each value is written at most once."""
    writes: dict[int | None, tuple[float, float]] = {initial: (-NEVER, -NEVER)}
    reads: dict[int | None, list[tuple[float, float]]] = {}
    for op in ops:
        if op.is_write:
            if op.value in writes:
                raise ValueError(f"value {op.value} was written twice: use search()")
            writes[op.value] = (op.invoked, op.done)
        else:
            reads.setdefault(op.value, []).append((op.invoked, op.done))
    forward: list[tuple[float, float, int | None]] = []
    backward: list[tuple[float, float, int | None]] = []
    for value in reads:
        if value not in writes:
            return f"read {value}, which was never written"
    for value, (invoked, done) in writes.items():
        mine = reads.get(value, [])
        if done == NEVER and not mine:
            continue  # never seen: it need not have happened
        if any(end < invoked for _, end in mine):
            return f"read {value} before its write began"
        first_end = min([done] + [end for _, end in mine])
        last_start = max([invoked] + [start for start, _ in mine])
        zone = (min(first_end, last_start), max(first_end, last_start), value)
        (forward if first_end < last_start else backward).append(zone)
    forward.sort(key=lambda zone: zone[:2])
    for one, two in itertools.pairwise(forward):
        if one[1] > two[0]:
            return f"{one[2]} and {two[2]} would have to be current at the same time"
    starts = [zone[0] for zone in forward]
    for low, high, value in backward:
        at = bisect_right(starts, low) - 1
        if at >= 0 and forward[at][0] < low and high < forward[at][1]:
            return f"{value} came and went while {forward[at][2]} was current throughout"
    return ""


class _Events:
    """Calls and returns in order of time, as a doubly linked list from which operations can be lifted and put back."""

    def __init__(self, ops: Sequence[RegisterOp]) -> None:
        events = sorted(
            [(op.invoked, 0, i) for i, op in enumerate(ops)] + [(op.done, 1, i) for i, op in enumerate(ops)]
        )
        self.head = size = len(events)
        self.is_return = [kind == 1 for _, kind, _ in events]
        self.op = [i for _, _, i in events]
        self.next = [*range(1, size), -1, 0 if size else -1]
        self.prev = [size, *range(size - 1)] if size else []
        self.returns = [0] * len(ops)
        for at in range(size):
            if self.is_return[at]:
                self.returns[self.op[at]] = at

    def _out(self, at: int) -> None:
        before, after = self.prev[at], self.next[at]
        self.next[before] = after
        if after != -1:
            self.prev[after] = before

    def _back(self, at: int) -> None:
        before, after = self.prev[at], self.next[at]
        self.next[before] = at
        if after != -1:
            self.prev[after] = at

    def lift(self, call: int) -> None:
        self._out(call)
        self._out(self.returns[self.op[call]])

    def put_back(self, call: int) -> None:
        self._back(self.returns[self.op[call]])
        self._back(call)


# Which operations have their place: all answered ones below the first number, those in the bits of the second (from the
# first number on), and the unanswered ones in the bits of the third. Few operations are under way at a time, so this
# stays small.
Taken = tuple[int, int, int]


def _with_answered(taken: Taken, number: int) -> Taken:
    low, window, unanswered = taken
    window |= 1 << (number - low)
    while window & 1:
        window >>= 1
        low += 1
    return low, window, unanswered


def _with_unanswered(taken: Taken, number: int) -> Taken:
    low, window, unanswered = taken
    return low, window, unanswered | (1 << number)


def search(ops: Sequence[RegisterOp], initial: int | None = None, *, limit: int = LIMIT) -> bool | None:
    """Is there an order of the operations on one key that a register could have had? None: gave up at `limit` steps."""
    return _search(ops, initial, limit)[0]


def _search(ops: Sequence[RegisterOp], initial: int | None, limit: int) -> tuple[bool | None, int]:
    """The answer, and the steps that it took."""
    if not ops:
        return True, 0
    ops = sorted(ops, key=lambda op: op.invoked)
    numbers: list[int] = []  # each operation's number among the answered, or among the unanswered
    answered = unanswered = 0
    for op in ops:
        numbers.append(unanswered if op.done == NEVER else answered)
        unanswered, answered = (unanswered + 1, answered) if op.done == NEVER else (unanswered, answered + 1)
    events = _Events(ops)
    state, taken = initial, (0, 0, 0)
    wanted = Counter(op.value for op in ops if not op.is_write)  # reads that have no place yet, by what they saw
    seen: set[tuple[Taken, int | None]] = set()
    trail: list[tuple[int, int | None, Taken]] = []
    at, reading = events.next[events.head], True
    for step in range(limit):
        if events.next[events.head] == -1:
            return True, step
        index = events.op[at]
        op = ops[index]
        if not events.is_return[at]:
            fits = op.is_write is not reading and (op.is_write or op.value == state)
            if fits and op.done == NEVER and not wanted[op.value]:
                fits = False  # it need not have happened, and nobody saw it
            if fits:
                number = numbers[index]
                then = _with_unanswered(taken, number) if op.done == NEVER else _with_answered(taken, number)
                if op.is_write:
                    fits = (then, op.value) not in seen
                    seen.add((then, op.value))
            if fits:
                trail.append((at, state, taken))
                taken, state = then, op.value
                wanted[op.value] -= not op.is_write
                events.lift(at)
                at, reading = events.next[events.head], True
            else:
                at = events.next[at]
        elif op.done == NEVER:
            return True, step  # only operations that need not have happened are left
        elif reading:
            at, reading = events.next[events.head], False
        else:
            while trail:
                at, state, taken = trail.pop()
                events.put_back(at)
                undone = ops[events.op[at]]
                if undone.is_write:
                    at = events.next[at]
                    break
                wanted[undone.value] += 1  # a read that fits takes nothing from anybody: it has its place for good
            else:
                return False, step
    return None, limit


def stale_by(ops: Sequence[RegisterOp], seconds: float) -> list[RegisterOp]:
    """The same history if reads may show what was current up to `seconds` before they began."""
    return [op if op.is_write else replace(op, invoked=op.invoked - seconds) for op in ops]


def linearizable(ops: Sequence[RegisterOp], *, limit: int = LIMIT) -> Verdict:
    """Judge every key on its own: a history is linearizable when each of its keys is. `limit`: of all searches."""
    keys: dict[int, list[RegisterOp]] = {}
    for op in ops:
        keys.setdefault(op.key, []).append(op)
    undecided = []
    for key, mine in sorted(keys.items()):
        written = [op.value for op in mine if op.is_write]
        if len(set(written)) == len(written) and None not in written:
            if why := zones(mine):
                return Verdict("register", False, f"key {key}: {why}")
            continue
        found, steps = _search(mine, None, limit)
        limit -= steps
        if found is None:
            undecided.append(key)
        elif not found:
            return Verdict("register", False, f"key {key}: no order of its {len(mine)} operations explains the reads")
    if not ops:
        return Verdict("register", None, "no operations")
    if undecided:
        told = ", ".join(map(str, undecided[:5]))
        return Verdict("register", None, f"not decided within the limit for {len(undecided)} keys ({told})")
    return Verdict("register", True, f"{len(ops)} operations on {len(keys)} keys are linearizable")
