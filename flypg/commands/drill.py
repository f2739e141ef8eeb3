"""`flypg drill`: break a cluster on purpose, see what clients saw, prove that nothing was lost."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from chaos.checkout import commit, postgres_version
from chaos.clocks import library
from chaos.drills import DRILLS, Drill
from chaos.live import why_not
from chaos.netns import NetworkError, available
from chaos.page import to_html
from chaos.report import Earlier, as_dict, earlier_runs, seconds, to_json, to_junit
from chaos.results import Result
from chaos.runner import run_drill
from chaos.target import Target, TestbedError
from chaos.testbed import DRILLED, Plan, Testbed
from chaos.volumes import throttling
from flypg import local
from flypg.drill_target import LocalCluster
from flypg.ending import ended_in_order
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
    earlier = checked(args)
    if args.pgbench and (args.local or args.cluster is not None):
        raise BadInput("--pgbench is for a testbed: it would replace tables of pgbench that are there")
    if args.cluster is not None:
        from flypg.commands import drill_cluster  # which imports this module

        return drill_cluster.run(args, drills, earlier)
    if args.etcd or args.through:
        raise BadInput("--etcd and --through are for drills of a live cluster: add --cluster")
    if args.nodes < 2:
        raise BadInput("--nodes must be at least 2: somebody has to take over")
    progress = Progress()
    results: list[Result] = []
    skipped: dict[str, str] = {}
    problem = ""
    where = " --local" if args.local else " --namespaces" if args.namespaces else ""
    where += f" --nodes {args.nodes}" if args.nodes != 3 else ""
    where += f" --pgbench {args.pgbench}" if args.pgbench else ""
    with ended_in_order(), written_at_the_end(args, results, earlier):
        try:
            for needs, group in _by_needs(drills, local_only=args.local):
                why = _impossible(needs, args)
                if why:
                    skipped |= dict.fromkeys((d.name for d in group), why)
                    continue
                with _target(args, group[0], progress) as target:
                    for drill in group:
                        if len(target.nodes) < drill.nodes:
                            skipped[drill.name] = f"needs {drill.nodes} nodes"
                            continue
                        for number in range(args.repeat):
                            result = run_drill(
                                target, drill, seed=args.seed + number, load=args.pgbench, say=progress.done
                            )
                            result.again = f"{result.replay}{where}"
                            results.append(result)
        except (TestbedError, NetworkError) as error:
            problem = str(error)
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
    if (drill.needs.wal_mb or drill.needs.data_mb or drill.needs.disk_mb) and os.geteuid() != 0:
        return f"{_place(drill)}: only root may mount what it needs"
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


def checked(args: argparse.Namespace) -> dict[str, list[Earlier]]:
    """Look at the files of a report before anything is broken; the earlier runs that it is compared with. Raises
    BadInput."""
    for option, path in (("--output", args.output), ("--junit", args.junit), ("--html", args.html)):
        if path and (Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK)):
            raise BadInput(f"{option} {path}: no file can be written there")
    earlier: dict[str, list[Earlier]] = {}
    for path in args.earlier:
        try:
            found = earlier_runs(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"--earlier {path}: {getattr(error, 'strerror', None) or error}") from None
        for name, runs in found.items():
            earlier.setdefault(name, []).extend(runs)
    return earlier


def about(*, cluster: str = "") -> dict[str, str]:
    """What was tested, and on what; `cluster`: the name of a live one, whose servers are elsewhere."""
    told = {"flypg": metadata.version("flypg"), "commit": commit()}
    if cluster:
        return {"cluster": cluster, **told}
    if version := postgres_version():
        told["PostgreSQL"] = version
    machine = {"processors": str(os.cpu_count()), "kernel": platform.release()}
    return told | machine | {"Python": platform.python_version()}


@contextlib.contextmanager
def written_at_the_end(
    args: argparse.Namespace, results: list[Result], earlier: dict[str, list[Earlier]], *, cluster: str = ""
) -> Iterator[None]:
    """Write the files that were asked for, also when the drills were broken off."""
    try:
        yield
    finally:
        if results:
            told = about(cluster=cluster)
            wanted: list[tuple[str | None, Callable[[], str]]] = [
                (args.junit, lambda: to_junit(results, told)),
                (args.html, lambda: to_html(results, told, earlier)),
                (args.output, lambda: to_json(results, told)),
            ]
            for path, text in wanted:
                if path:
                    Path(path).write_text(text(), encoding="utf-8")
                    print(f"  wrote {path}", file=sys.stderr)


def summary(results: list[Result], skipped: dict[str, str], problem: str) -> Reply:
    """Everything in one table, what failed and why below it."""
    rows = [
        [
            "PASS" if r.passed else "FAIL",
            r.drill,
            ", ".join(f"{o.path} {seconds(o.length_s)}" for o in r.outages),
            seconds(r.bar_s) if r.drill != "soak" else "–",
            str(r.lost) if r.durability else "?",
            str(r.doubled),
            ", ".join(f"{k} {seconds(v)}" for k, v in r.phases.named().items())
            if r.phases
            else f"{r.failovers} failovers"
            if r.failovers
            else "no failover",
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
