"""flypg beside Patroni: the same faults, clients, etcd and machine, one after another in one run.

    python -m benchmarks.peers --runs 3 --output peers.json --page docs/comparison.md

Both are judged by what clients saw and by a final read. Each cluster has three nodes and three members of etcd, all in
network namespaces; needs root, and Patroni (PATRONI names its program; else the one on the PATH).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.patroni_bed import PROFILES, PatroniBed, version
from benchmarks.peers_picture import picture
from chaos.checkers.durability import durability
from chaos.checkers.outage import outage
from chaos.checkers.primaries import doubly_acknowledged
from chaos.checkout import commit
from chaos.drills import DRILLS, Drill
from chaos.history import NEVER, Write
from chaos.inspection import rows
from chaos.netns import NetworkError
from chaos.results import Result
from chaos.runner import INSIDE_IDS, asked, break_and_mend, prepare, victim_of
from chaos.target import Target, TestbedError
from chaos.testbed import Plan, Testbed, binaries
from chaos.wire import WireError
from chaos.writer import Probe
from flypg.commands.drill import ended_in_order

FAULTS = {  # fault -> for how long it stays, in seconds; longer than any of them needs
    "kill-postmaster": 5.0,
    "kill-postgres": 5.0,
    "lose-machine": 5.0,
    "isolate": 35.0,
    "freeze-postgres": 10.0,
    "freeze-node": 30.0,
    "kill-agent": 35.0,
    "freeze-agent": 35.0,
    "freeze-etcd": 30.0,
    "switchover": 1.0,
}
PATIENCE_S = 60.0  # for a write to be acknowledged again while it is broken
HEAL_S = 120.0
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True, slots=True)
class Shown:
    """What one run of one fault showed. Seconds; None for ever."""

    system: str
    fault: str
    seed: int
    outage_s: float | None
    acknowledged: int
    lost: int
    doubled: int  # acknowledged by a server that had been replaced
    two_primaries_s: float
    healed_s: float | None  # None: not complete again within HEAL_S
    problem: str = ""


def measure(system: str, target: Target, drill: Drill, seed: int, say: Callable[[str], None]) -> Shown:
    """Run one fault and mend it. A client beside the victim keeps writing to the victim's server."""
    rng = random.Random(f"{seed}/{drill.name}")
    target.wait_healthy(HEAL_S)
    victim = victim_of(target, drill, rng)
    result = Result(drill.name, drill.about, seed, "", drill.bar_s, drill.limit_s, began=time.monotonic(), when="")
    problem, writes = "", list[Write]()
    with tempfile.TemporaryDirectory(prefix="fppeer") as directory:
        prepare(target)
        probes = [Probe([node.through_proxy for node in asked(target, drill, victim)], Path(directory))]
        if victim is not None and target.network is not None:
            inside = target.network.inside(victim.name)
            probes.append(Probe([victim.direct], Path(directory), prefix="inside ", first_id=INSIDE_IDS, before=inside))
        try:
            break_and_mend(target, drill, victim, probes[0], result, rng, say)
        except TestbedError as error:
            problem = str(error).splitlines()[0]
        finally:
            for probe in probes:
                writes += probe.stop()
    worst = max(outage(writes, path, fault=result.fault).length_s for path in drill.paths)
    doubled = doubly_acknowledged(writes)
    try:
        told = durability(writes, rows(target.primary))
        acknowledged, lost = told.acknowledged, len(told.lost)
    except (TestbedError, WireError) as error:
        acknowledged, lost, problem = 0, 0, problem or f"final read: {error}"
    shown = Shown(
        system,
        drill.name,
        seed,
        None if worst == NEVER else round(worst, 3),
        acknowledged,
        lost,
        len(doubled),
        round(max(w.done for w in doubled) - min(w.done for w in doubled), 3) if doubled else 0.0,
        round(result.healed - result.mended, 3) if result.healed is not None else None,
        problem,
    )
    say(f"{system}: {drill.name}: {_cell([shown])}{f' ({problem})' if problem else ''}")
    return shown


def planned(name: str) -> Drill:
    return dataclasses.replace(DRILLS[name], hold_s=FAULTS[name], heal_s=HEAL_S, bar_s=(PATIENCE_S - 22) / 2)


def beds(names: Sequence[str], say: Callable[[str], None]) -> list[tuple[str, Callable[[], Testbed]]]:
    plan = Plan(nodes=3, etcd=3, namespaces=True)

    def ours() -> Testbed:
        return Testbed(plan, say)

    def theirs(name: str) -> Callable[[], Testbed]:
        return lambda: PatroniBed(plan, PROFILES[name], say)

    return [("flypg", ours), *((f"patroni {name}", theirs(name)) for name in names)]


def table(shown: Sequence[Shown]) -> list[str]:
    """Medians as a Markdown table: a row per fault, a column per system."""
    systems = list(dict.fromkeys(s.system for s in shown))
    lines = ["| fault | " + " | ".join(systems) + " |", "| --- |" + " --- |" * len(systems)]
    for fault in dict.fromkeys(s.fault for s in shown):
        cells = [_cell([s for s in shown if (s.system, s.fault) == (system, fault)]) for system in systems]
        lines.append(f"| `{fault}` | " + " | ".join(cells) + " |")
    return lines


