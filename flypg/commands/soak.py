"""`flypg drill soak`: random faults for a while."""

from __future__ import annotations

import argparse

from chaos.netns import NetworkError, available
from chaos.results import Result
from chaos.soak import soak
from chaos.target import TestbedError
from chaos.testbed import DRILLED, Plan, Testbed
from flypg.commands.drill import checked, summary, written_at_the_end
from flypg.ending import ended_in_order
from flypg.progress import Progress
from flypg.reply import BadInput, Reply

LONGEST_MIN = 7 * 24 * 60


def run(args: argparse.Namespace) -> Reply:
    """Build a cluster, soak it, judge it. A failure says how to run the same again."""
    earlier = checked(args)
    if not 0 < args.minutes <= LONGEST_MIN:
        raise BadInput(f"--minutes must be above zero, and {LONGEST_MIN} at most")
    if args.nodes < 3:
        raise BadInput("--nodes must be at least 3: a soak breaks two at a time")
    if args.namespaces and (why := available()):
        raise BadInput(f"--namespaces: {why}")
    progress = Progress()
    results: list[Result] = []
    problem = ""
    again = f"flypg drill soak --seed {args.seed} --minutes {args.minutes:g}"
    again += (f" --nodes {args.nodes}" if args.nodes != 3 else "") + (" --namespaces" if args.namespaces else "")
    again += f" --pgbench {args.pgbench}" if args.pgbench else ""
    with ended_in_order(), written_at_the_end(args, results, earlier):
        try:
            plan = Plan(nodes=args.nodes, etcd=3, namespaces=args.namespaces, spec=DRILLED)
            with Testbed(plan, progress.now) as bed:
                result = soak(bed, seed=args.seed, minutes=args.minutes, load=args.pgbench, say=progress.done)
                result.again = again
                results.append(result)
        except (TestbedError, NetworkError) as error:
            problem = str(error)
    if not results or not results[0].passed:
        problem += f"\nagain with: {again}"
    return summary(results, {}, problem.strip())
