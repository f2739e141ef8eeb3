"""Random faults for a while, from one seed, under every load there is; afterwards everything is judged."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from chaos.checkers.bank import bank
from chaos.checkers.durability import durability
from chaos.checkers.lists import serializable
from chaos.checkers.outage import outage
from chaos.checkers.primaries import doubly_acknowledged, one_primary
from chaos.checkers.register import linearizable, stale_by
from chaos.drills import DRILLS
from chaos.faults import FAULTS, Fault, Undo
from chaos.history import NEVER, RegisterOp, Verdict
from chaos.inspection import judge_servers, patiently, rows
from chaos.load import Pgbench
from chaos.phases import Band, failovers, roles
from chaos.places import Node
from chaos.results import Result, Told
from chaos.runner import prepare
from chaos.shield import held
from chaos.target import Target, TestbedError
from chaos.wire import WireError
from chaos.workloads import ACCOUNTS, POOLED, PRIMARY, READ_ONLY, SCHEMA, TOTAL, Load, Observed
from chaos.writer import Probe

FINAL_LISTS = "SELECT key, array_to_string(value, ',') FROM flypg_list"
HEAL_S = 30.0
STALE_S = 1.0  # a read may be served by a server that was deposed so long ago (its routers had not heard yet)
QUIET = ("fill-wal", "fill-data", "laggard")  # need a cluster of another kind, or have several victims
ALONE = ("switchover", "restart-agent", "upgrade", "conflict")  # look themselves at what came of them
DRILLED = ("storm-agent", "storm-postgres", "slow-etcd", "crowd", "lose-data", "lose-standby-data", *ALONE)
LOST = ("lose-data", "lose-standby-data")  # never both: the second may have been the last copy
BREAK_ETCD = ("kill-etcd", "freeze-etcd", "slow-etcd")


def faults(*, namespaces: bool) -> list[Fault]:
    """All that a soak may break: what has no schedule of its own and needs no cluster of another kind."""
    known = [f for f in FAULTS.values() if f.name not in QUIET and (namespaces or not f.namespaces)]
    drills = [DRILLS[name] for name in DRILLED]
    return known + [Fault(d.name, d.about, d.begin, "etcd" if d.etcd else d.victim) for d in drills]


def schedule(rng: random.Random, *, namespaces: bool) -> list[Fault]:
    """The next faults: mostly one, sometimes a second one that does not hit the same machine."""
    known = faults(namespaces=namespaces)
    first = rng.choice(known)
    if rng.random() < 0.25 and first.name not in ALONE:
        return [first, rng.choice([f for f in known if _goes_with(first, f)])]
    return [first]


def _goes_with(first: Fault, second: Fault) -> bool:
    apart = second.victim != first.victim and second.name not in ALONE
    return apart and not second.name.startswith(BREAK_ETCD) and not {first.name, second.name}.issuperset(LOST)


def heal_s(chosen: Sequence[Fault]) -> float:
    """Within what time the cluster must be complete again: a copy takes longer."""
    return max([HEAL_S, *(DRILLS[f.name].heal_s for f in chosen if f.name in DRILLED)])


def soak(
    target: Target, *, seed: int, minutes: float, load: int = 0, say: Callable[[str], None] = lambda _: None
) -> Result:
    """Break and mend until the time is over. Every fault is undone before the next one, and at the end.

    `load`: clients of pgbench that work meanwhile."""
    rng = random.Random(f"{seed}/soak")
    target.wait_healthy()
    about = f"random faults for {minutes:g} minutes"
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    result = Result("soak", about, seed, "", 0.0, float("inf"), began=time.monotonic(), when=when)
    with tempfile.TemporaryDirectory(prefix="fpsoak") as directory:
        run = prepare(target)
        wire = patiently(target.primary)
        wire.execute("; ".join(SCHEMA), timeout_s=20)  # one transaction: no standby shows half of it
        wire.close()
        nodes = list(target.nodes.values())
        probe = Probe([node.through_proxy for node in nodes], Path(directory), run=run)
        workloads = Load(
            {
                PRIMARY: [node.through_proxy for node in nodes],
                POOLED: [node.conninfo(node.ports.pooler) for node in nodes],
                READ_ONLY: [node.conninfo(node.ports.read) for node in nodes],
            },
            Path(directory),
            seed,
        )
        pgbench = Pgbench(target.primary, nodes, load) if load else None
        observed = Observed([], [], [])
        result.fault = time.monotonic()
        number = 0
        try:
            while time.monotonic() < result.began + minutes * 60:
                number += 1
                _one(target, result, number, schedule(rng, namespaces=target.network is not None), rng, say)
                if not probe.wait_acknowledged(time.monotonic(), HEAL_S):
                    raise TestbedError(f"no write was acknowledged within {HEAL_S:g} s of fault {number} being undone")
        except TestbedError as error:
            result.verdicts.append(Verdict("healing", False, f"seed {seed}, fault {number}: {error}"))
        finally:
            if pgbench is not None:
                pgbench.stop()
            observed = workloads.stop()
            result.writes = probe.stop()
            result.mended = result.ended = time.monotonic()
    if not result.verdicts:
        result.verdicts.append(Verdict("healing", True, f"complete within {HEAL_S:g} s after each of {number} rounds"))
        result.healed = result.ended
    _judge(target, result, observed, say)
    say(result.line)
    return result


def _one(
    target: Target,
    result: Result,
    number: int,
    chosen: Sequence[Fault],
    rng: random.Random,
    say: Callable[[str], None],
) -> None:
    """One round of a soak."""
    hold_s = rng.uniform(0.5, 8.0)
    undos: list[Undo] = []
    primary, standby = target.primary, rng.choice(target.standbys)
    try:
        for fault in chosen:
            victim: Node = standby if fault.victim == "standby" else primary
            broken = time.monotonic()
            with held():
                undos.append(fault.begin(target, victim))
            result.faults.append(Band(fault.name, broken, NEVER, victim.name))
            time.sleep(rng.uniform(0, 0.5))
        names = " and ".join(fault.name for fault in chosen)
        say(f"{number}: {names} ({primary.name} was primary) for {hold_s:.1f} s")
        time.sleep(hold_s)
    finally:
        with held(), contextlib.ExitStack() as mending:  # each is undone, also when one cannot be
            for undo in undos:
                mending.callback(undo)
        mended = time.monotonic()
        result.faults = [replace(b, ended=min(b.ended, mended)) for b in result.faults]
    for place in (*target.nodes.values(), *target.etcd.values()):
        if place.process is not None and not place.running:
            place.start()
    target.wait_healthy(heal_s(chosen))


def _judge(target: Target, result: Result, observed: Observed, say: Callable[[str], None]) -> None:
    writes = result.writes
    say("judging what clients and servers saw")
    result.outages = [outage(writes, path, fault=result.fault) for path in ("steady", "fresh")]
    result.doubled = len(doubly_acknowledged(writes))
    result.failovers = len(failovers(target.watch.views(), since=result.fault))
    result.errors = dict(Counter(w.error for w in writes if w.error).most_common())
    result.roles = roles(target.watch.reports(), began=result.began, ended=result.ended)
    result.events = [Told(at, e.kind, e.text, e.by) for at, e in target.watch.events(result.began)]
    result.verdicts += [one_primary(writes), bank(observed.reads, accounts=ACCOUNTS, total=TOTAL)]
    result.verdicts.append(_registers(observed.registers))
    try:
        result.durability = durability(writes, rows(target.primary))
        wire = patiently(target.primary)
        final = {int(k): tuple(int(v) for v in t.split(",")) for k, t in wire.execute(FINAL_LISTS, timeout_s=30)}
        wire.close()
        result.verdicts += [result.durability.verdict, serializable(observed.txns, final)]
        if result.healed is not None:
            result.verdicts += judge_servers(target, list(target.nodes.values()))
    except (TestbedError, WireError) as error:
        result.verdicts.append(Verdict("final read", False, str(error)))


def _registers(ops: Sequence[RegisterOp]) -> Verdict:
    """Linearizable; or at least with reads that are stale by no more than the bound."""
    strict = linearizable(ops)
    if strict.ok is not False:
        return strict
    relaxed = linearizable(stale_by(ops, STALE_S))
    return Verdict(
        "register", relaxed.ok, f"with reads up to {STALE_S:g} s stale: {relaxed.text} (else: {strict.text})"
    )
