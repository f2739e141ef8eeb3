"""`flypg drill`: break a cluster on purpose, see what clients saw, prove that nothing was lost."""

from __future__ import annotations

import argparse
import contextlib
import platform
import signal
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from chaos.checkout import commit
from chaos.clocks import library
from chaos.drills import DRILLS, Drill
from chaos.live import why_not
from chaos.netns import NetworkError, available
from chaos.report import as_dict, seconds, to_html, to_json, to_junit
from chaos.results import Result
from chaos.runner import run_drill
from chaos.target import Target, TestbedError
from chaos.testbed import DRILLED, Plan, Testbed
from chaos.volumes import throttling
from flypg import local
from flypg.drill_target import LocalCluster
from flypg.parsing import nearest
from flypg.progress import Progress
from flypg.reply import BadInput, Exit, Reply, done
from flypg.show import columns

SMOKE = ("kill-postmaster", "kill-postgres", "switchover", "restart-agent", "kill-standby", "kill-etcd-leader")


def listing(args: argparse.Namespace) -> Reply:
    """flypg drill list"""
    drills = [(d, _place(d), not why_not(d)) for d in DRILLS.values()]
    rows = [[d.name, seconds(d.bar_s), place, "yes" if live else "no", d.about] for d, place, live in drills]
    data = [{"name": d.name, "bar_s": d.bar_s, "needs": p, "cluster": live, "about": d.about} for d, p, live in drills]
    table = columns(["drill", "write outage at most", "where", "--cluster", "what is broken"], rows)
    return done(f"{table}\n\nbars are medians; a single run may take twice that and two seconds more", {"drills": data})


def _place(drill: Drill) -> str:
    if drill.needs.namespaces:
        return "namespaces (root)"
    if drill.needs.wal_mb or drill.needs.data_mb:
        return "small volumes (root)"
    if drill.needs.disk_mb:
        return "disks (root)"
    if drill.needs.clocks:
        return "libfaketime"
    return "a testbed" if drill.etcd else "anywhere"


def chosen(names: list[str]) -> list[Drill]:
    """The drills that `names` mean; "all" and "smoke" are sets of them. Raises BadInput."""
    drills: list[Drill] = []
    for name in names:
        if name == "all":
            drills += DRILLS.values()
        elif name == "smoke":
            drills += [DRILLS[n] for n in SMOKE]
        elif name in DRILLS:
            drills.append(DRILLS[name])
        else:
            near = nearest(name, [*DRILLS, "all", "smoke"])
            raise BadInput(f"no drill {name!r}" + (f"; did you mean {near}?" if near else "; see: flypg drill list"))
    return drills


def run(args: argparse.Namespace) -> Reply:
    """flypg drill run NAME…: each against a testbed of its own kind, or all against the local cluster."""
    drills = chosen(args.names)
    if args.cluster is not None:
        from flypg.commands import drill_cluster  # which imports this module

        return drill_cluster.run(args, drills)
    if args.etcd or args.through:
        raise BadInput("--etcd and --through are for drills of a live cluster: add --cluster")
    progress = Progress()
    results: list[Result] = []
    skipped: dict[str, str] = {}
    problem = ""
    with ended_in_order():
        try:
            for needs, group in _by_needs(drills, local_only=args.local):
                why = _impossible(needs, args)
                if why:
                    skipped |= dict.fromkeys((d.name for d in group), why)
                    continue
                with _target(args, group[0], progress) as target:
                    for drill in group:
                        for number in range(args.repeat):
                            results.append(run_drill(target, drill, seed=args.seed + number, say=progress.done))
        except (TestbedError, NetworkError) as error:
            problem = str(error)
    write(args, results)
    return summary(results, skipped, problem)