def _cell(runs: Sequence[Shown]) -> str:
    if not runs:
        return "–"
    lengths = sorted(s.outage_s if s.outage_s is not None else NEVER for s in runs)
    middle = statistics.median(lengths)
    text = "for ever" if middle == NEVER else f"**{middle:.2f} s**"
    if len(lengths) > 1:
        text += f" ({lengths[0]:.2f}–{'∞' if lengths[-1] == NEVER else f'{lengths[-1]:.2f}'})"
    lost, two_s = sum(s.lost for s in runs), max(s.two_primaries_s for s in runs)
    text += f", lost {lost} of {sum(s.acknowledged for s in runs)}"
    if two_s or any(s.doubled for s in runs):
        text += f", two primaries for {two_s:.1f} s"
    if stuck := sum(s.healed_s is None for s in runs):
        text += f", not complete again in {stuck} of {len(runs)}"
    return text


def about(names: Sequence[str]) -> dict[str, str]:
    """What was measured, on what."""
    postgres = subprocess.run([str(binaries() / "postgres"), "--version"], capture_output=True, text=True).stdout
    etcd = subprocess.run(["etcd", "--version"], capture_output=True, text=True).stdout.splitlines()
    haproxy = subprocess.run(["haproxy", "-v"], capture_output=True, text=True).stdout.split()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**30
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "flypg": commit(),
        "Patroni": version() if names else "not run",
        "PostgreSQL": postgres.split()[2] if postgres else "?",
        "etcd": etcd[0].split()[-1] if etcd else "?",
        "HAProxy": haproxy[2] if len(haproxy) > 2 else "?",
        "machine": f"{os.cpu_count()} cores, {memory} GB, Linux {platform.release()}",
        "load": f"{os.getloadavg()[2]:.1f} processes wanted a processor on average",
    }


def page(path: Path, facts: dict[str, str], shown: Sequence[Shown], runs: int) -> None:
    """Put the table between the marks of a page."""
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise SystemExit(f"{path} has no {BEGIN} and {END}")
    told = " · ".join(f"{key} {value}" for key, value in facts.items())
    times = "once" if runs == 1 else f"{runs} times"
    body = "\n".join(table(shown))
    bars = path.with_suffix(".svg")
    bars.write_text(picture(list(dict.fromkeys(s.system for s in shown)), medians(shown)), encoding="utf-8")
    body += f"\n\n![The median outages as bars]({bars.name})"
    path.write_text(f"{head}{BEGIN}\nEach fault {times}. {told}.\n\n{body}\n{END}{tail}", encoding="utf-8")


def medians(shown: Sequence[Shown]) -> dict[str, dict[str, float | None]]:
    """Fault -> system -> the median outage."""
    found: dict[str, dict[str, list[float]]] = {}
    for s in shown:
        lengths = found.setdefault(s.fault, {}).setdefault(s.system, [])
        lengths.append(s.outage_s if s.outage_s is not None else NEVER)
    return {
        fault: {system: None if (middle := statistics.median(v)) == NEVER else middle for system, v in row.items()}
        for fault, row in found.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="runs of each fault (1)")
    parser.add_argument("--add", nargs="+", default=[], metavar="FILE", help="add what earlier runs wrote by --output")
    parser.add_argument("--only", nargs="*", choices=list(FAULTS), default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--profiles", nargs="*", choices=list(PROFILES), default=["quorum", "async"], metavar="NAME")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--output", metavar="FILE", help="write every run as JSON")
    parser.add_argument("--page", metavar="FILE", help="put the table between the marks of this page")
    args = parser.parse_args(argv)

    def say(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    facts, problems = about(args.profiles), list[str]()
    earlier = [json.loads(Path(file).read_text(encoding="utf-8")) for file in args.add]
    shown = [Shown(**run) for told in earlier for run in told["runs"]]
    if earlier and not args.only:  # nothing is measured now
        facts = earlier[0]["about"]
    for system, make in beds(args.profiles, say) if args.only else []:
        try:
            with ended_in_order(), make() as bed:
                for name in args.only:
                    for number in range(args.runs):
                        shown.append(measure(system, bed, planned(name), args.seed + number, say))
        except (TestbedError, NetworkError, WireError) as error:
            problems.append(f"{system}: {error}")
            say(problems[-1])
        profiles = {name: dataclasses.asdict(PROFILES[name]) for name in args.profiles}
        runs = [dataclasses.asdict(s) for s in shown]
        told = json.dumps({"about": facts, "profiles": profiles, "runs": runs, "problems": problems}, indent=2)
        if args.output:  # after each system: an interrupted run has shown something
            Path(args.output).write_text(told, encoding="utf-8")
    print("\n".join(table(shown)))
    if args.page and shown:
        page(Path(args.page), facts, shown, args.runs)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
