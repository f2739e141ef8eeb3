"""Run a drill: load, break, watch, mend, judge."""

from __future__ import annotations

import random
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos.checkers.durability import durability
from chaos.checkers.outage import outage, outage_verdict
from chaos.checkers.primaries import doubly_acknowledged, one_primary
from chaos.checkers.reads import GAP_S, STALE_S, fresh_reads
from chaos.drills import Drill
from chaos.faults import nothing
from chaos.history import Verdict, Write
from chaos.inspection import judge_servers, patiently, rows
from chaos.load import Pgbench
from chaos.phases import failovers, phases, roles
from chaos.places import Node
from chaos.reader import Reader
from chaos.results import Result, Told
from chaos.shield import held
from chaos.target import Target, TestbedError
from chaos.wire import WireError
from chaos.writer import Probe, schema

BASELINE_S = 1.5  # undisturbed writes before anything is broken
CALM_S = 1.0  # and after everything is mended
INSIDE_IDS = 10_000_000_000  # a second probe counts from here
POOLED_IDS = 20_000_000_000
POOLED_SLOWER = 8  # clients of the pooler write so much more rarely where they are not what is judged


def prepare(target: Target) -> int:
    """An empty table for the probe, and the run whose rows it takes. Raises TestbedError when the primary does not take
    it."""
    run = secrets.randbits(62)
    until = time.monotonic() + 20
    while True:
        try:
            wire = patiently(target.primary)
            try:
                wire.execute(schema(run), timeout_s=20)
                return run
            finally:
                wire.close()
        except WireError as error:
            if time.monotonic() > until:
                raise TestbedError(f"the probe's table cannot be made: {error}") from error
            time.sleep(0.2)


def victim_of(target: Target, drill: Drill, rng: random.Random) -> Node | None:
    """Whom it hits; None: nobody in particular."""
    if drill.victim == "primary":
        return target.primary
    return rng.choice(target.standbys) if drill.victim == "standby" else None


def asked(target: Target, drill: Drill, victim: Node | None) -> list[Node]:
    """The nodes through which clients connect: all but the victim, as clients of a lost machine go elsewhere."""
    if drill.through_victim and victim is not None:
        return [victim]
    return [node for node in target.nodes.values() if node is not victim] or list(target.nodes.values())


def run_drill(
    target: Target, drill: Drill, *, seed: int = 1, load: int = 0, say: Callable[[str], None] = lambda _: None
) -> Result:
    """Run one drill against a healthy cluster and mend everything again. Never leaves the fault behind.

    `load`: clients of pgbench that work meanwhile."""
    rng = random.Random(f"{seed}/{drill.name}")
    target.wait_healthy()
    victim = victim_of(target, drill, rng)
    name = victim.name if victim is not None else ""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    result = Result(drill.name, drill.about, seed, name, drill.bar_s, drill.limit_s, began=time.monotonic(), when=when)
    with tempfile.TemporaryDirectory(prefix="fpprobe") as directory:
        run = prepare(target)
        nodes = asked(target, drill, victim)
        probes = [Probe([node.through_proxy for node in nodes], Path(directory), run=run)]
        if drill.inside and victim is not None and target.network is not None:
            before = target.network.inside(victim.name)
            inside = Probe(
                [victim.direct], Path(directory), run=run, prefix="inside ", first_id=INSIDE_IDS, before=before
            )
            probes.append(inside)
        poolers = [node.conninfo(node.ports.pooler) for node in nodes]
        pace = 1 if drill.pooled or not set(drill.paths) & set(probes[0].paths) else POOLED_SLOWER
        probes.append(Probe(poolers, Path(directory), run=run, prefix="pooled ", first_id=POOLED_IDS, slower=pace))
        pgbench = Pgbench(target.primary, nodes, load) if load else None
        reader = Reader([node.conninfo(node.ports.read) for node in nodes], Path(directory))
        try:
            break_and_mend(target, drill, victim, probes[0], result, rng, say)
        except TestbedError as error:
            result.verdicts.append(Verdict("drill", False, str(error)))
        finally:
            if pgbench is not None:
                pgbench.stop()
            for probe in probes:
                result.writes += probe.stop()
            result.reads = reader.stop()
    result.ended = time.monotonic()
    _judge(target, drill, result, say)
    say(result.line)
    return result