def _by_needs(drills: list[Drill], *, local_only: bool) -> list[tuple[Drill, list[Drill]]]:
    """Drills that can share a cluster, together."""
    groups: dict[object, list[Drill]] = {}
    for drill in drills:
        groups.setdefault(None if local_only and _place(drill) == "anywhere" else drill.needs, []).append(drill)
    return [(group[0], group) for group in groups.values()]


def _impossible(drill: Drill, args: argparse.Namespace) -> str:
    """Why this drill cannot be run here; "" when it can."""
    if args.local and _place(drill) != "anywhere":
        return f"needs {_place(drill)}, which a local cluster has not: leave out --local"
    if drill.needs.disk_mb and (why := throttling()):
        return why
    if drill.needs.clocks and library() is None:
        return "needs libfaketime: apt-get install faketime"
    if drill.needs.namespaces or args.namespaces:
        return available()
    return ""


@contextlib.contextmanager
def _target(args: argparse.Namespace, drill: Drill, progress: Progress) -> Iterator[Target]:
    if args.local:
        layout = local.load(local.root_of(args.dir))
        if layout is None:
            raise BadInput("there is no local cluster; start one with `make up`, or leave out --local")
        cluster = LocalCluster(layout, progress.now)
        try:
            yield cluster
        finally:
            cluster.close()
        return
    needs = drill.needs
    plan = Plan(
        nodes=args.nodes,
        etcd=3,
        namespaces=needs.namespaces or args.namespaces,
        wal_mb=needs.wal_mb,
        data_mb=needs.data_mb,
        disk_mb=needs.disk_mb,
        clocks=needs.clocks,
        spec=DRILLED,
    )
    with Testbed(plan, progress.now) as bed:
        yield bed


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM ends a drill like Ctrl-C does: everything is mended and removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def about() -> dict[str, str]:
    """What was tested, and on what."""
    return {"commit": commit(), "Python": platform.python_version(), "kernel": platform.release()}


def write(args: argparse.Namespace, results: list[Result], told: dict[str, str] | None = None) -> None:
    """Write the files that were asked for; `told` is what they say was tested."""
    told = told or about()
    for path, text in ((args.junit, to_junit), (args.html, to_html)):
        if path and results:
            Path(path).write_text(text(results, told), encoding="utf-8")
            print(f"  wrote {path}", file=sys.stderr)
    if args.output and results:
        Path(args.output).write_text(to_json(results, told), encoding="utf-8")
        print(f"  wrote {args.output}", file=sys.stderr)


def summary(results: list[Result], skipped: dict[str, str], problem: str) -> Reply:
    """Everything in one table, what failed and why below it."""
    rows = [
        [
            "PASS" if r.passed else "FAIL",
            r.drill,
            ", ".join(f"{o.path} {seconds(o.length_s)}" for o in r.outages),
            seconds(r.bar_s),
            str(r.lost) if r.durability else "?",
            str(r.doubled),
            ", ".join(f"{k} {seconds(v)}" for k, v in r.phases.named().items()) if r.phases else "no failover",
        ]
        for r in results
    ]
    lines = []
    if rows:
        head = ["", "drill", "write outage", "bar", "lost", "doubly acknowledged", "phases"]
        lines.append(columns(head, rows))
    for r in results:
        lines += [f"{r.drill}: {v.checker}: {v.text}" for v in r.verdicts if v.ok is False]
    for name in dict.fromkeys(r.drill for r in results):
        lengths = [r.outage_s for r in results if r.drill == name and r.outage_s is not None]
        if len(lengths) > 1:
            lines.append(f"{name}: median outage {seconds(statistics.median(lengths))} of {len(lengths)} runs")
    lines += [f"skipped {name}: {why}" for name, why in skipped.items()]
    if problem:
        lines.append(problem)
    good = bool(results) and all(r.passed for r in results) and not problem
    data = {"passed": good, "results": [as_dict(r) for r in results], "skipped": skipped, "problem": problem}
    return Reply(Exit.OK if good else Exit.FAILED, "\n".join(lines), data)
