"""`flypg drill soak`: random faults for a while."""

from __future__ import annotations

import argparse

from chaos.netns import NetworkError, available
from chaos.soak import soak
from chaos.target import TestbedError
from chaos.testbed import DRILLED, Plan, Testbed
from flypg.commands.drill import ended_in_order, summary, write
from flypg.progress import Progress
from flypg.reply import BadInput, Reply


def run(args: argparse.Namespace) -> Reply:
    """Build a cluster, soak it, judge it. A failure says how to run the same again."""
    if args.minutes <= 0:
        raise BadInput("--minutes must be above zero")
    if args.namespaces and (why := available()):
        raise BadInput(f"--namespaces: {why}")
    progress = Progress()
    results = []
    problem = ""
    with ended_in_order():
        try:
            plan = Plan(nodes=args.nodes, etcd=3, namespaces=args.namespaces, spec=DRILLED)
            with Testbed(plan, progress.now) as bed:
                results.append(soak(bed, seed=args.seed, minutes=args.minutes, say=progress.done))
        except (TestbedError, NetworkError) as error:
            problem = str(error)
    write(args, results)
    if not results or not results[0].passed:
        where = " --namespaces" if args.namespaces else ""
        problem += f"\nagain with: flypg drill soak --seed {args.seed} --minutes {args.minutes:g}{where}"
    return summary(results, {}, problem.strip())