def break_and_mend(
    target: Target,
    drill: Drill,
    victim: Node | None,
    probe: Probe,
    result: Result,
    rng: random.Random,
    say: Callable[[str], None],
) -> None:
    if not probe.wait_acknowledged(time.monotonic(), 20):
        raise TestbedError("no write was acknowledged before anything was broken")
    time.sleep(BASELINE_S + rng.random() * 0.5)
    say(f"{drill.name}: {drill.about}" + (f" ({victim.name})" if victim is not None else ""))
    undo = nothing
    try:
        result.fault = time.monotonic()
        with held():
            undo = drill.begin(target, victim if victim is not None else target.primary)
        result.broken = time.monotonic()
        back = not drill.blocked and probe.wait_acknowledged(result.broken, drill.limit_s + 20)
        say(f"{drill.name}: " + ("writes are acknowledged" if back else "no write is acknowledged"))
        time.sleep(max(0.0, result.fault + drill.hold_s - time.monotonic()))
    finally:
        with held():
            undo()
        result.mended = time.monotonic()
    target.wait_healthy(drill.heal_s)
    result.healed = time.monotonic()
    if not probe.wait_acknowledged(result.healed, 20):
        raise TestbedError("no write was acknowledged after everything was mended")
    time.sleep(CALM_S)


def _judge(target: Target, drill: Drill, result: Result, say: Callable[[str], None]) -> None:
    if not result.fault:
        return
    writes = result.writes
    watch = target.watch
    since = result.began - 1
    views = watch.views()
    told = failovers(views, since=result.fault)
    result.failovers = len(told)
    result.outages = [outage(writes, path, fault=result.fault) for path in drill.paths]
    result.doubled = len(doubly_acknowledged(writes))
    result.errors = dict(Counter(w.error for w in writes if w.error).most_common())
    outside = [w for w in writes if w.path in drill.paths]
    result.phases = phases(views, watch.promises(since), watch.reports(since), outside, fault=result.fault)
    result.roles = roles(watch.reports(), began=result.began, ended=result.ended)
    result.events = [Told(at, e.kind, e.text, e.by) for at, e in watch.events(since)]
    result.verdicts.append(outage_verdict(result.outages, bound_s=drill.limit_s))
    right = " or ".join(map(str, drill.failovers))
    count = Verdict("failovers", len(told) in drill.failovers, f"{len(told)} (right: {right})")
    result.verdicts += [one_primary(writes), count]
    if drill.pooled:
        result.verdicts.append(_pooled(writes))
    # While nobody may write, who lags cannot catch up: what it answers in the moment of the failover is as old as that.
    stale_s = STALE_S + (round(result.mended - result.fault) if drill.blocked else 0)
    result.verdicts.append(fresh_reads(result.reads, writes, gap_s=max(GAP_S, drill.limit_s), stale_s=stale_s))
    if drill.blocked:
        result.verdicts.append(_blocked(writes, result))
    if result.healed is not None:
        text = f"complete again {result.healed - result.mended:.1f} s after all was mended (bound {drill.heal_s:g} s)"
        result.verdicts.append(Verdict("healing", True, text))
    try:
        say(f"{drill.name}: looking for every one of {sum(w.acknowledged for w in writes)} acknowledged writes")
        result.durability = durability(writes, rows(target.primary))
        result.verdicts.append(result.durability.verdict)
        if result.healed is not None:
            result.verdicts += judge_servers(target, _readable(target))
    except (TestbedError, WireError) as error:
        result.verdicts.append(Verdict("final read", False, str(error)))


def _pooled(writes: Sequence[Write]) -> Verdict:
    """Did clients of the pooler see nothing but a pause?"""
    mine = [w for w in writes if w.path.startswith("pooled")]
    errors = Counter(w.error for w in mine if not w.acknowledged)
    if errors:
        text = "; ".join(f"{count} × {error}" for error, count in errors.most_common(3))
        return Verdict("pooled clients", False, f"{errors.total()} of {len(mine)} writes failed: {text}")
    return Verdict("pooled clients", True if mine else None, f"{len(mine)} writes through the pooler, no error")


def _blocked(writes: Sequence[Write], result: Result) -> Verdict:
    """Did everybody refuse while nobody could know what was acknowledged?"""
    early = [w for w in writes if w.acknowledged and result.broken < w.invoked and w.done < result.mended]
    if early:
        text = f"{len(early)} writes acknowledged by {early[0].server}, which cannot know what was acknowledged before"
        return Verdict("blocked", False, text)
    return Verdict("blocked", True, "no write was acknowledged until it was mended")


def _readable(target: Target) -> Sequence[Node]:
    return list(target.nodes.values())
