"""Options of `flypg drill`."""

from __future__ import annotations

import argparse

from flypg.parsing import Parser, positive

ABOUT = """\
Break a cluster on purpose under a write load, see what clients saw, prove that nothing was lost.

A drill builds a cluster of its own (etcd and all nodes, in a temporary directory), breaks it, mends it and removes it.
With --local it breaks the cluster that `flypg local up` started; with --cluster any cluster whose agents allow it
(FLYPG_DRILLS=on), through these agents: what is broken is undone by its node itself when the drill dies."""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    drill = commands.add_parser("drill", description=ABOUT)
    actions = drill.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    listing = actions.add_parser("list", help="what can be broken", description="Every drill, and its bar.")
    listing.set_defaults(run="flypg.commands.drill:listing")
    listing.add_argument("--json", action="store_true", help="answer in JSON")

    run = actions.add_parser(
        "run",
        help="run drills by name",
        description="Run drills. Ends with 0 only when every one passed.",
        epilog="examples:\n  flypg drill run kill-postgres\n  flypg drill run smoke --html drills.html\n"
        "  flypg drill run all --repeat 5 --json\n"
        "  flypg drill run kill-postgres switchover --cluster",
    )
    run.set_defaults(run="flypg.commands.drill:run")
    run.add_argument("names", nargs="+", metavar="NAME", help="drills, or the sets `smoke` and `all`")
    _where(run)
    _live(run)
    run.add_argument("--repeat", type=positive, default=1, metavar="N", help="run each drill N times (1)")
    _output(run)

    soak = actions.add_parser(
        "soak",
        help="random faults for a while",
        description="Random faults, one after another or two at a time, under write, bank, register and list loads.",
    )
    soak.set_defaults(run="flypg.commands.soak:run")
    soak.add_argument("--minutes", type=float, default=5.0, metavar="N", help="for how long (5)")
    _where(soak, local=False)
    _output(soak)

    bench = actions.add_parser(
        "bench",
        help="measure every fault several times",
        description="Run the drills of docs/protocol.md several times each, and measure what an idle node costs and"
        "\nwhat the way through port 5432 costs. Prints JSON.",
    )
    bench.set_defaults(run="flypg.commands.bench:run")
    bench.add_argument("--runs", type=positive, default=None, metavar="N", help="runs of each (BENCH_RUNS, 5)")
    bench.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="only these drills, `idle`, `pgbench`, `pooled`"
    )
    bench.add_argument("--seed", type=int, default=1, metavar="N", help="where randomness begins (1)")
    bench.add_argument("--nodes", type=positive, default=3, metavar="N", help="nodes of the cluster (3)")
    bench.add_argument("--output", metavar="FILE", help="write the JSON here as well")
    bench.add_argument("--html", metavar="FILE", help="write the drills as a page")
    bench.add_argument("--json", action="store_true", help="answer in JSON")


def _where(parser: Parser, *, local: bool = True) -> None:
    group = parser.add_argument_group("which cluster")
    if local:
        group.add_argument("--local", action="store_true", help="the cluster that `flypg local up` started")
        group.add_argument("--dir", metavar="DIR", help="directory of a local cluster (FLYPG_LOCAL_DIR)")
    group.add_argument("--nodes", type=positive, default=3, metavar="N", help="nodes of a testbed (3)")
    group.add_argument("--namespaces", action="store_true", help="each node in a network namespace (needs root)")
    group.add_argument(
        "--pgbench", type=positive, default=0, metavar="N", help="N clients of pgbench work meanwhile (testbeds)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="where randomness begins (1)")


def _live(parser: Parser) -> None:
    group = parser.add_argument_group("a live cluster")
    group.add_argument(
        "--cluster",
        nargs="?",
        const="",
        metavar="NAME",
        help="break this cluster, or the one that the usual settings name; give it last",
    )
    group.add_argument("--etcd", metavar="HOST:PORT,…", help="etcd endpoints (FLYPG_ETCD_ENDPOINTS)")
    group.add_argument(
        "--through",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="where clients connect, instead of port 5432 of each node; may be repeated",
    )
    group.add_argument("--yes", action="store_true", help="do not ask whether a cluster that is used may be broken")


def _output(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    parser.add_argument("--output", metavar="FILE", help="write the JSON here")
    parser.add_argument("--junit", metavar="FILE", help="write the verdicts as JUnit XML")
    parser.add_argument("--html", metavar="FILE", help="write a page with a picture of each drill")
    parser.add_argument(
        "--earlier",
        action="append",
        default=[],
        metavar="FILE",
        help="compare with the runs in this JSON, on the page; may be repeated",
    )
