"""`flypg drill bench`: every fault of docs/protocol.md several times, and what flypg costs."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from chaos.bench import idle, throughput
from chaos.bench_pooled import pooled
from chaos.drills import DRILLS, Drill
from chaos.history import NEVER
from chaos.netns import NetworkError, available
from chaos.page import to_html
from chaos.report import as_dict
from chaos.results import Result
from chaos.runner import run_drill
from chaos.target import TestbedError
from chaos.testbed import DRILLED, Plan, Testbed
from flypg.commands.drill import about
from flypg.ending import ended_in_order
from flypg.parsing import nearest
from flypg.progress import Progress
from flypg.reply import BadInput, Exit, Reply

ROWS = (
    "kill-postmaster",
    "kill-postgres",
    "lose-machine",
    "kill-node",
    "isolate",
    "freeze-postgres",
    "freeze-node",
    "freeze-postmaster",
    "kill-agent",
    "freeze-agent",
    "restart-agent",
    "cut-etcd",
    "freeze-etcd",
    "kill-etcd-leader",
    "switchover",
    "fill-wal",
    "fill-data",
)
COSTS = ("idle", "pgbench", "pooled")
IDLE_S = 60.0


def run(args: argparse.Namespace) -> Reply:
    """Everything, one kind of cluster after another. The answer is JSON, also without --json."""
    runs = args.runs if args.runs is not None else int(os.environ.get("BENCH_RUNS", "5"))
    for name in args.only:
        if name not in (*DRILLS, *COSTS):
            raise BadInput(f"nothing to measure called {name!r}; did you mean {nearest(name, [*DRILLS, *COSTS])}?")
    drills = [DRILLS[name] for name in ROWS if not args.only or name in args.only]
    drills += [DRILLS[name] for name in args.only if name in DRILLS and name not in ROWS]
    costs = [name for name in COSTS if not args.only or name in args.only]
    progress = Progress()
    results: list[Result] = []
    measured: dict[str, object] = {}
    problems: list[str] = []
    cut = available()
    with ended_in_order():
        for plan, group in _plans(drills, args.nodes, namespaces=not cut):
            try:
                with Testbed(plan, progress.now) as bed:
                    for drill in group:
                        results += [run_drill(bed, drill, seed=args.seed + n, say=progress.done) for n in range(runs)]
            except (TestbedError, NetworkError) as error:
                problems.append(str(error))
        if costs:
            try:
                with Testbed(Plan(nodes=args.nodes, etcd=3), progress.now) as bed:
                    if "idle" in costs:
                        progress.done(f"watching an idle cluster for {IDLE_S:g} s")
                        measured["idle"] = idle(bed, for_s=IDLE_S)
                    if "pgbench" in costs:
                        measured["pgbench"] = throughput(bed, rounds=3, for_s=5, say=progress.done)
                    if "pooled" in costs:
                        measured["pooled"] = pooled(bed, rounds=2 * runs, for_s=8, say=progress.done)
            except (TestbedError, NetworkError) as error:
                problems.append(str(error))
    data = {"about": about() | {"namespaces": cut or "yes"}, "rows": rows(results), **measured, "problems": problems}
    data["runs"] = [as_dict(r) for r in results]
    text = json.dumps(data, indent=2, ensure_ascii=False)
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")
    if args.html and results:
        Path(args.html).write_text(to_html(results, about()), encoding="utf-8")
    print("\n".join(table(results)), file=sys.stderr)
    good = all(r.passed for r in results) and not problems
    return Reply(Exit.OK if good else Exit.FAILED, "" if args.json else text, data)


def _plans(drills: list[Drill], nodes: int, *, namespaces: bool) -> list[tuple[Plan, list[Drill]]]:
    """Two kinds of clusters: small volumes where a drill needs them, cables that can be cut for the rest."""
    small = [d for d in drills if d.needs.wal_mb or d.needs.data_mb]
    rest = [d for d in drills if d not in small and (namespaces or not d.needs.namespaces)]
    plans = [(Plan(nodes=nodes, etcd=3, namespaces=namespaces, spec=DRILLED), rest)] if rest else []
    for drill in small if os.geteuid() == 0 else []:
        needs = drill.needs
        plan = Plan(nodes=nodes, etcd=3, wal_mb=needs.wal_mb, data_mb=needs.data_mb, spec=DRILLED)
        plans.append((plan, [drill]))
    return plans


def rows(results: list[Result]) -> list[dict[str, object]]:
    """A row per fault: medians over its runs."""
    found = []
    for name in dict.fromkeys(r.drill for r in results):
        mine = [r for r in results if r.drill == name]
        steady = [o.length_s for r in mine for o in r.outages if o.path == "steady"]
        fresh = [o.length_s for r in mine for o in r.outages if o.path == "fresh"]
        named = [r.phases.named() for r in mine if r.phases is not None]
        phases = {key: _median([v for p in named if (v := p[key]) is not None]) for key in (named[0] if named else {})}
        found.append(
            {
                "fault": name,
                "runs": len(mine),
                "bar_s": mine[0].bar_s,
                "outage_steady_s": _median(steady),
                "outage_fresh_s": _median(fresh),
                "worst_s": _finite(max([*steady, *fresh], default=NEVER)),
                "phases_s": phases,
                "acknowledged": sum(r.durability.acknowledged for r in mine if r.durability),
                "lost": sum(r.lost for r in mine),
                "doubly_acknowledged": sum(r.doubled for r in mine),
                "passed": sum(r.passed for r in mine),
            }
        )
    return found


def _finite(value: float) -> float | None:
    return round(value, 3) if value != NEVER else None


def _median(values: list[float]) -> float | None:
    return _finite(statistics.median(values)) if values else None


def table(results: list[Result]) -> list[str]:
    """The rows for people."""
    lines = [
        f"{'fault':<20} {'runs':>4} {'bar s':>6} {'steady':>7} {'fresh':>7} {'worst':>7} {'lost':>5} {'doubly':>6}"
    ]
    for row in rows(results):
        values = [row["bar_s"], row["outage_steady_s"], row["outage_fresh_s"], row["worst_s"]]
        told = " ".join(f"{v:>7}" if v is not None else "  never" for v in values)
        lines.append(f"{row['fault']!s:<20} {row['runs']:>4} {told} {row['lost']:>5} {row['doubly_acknowledged']:>6}")
    return lines
