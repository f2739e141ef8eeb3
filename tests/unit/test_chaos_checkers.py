"""The judges of drills: histories that are right must pass, and histories that are wrong must fail."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace

import pytest

from chaos.checkers.bank import bank
from chaos.checkers.convergence import converged, differing
from chaos.checkers.cycles import classify
from chaos.checkers.durability import durability
from chaos.checkers.lists import analyze, serializable
from chaos.checkers.outage import outage, outage_verdict
from chaos.checkers.primaries import doubly_acknowledged, one_line, one_primary, parse_history
from chaos.checkers.reads import fresh_reads, gap, staleness
from chaos.checkers.register import linearizable, search, stale_by, zones
from chaos.history import NEVER, BankRead, Outcome, Read, RegisterOp, Step, Txn, Write


def ok(number: int, at: float, server: str = "a", timeline: int = 1, path: str = "steady") -> Write:
    return Write(path, number, at, at + 0.01, Outcome.OK, "", server, timeline)


def missed(number: int, at: float, outcome: Outcome, path: str = "steady") -> Write:
    return Write(path, number, at, at + 1, outcome, "no answer")


DURABILITY = [
    ("all there", [ok(1, 0), ok(2, 1)], [1, 2], True),
    ("an acknowledged write is lost", [ok(1, 0), ok(2, 1)], [1], False),
    ("a write is there twice", [ok(1, 0)], [1, 1], False),
    ("an unknown write may be missing", [ok(1, 0), missed(2, 1, Outcome.UNKNOWN)], [1], True),
    ("an unknown write may be there", [ok(1, 0), missed(2, 1, Outcome.UNKNOWN)], [1, 2], True),
    ("an unknown write may not be there twice", [ok(1, 0), missed(2, 1, Outcome.UNKNOWN)], [1, 2, 2], False),
    ("a refused write may not be there", [ok(1, 0), missed(2, 1, Outcome.FAIL)], [1, 2], False),
    ("a row nobody wrote", [ok(1, 0)], [1, 7], False),
    ("nothing acknowledged proves nothing", [missed(2, 1, Outcome.FAIL)], [], None),
]


@pytest.mark.parametrize(("story", "writes", "rows", "expected"), DURABILITY, ids=[s[0] for s in DURABILITY])
def test_durability(story: str, writes: list[Write], rows: list[int], expected: bool | None) -> None:
    verdict = durability(writes, rows).verdict
    assert verdict.ok is expected, verdict.text


def test_outage_is_the_longest_gap_past_the_fault() -> None:
    writes = [ok(1, 0.0), ok(2, 5.0), ok(3, 5.1), missed(4, 5.2, Outcome.UNKNOWN), ok(5, 6.1), ok(6, 6.2)]
    found = outage(writes, "steady", fault=5.15)
    assert found.length_s == pytest.approx(1.0)  # not the five seconds before the fault
    assert outage_verdict([found], bound_s=2).ok is True
    assert outage_verdict([found], bound_s=0.5).ok is False


def test_a_read_is_as_old_as_the_oldest_write_that_it_should_have_seen() -> None:
    writes = [ok(1, 0.0), ok(2, 1.0), ok(3, 2.0), missed(4, 2.5, Outcome.UNKNOWN), ok(5, 3.0, path="fresh")]
    assert staleness([Read(4.0, 4.1, True, 3, "b")], writes) == 0.0
    assert staleness([Read(4.0, 4.1, True, 1, "b")], writes) == pytest.approx(4.0 - 1.01)
    assert staleness([Read(1.005, 1.1, True, 1, "b")], writes) < 0.01, "it was not acknowledged yet"
    assert staleness([Read(4.0, 4.1, False)], writes) == 0.0, "no answer is no old answer"


def test_reads_must_come_back_and_be_fresh() -> None:
    writes = [ok(1, 0.0), ok(2, 1.0)]
    good = [Read(0.5, 0.6, True, 1, "b"), Read(2.0, 2.1, True, 2, "c")]
    assert fresh_reads(good, writes).ok is True
    assert gap(good) == pytest.approx(1.5)
    assert fresh_reads([*good, Read(15.0, 15.1, True, 2, "b")], writes).ok is False, "nobody was answered meanwhile"
    assert fresh_reads([*good, Read(12.0, 12.1, True, 1, "b")], writes, gap_s=60).ok is False, "eleven seconds old"
    assert fresh_reads([Read(1.0, 1.1, False)], writes).ok is None


def test_a_run_that_never_recovered_has_an_endless_outage() -> None:
    found = outage([ok(1, 0.0), ok(2, 0.1), missed(3, 0.2, Outcome.FAIL)], "steady", fault=0.15)
    assert found.length_s == NEVER
    assert outage_verdict([found], bound_s=60).ok is False
    assert outage([], "steady", fault=0.0).length_s == NEVER


def test_a_client_that_was_not_heard_any_more_was_away_until_it_gave_up() -> None:
    writes = [ok(1, 0.0), ok(2, 1.0), *(missed(10 + i, 2.0 + i, Outcome.UNKNOWN) for i in range(60))]
    assert outage(writes, "steady", fault=0.5).length_s == pytest.approx(62.0 - 1.01)


def test_a_reader_who_was_not_answered_any_more_is_counted() -> None:
    good, writes = [Read(i / 10, i / 10 + 0.01, True, 1, "b") for i in range(10)], [ok(1, 0.0)]
    assert fresh_reads(good, writes).ok is True
    assert fresh_reads([*good, *(Read(i, i + 1, False) for i in range(1, 40))], writes).ok is False


def test_one_primary() -> None:
    good = [ok(1, 0, "a", 1), ok(2, 1, "a", 1), ok(3, 2, "b", 2)]
    assert one_primary(good).ok is True
    assert one_primary([*good, ok(4, 3, "a", 1)]).ok is False, "the old server acknowledged after the new one had"
    assert [w.id for w in doubly_acknowledged([*good, ok(4, 3, "a", 1)])] == [4]
    assert one_primary([*good, ok(4, 3, "c", 2)]).ok is False, "two servers on one timeline"
    assert one_primary([]).ok is None


def test_an_answer_under_way_when_the_new_server_began_is_no_second_primary() -> None:
    late = Write("steady", 9, 1.9, 2.5, Outcome.OK, "", "a", 1)  # began before the new server's first answer
    assert one_primary([ok(1, 0, "a", 1), late, ok(3, 2, "b", 2)]).ok is True


def test_one_line() -> None:
    line = parse_history("1\t0/3000000\tno recovery target specified\n2\t0/5000000\tpromoted\n")
    assert [s.timeline for s in line] == [1, 2]
    assert one_line({"a": (3, line), "b": (3, line), "c": (2, line[:1])}).ok is True
    fork = parse_history("1\t0/2000000\tdead branch\n")
    assert one_line({"a": (3, line), "b": (2, fork)}).ok is False
    assert one_line({"a": (3, line), "b": (4, (line[0],))}).ok is False, "took 4 from 1, while the others took 2"
    assert one_line({}).ok is None


def test_convergence() -> None:
    assert converged({"a": {"t": "1"}, "b": {"t": "1"}}, {"a": "", "b": ""}).ok is True
    assert converged({"a": {"t": "1"}, "b": {"t": "2"}}, {}).ok is False
    assert converged({"a": {"t": "1"}, "b": {}}, {}).ok is False
    assert converged({"a": {"t": "1"}, "b": {"t": "1"}, "c": {"t": "1", "u": "2"}}, {}).ok is False
    assert differing({"a": {"t": "1"}, "b": {"t": "1"}, "c": {"t": "1", "u": "2"}}) == ["u"]
    assert converged({"a": {"t": "1"}, "b": {"t": "1"}}, {"b": "index t_pkey: item order"}).ok is False
    assert converged({"a": {"t": "1"}}, {}).ok is None


def test_bank() -> None:
    good = BankRead(1.0, "a", (40, 60))
    assert bank([good], accounts=2, total=100).ok is True
    assert bank([good, BankRead(2.0, "a", (40, 50))], accounts=2, total=100).ok is False
    assert bank([good, BankRead(2.0, "a", (100,))], accounts=2, total=100).ok is False
    assert bank([good, BankRead(2.0, "a", (-5, 105))], accounts=2, total=100).ok is False
    assert bank([], accounts=2, total=100).ok is None


def w(value: int, invoked: float, done: float) -> RegisterOp:
    return RegisterOp(0, True, value, invoked, done)


def r(value: int | None, invoked: float, done: float) -> RegisterOp:
    return RegisterOp(0, False, value, invoked, done)


REGISTERS = [
    ("read what was written", [w(1, 0, 1), r(1, 2, 3)], True),
    ("a stale read", [w(1, 0, 1), w(2, 2, 3), r(1, 4, 5)], False),
    ("a read during a write may see either", [w(1, 0, 1), w(2, 2, 5), r(1, 3, 4), r(2, 6, 7)], True),
    ("the new value is not unseen again", [w(1, 0, 1), w(2, 2, 9), r(2, 3, 4), r(1, 5, 6)], False),
    ("a lost write", [w(1, 0, 1), r(None, 2, 3)], False),
    ("an unknown write may show late", [w(1, 0, 1), w(2, 2, NEVER), r(1, 3, 4), r(2, 8, 9)], True),
    ("an unknown write may never show", [w(1, 0, 1), w(2, 2, NEVER), r(1, 8, 9)], True),
    ("an unknown write does not show twice", [w(2, 2, NEVER), w(3, 4, 5), r(2, 6, 7), w(4, 8, 9), r(2, 10, 11)], False),
    ("read before it was written", [r(1, 0, 1), w(1, 2, 3)], False),
    ("never written", [w(1, 0, 1), r(7, 2, 3)], False),
]


@pytest.mark.parametrize(("story", "ops", "expected"), REGISTERS, ids=[s[0] for s in REGISTERS])
def test_register(story: str, ops: list[RegisterOp], expected: bool) -> None:
    assert (zones(ops) == "") is expected, zones(ops)
    assert search(ops) is expected
    assert linearizable(ops).ok is expected


def test_a_bounded_staleness_is_told_from_an_unbounded_one() -> None:
    ops = [w(1, 0, 1), w(2, 2, 3), r(1, 3.5, 4)]
    assert linearizable(ops).ok is False
    assert linearizable(stale_by(ops, 1.0)).ok is True
    assert linearizable(stale_by(ops, 0.2)).ok is False


def test_both_register_checkers_agree_on_random_histories() -> None:
    verdicts = {True: 0, False: 0}
    for seed in range(3000):
        rng = random.Random(seed)
        ops, value = [], 0
        for _ in range(rng.randint(2, 8)):
            start = rng.uniform(0, 6)
            end = NEVER if rng.random() < 0.1 else start + rng.uniform(0.1, 4)
            if rng.random() < 0.5:
                value += 1
                ops.append(w(value, start, end))
            elif end != NEVER:
                ops.append(r(rng.choice([None, *range(1, value + 1)]), start, end))
        by_zones = zones(ops) == ""
        assert by_zones is search(ops), (seed, ops)
        verdicts[by_zones] += 1
    assert min(verdicts.values()) > 300, verdicts  # both kinds were really there


def has_an_order(ops: list[RegisterOp]) -> bool:
    """Tries every order of every choice of the operations that may not have happened."""
    sure, maybe = [op for op in ops if op.done != NEVER], [op for op in ops if op.done == NEVER]
    for count in range(len(maybe) + 1):
        for happened in itertools.combinations(maybe, count):
            for order in itertools.permutations([*sure, *happened]):
                value, latest = None, 0.0  # the latest beginning: what ended before it cannot come after it
                for op in order:
                    if op.done < latest or not (op.is_write or op.value == value):
                        break
                    value, latest = op.value if op.is_write else value, max(latest, op.invoked)
                else:
                    return True
    return False


def test_the_search_agrees_with_trying_every_order_of_values_written_again() -> None:
    verdicts = {True: 0, False: 0}
    for seed in range(1200):
        rng = random.Random(seed)
        ops = []
        for _ in range(rng.randint(2, 6)):
            start = rng.uniform(0, 5)
            if rng.random() < 0.5:
                ops.append(w(rng.randint(1, 2), start, NEVER if rng.random() < 0.3 else start + rng.uniform(0.1, 4)))
            else:
                ops.append(r(rng.choice([None, 1, 2]), start, start + rng.uniform(0.1, 4)))
        expected = has_an_order(ops)
        assert search(ops) is expected, (seed, ops)
        verdicts[expected] += 1
    assert min(verdicts.values()) > 200, verdicts


def test_a_search_that_gives_up_says_so() -> None:
    ops = [RegisterOp(0, True, i % 3, 0, 100) for i in range(14)] + [RegisterOp(0, False, 7, 101, 102)]
    assert search(ops, limit=50) is None
    assert linearizable(ops, limit=50).ok is None


def txn(number: int, *steps: Step, outcome: Outcome = Outcome.OK) -> Txn:
    return Txn(number, number, number + 0.5, outcome, steps)


def a(key: int, value: int) -> Step:
    return Step(True, key, value)


def rd(key: int, *seen: int) -> Step:
    return Step(False, key, 0, seen)


LISTS = [
    ("serial", [txn(1, a(1, 1)), txn(2, rd(1, 1), a(1, 2)), txn(3, rd(1, 1, 2))], set()),
    ("an aborted append was read", [txn(1, a(1, 1), outcome=Outcome.FAIL), txn(2, rd(1, 1))], {"G1a"}),
    ("a half-done transaction was read", [txn(1, a(1, 1), a(1, 2)), txn(2, rd(1, 1)), txn(3, rd(1, 1, 2))], {"G1b"}),
    ("its own append was not seen", [txn(1, a(1, 1), rd(1))], {"internal"}),
    ("an append happened twice", [txn(1, a(1, 1)), txn(2, rd(1, 1, 1))], {"duplicate"}),
    ("two histories", [txn(1, a(1, 1)), txn(2, a(1, 2)), txn(3, rd(1, 1)), txn(4, rd(1, 2))], {"incompatible order"}),
    ("write skew", [txn(1, rd(1), a(2, 1)), txn(2, rd(2), a(1, 1)), txn(3, rd(1, 1), rd(2, 1))], {"G2-item"}),
    ("a lost update", [txn(1, rd(1), a(1, 1)), txn(2, rd(1), a(1, 2)), txn(3, rd(1, 1, 2))], {"G-single"}),
    (
        "circular information flow",
        [txn(1, a(1, 1), rd(2, 1)), txn(2, a(2, 1), rd(1, 1))],
        {"G1c"},
    ),
    (
        "dirty write",
        [txn(1, a(1, 1), a(2, 2)), txn(2, a(1, 2), a(2, 1)), txn(3, rd(1, 1, 2), rd(2, 1, 2))],
        {"G0"},
    ),
    ("a list changed under a transaction", [txn(1, rd(1), rd(1, 1)), txn(2, a(1, 1))], {"internal", "G-single"}),
    ("an append replaced what was there", [txn(1, a(1, 1)), txn(2, rd(1, 1), a(1, 2), rd(1, 2))], {"internal"}),
    ("a value that nobody appended", [txn(1, a(1, 1)), txn(2, rd(1, 1, 99))], {"from nowhere"}),
    (
        "an aborted append in the middle",
        [txn(1, a(1, 1), outcome=Outcome.FAIL), txn(2, a(1, 2)), txn(3, rd(1, 1, 2))],
        {"G1a"},
    ),
    ("an unknown append that is there", [txn(1, a(1, 1), outcome=Outcome.UNKNOWN), txn(2, rd(1, 1))], set()),
    ("half a transaction is there", [txn(1, a(1, 1), a(1, 2)), txn(2, rd(1, 2))], {"torn"}),
    ("a transaction is there backwards", [txn(1, a(1, 1), a(1, 2)), txn(2, rd(1, 2, 1))], {"torn"}),
    ("an old snapshot", [txn(1, a(1, 1)), txn(2, a(2, 1)), txn(3, rd(1), rd(2)), txn(4, rd(1, 1), rd(2, 1))], set()),
    (
        "two transactions read in the other order",
        [txn(1, a(1, 1)), txn(2, a(2, 1)), txn(3, rd(1, 1), rd(2)), txn(4, rd(1), rd(2, 1))],
        {"G-nonadjacent"},
    ),
    (
        "a dirty write that a short write skew hides",
        [
            txn(1, a(1, 1), a(3, 2), rd(7), a(8, 1)),
            txn(2, a(1, 2), a(2, 1), rd(8), a(7, 1)),
            txn(3, a(2, 2), a(3, 1)),
            txn(4, rd(1, 1, 2), rd(2, 1, 2), rd(3, 1, 2), rd(7, 1), rd(8, 1)),
        ],
        {"G0"},
    ),
    (
        "a dirty write and a cycle of reads in one part",
        [txn(1, a(1, 1), a(2, 2), rd(4, 1)), txn(2, a(1, 2), a(2, 1), a(4, 1)), txn(3, rd(1, 1, 2), rd(2, 1, 2))],
        {"G0", "G1c"},
    ),
]


@pytest.mark.parametrize(("story", "txns", "expected"), LISTS, ids=[s[0] for s in LISTS])
def test_lists(story: str, txns: list[Txn], expected: set[str]) -> None:
    found = analyze(txns)
    assert expected <= set(found.anomalies), found.anomalies
    assert bool(found.anomalies) is bool(expected), found.anomalies
    assert serializable(txns).ok is (not expected)


def test_a_lost_append_is_found_by_the_final_read() -> None:
    txns = [txn(1, a(1, 1)), txn(2, a(1, 2))]
    assert serializable(txns, {1: (1, 2)}).ok is True
    assert serializable(txns, {1: (2,)}).ok is False


def test_the_final_read_is_judged_like_any_other() -> None:
    txns = [txn(1, a(1, 1)), txn(2, a(1, 2)), txn(3, rd(1, 1, 2)), txn(4, a(1, 3), outcome=Outcome.FAIL)]
    assert serializable(txns, {1: (1, 2)}).ok is True
    assert set(analyze(txns, {1: (2, 1)}).anomalies) == {"incompatible order"}
    assert set(analyze(txns, {1: (1, 2, 3)}).anomalies) == {"G1a"}
    assert set(analyze(txns, {1: (1, 2, 9)}).anomalies) == {"from nowhere"}


def test_values_that_are_not_unique_are_refused() -> None:
    with pytest.raises(ValueError, match="1 was appended to 5 more than once"):
        analyze([txn(1, a(5, 1)), txn(2, a(5, 1))])


def naive_class(txns: list[Txn]) -> bool:
    """Is there any order of all transactions in which each read sees exactly what was appended before it?"""
    for order in itertools.permutations(txns):
        lists: dict[int, tuple[int, ...]] = {}
        for step in (step for one in order for step in one.steps):
            if step.append:
                lists[step.key] = (*lists.get(step.key, ()), step.value)
            elif lists.get(step.key, ()) != step.read:
                break
        else:
            return True
    return False


def test_no_wrong_history_passes_that_trying_every_order_finds_wrong() -> None:
    """And none that has an order fails. The last transaction reads everything, so that all orders are known."""
    verdicts = {True: 0, False: 0}
    for seed in range(1500):
        rng = random.Random(seed)
        lists: dict[int, tuple[int, ...]] = {1: (), 2: ()}
        txns = []
        for number in range(1, 5):
            steps = []
            for part in range(rng.randint(1, 3)):
                key = rng.choice((1, 2))
                if rng.random() < 0.5:
                    value = number * 10 + part
                    at = len(lists[key]) - (1 if lists[key] and rng.random() < 0.2 else 0)
                    lists[key] = (*lists[key][:at], value, *lists[key][at:])
                    steps.append(a(key, value))
                else:
                    seen = lists[key]
                    steps.append(rd(key, *(seen[:-1] if rng.random() < 0.25 else seen)))
            txns.append(txn(number, *steps))
        txns.append(txn(5, rd(1, *lists[1]), rd(2, *lists[2])))
        expected = naive_class(txns)
        assert serializable(txns).ok is expected, (seed, txns, analyze(txns).anomalies)
        verdicts[expected] += 1
    assert min(verdicts.values()) > 200, verdicts


def test_names_of_cycles() -> None:
    assert classify(["ww", "ww"]) == "G0"
    assert classify(["ww", "wr"]) == "G1c"
    assert classify(["ww", "rw"]) == "G-single"
    assert classify(["rw", "rw"]) == "G2-item"
    assert classify(["rw", "wr", "rw", "wr"]) == "G-nonadjacent"


def test_searches_of_many_keys_share_one_limit() -> None:
    ops = [replace(op, key=key) for key in range(50) for op in [w(i % 3, 0, 100) for i in range(14)] + [r(7, 101, 102)]]
    began = time.process_time()
    verdict = linearizable(ops, limit=20_000)
    assert verdict.ok is None and "for 50 keys (0, 1, 2, 3, 4)" in verdict.text, verdict.text
    assert time.process_time() - began < 5


def test_a_hundred_thousand_operations_of_each_kind_are_judged_in_seconds() -> None:
    began = time.monotonic()
    size = 100_000
    writes = [ok(i, i * 0.01, "a" if i < size // 2 else "b", 1 if i < size // 2 else 2) for i in range(size)]
    assert durability(writes, range(size)).verdict.ok
    assert one_primary(writes).ok
    assert outage(writes, "steady", fault=500.0).length_s < 1

    rng, ops, now = random.Random(1), [], 0.0
    for i in range(size // 2):  # five keys, a write and a read of each turn overlapping a little
        now += 1
        ops.append(RegisterOp(i % 5, True, i, now, now + 1.5))
        ops.append(RegisterOp(i % 5, False, i, now + 0.5, now + 1.6))
    assert linearizable(ops).ok
    assert all(search([op for op in ops if op.key == key], limit=10_000_000) for key in range(5))

    lists: dict[int, tuple[int, ...]] = {}
    txns = []
    for i in range(size // 2):
        key = i // 40  # short lists: every read carries its whole list
        other = rng.randrange(max(0, key - 50), key + 1)
        txns.append(txn(i, a(key, i), rd(other, *(lists.get(other, ()) + ((i,) if other == key else ())))))
        lists[key] = (*lists.get(key, ()), i)
    assert serializable(txns, lists).ok
    assert time.monotonic() - began < 30 * 4  # bound 30 s on a quiet machine
