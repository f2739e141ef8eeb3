"""`flypg drill run NAME… --cluster`: drills against a live cluster, whose agents break and mend what is theirs."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
from collections.abc import Callable, Sequence

from chaos.drills import DRILLS, Drill
from chaos.live import LiveCluster, adapted, fault_of, longest_s, why_not
from chaos.remote import Remote
from chaos.report import Earlier
from chaos.results import Result
from chaos.runner import run_drill
from chaos.target import TestbedError
from chaos.wire import WireError
from cluster import values as read
from cluster.drill_orders import key_of
from cluster.model import Member, Snapshot, View
from cluster.settings import load_values
from cluster.store import OperatorStore
from flypg import local
from flypg.commands.change import confirm
from flypg.commands.drill import summary, written_at_the_end
from flypg.ending import ended_in_order
from flypg.local_processes import identify, remember
from flypg.primary import password_of
from flypg.progress import Progress
from flypg.reply import BadInput, Exit, Refused, Reply
from flypg.target import Target, connected, find, whoami

SETTLE_S = 10.0  # a cluster that is healthy says so within this time


def run(args: argparse.Namespace, drills: Sequence[Drill], earlier: dict[str, list[Earlier]]) -> Reply:
    """Raises BadInput or Refused before anything was broken."""
    _understood(args)
    through = [_place(written) for written in args.through]
    target = find(args)
    password = password_of(args, "OPERATOR_PASSWORD")
    token = read.secret(load_values(dict(os.environ)), "FLYPG_API_TOKEN")
    view = _fit(_snapshot(target), target)
    key = key_of(password, target.cluster)
    asker = re.sub(r"[^A-Za-z0-9 @._+:-]", "_", whoami())[:80]
    remotes = {str(m.node): Remote(m.node, m.host, m.ports.http, key, token, asker) for m in view.members}
    skipped = {d.name: why for d in drills if (why := why_not(d))}
    wanted = [d for d in drills if d.name not in skipped]
    progress = Progress()
    cluster = LiveCluster(
        target.cluster, target.etcd, view.members, password, remotes, through=through, say=progress.now
    )
    progress.done(f"{target.said}: {', '.join(remotes)}")
    cluster.on_restarted = _remembered(args, target)
    results: list[Result] = []
    impossible: dict[str, str] = {}
    problem = ""
    try:
        _healthy(cluster)
        wanted, impossible = _possible(wanted, remotes)
        _allowed(args, cluster, target, wanted, view.members)
        if wanted:
            files = written_at_the_end(args, results, earlier, cluster=target.cluster)
            with ended_in_order(), files, cluster.database():
                problem = _run_all(cluster, wanted, args, results, progress.done)
    except (TestbedError, WireError) as error:
        problem = str(error)
    finally:
        cluster.close()
    return summary(results, skipped | impossible, problem)


def _understood(args: argparse.Namespace) -> None:
    """Raises BadInput when options do not belong together."""
    if args.local:
        raise BadInput("--local and --cluster both name a cluster: give one of them")
    if args.namespaces:
        raise BadInput("--namespaces is for a testbed: leave it out with --cluster")
    if args.cluster in DRILLS or args.cluster in ("all", "smoke"):
        raise BadInput(f"--cluster took {args.cluster!r} for the name of a cluster: give --cluster after the drills")
    if shutil.which("etcdctl") is None:
        raise BadInput("etcdctl is needed here to watch the cluster: apt-get install etcd-client")


def _place(written: str) -> tuple[str, int]:
    host, _, port = written.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f"--through {written!r}: expected HOST:PORT")
    return host.strip("[]"), int(port)


def _snapshot(target: Target) -> Snapshot:
    found: list[Snapshot] = []

    async def look(store: OperatorStore) -> Reply:
        found.append(await store.read())
        return Reply(Exit.OK)

    asyncio.run(connected(target, look))
    return found[0]


def _fit(snapshot: Snapshot, target: Target) -> View:
    """The view of a cluster that may be broken at all. Raises Refused."""
    view = snapshot.view
    if view is None:
        raise Refused(f"{target.said}: there is no such cluster, or it was never founded")
    if snapshot.spec.paused:
        raise Refused("the cluster is paused: nobody would take over (flypg resume)")
    able = [m for m in view.members if m.node != view.primary and not m.nofailover]
    if not able:
        raise Refused("no standby could take over: a drill would be an outage for as long as it lasts")
    return view


def _possible(drills: Sequence[Drill], remotes: dict[str, Remote]) -> tuple[list[Drill], dict[str, str]]:
    """Drills that every node could be the victim of, and why not the others. Raises Refused when a node refuses."""
    refusals: list[str] = []
    why: dict[str, str] = {}
    for remote in remotes.values():
        try:
            offer = remote.offer()
        except TestbedError as error:
            refusals.append(str(error))
            continue
        for drill in drills:
            fault = fault_of(drill)
            if fault and (missing := offer.get(fault, "its agent does not know this fault")):
                why.setdefault(drill.name, f"{remote.name}: {missing}")
    if refusals:
        raise Refused("\n".join([*refusals, "nothing was broken"]))
    return [adapted(drill) for drill in drills if drill.name not in why], why


def _healthy(cluster: LiveCluster) -> None:
    """Raises Refused."""
    try:
        cluster.wait_healthy(SETTLE_S)
    except TestbedError as error:
        raise Refused(f"the cluster is not healthy, so nothing was broken: {error}") from None


def _allowed(
    args: argparse.Namespace, cluster: LiveCluster, target: Target, drills: Sequence[Drill], members: Sequence[Member]
) -> None:
    """Raises Refused unless its owner wants a cluster broken that somebody uses."""
    others = cluster.others()
    if not drills or not others or args.yes:
        return
    lines = [f"{target.said}: {', '.join(m.node for m in members)}; its databases: {', '.join(others)}."]
    lines += [f"  {d.name}: {d.about}, for at most {longest_s(d):g} s" for d in drills]
    lines.append("Clients that use it will notice." + (f" Each {args.repeat} times." if args.repeat > 1 else ""))
    confirm("\n".join(lines), typed=cluster.cluster, unless="--yes")


def _run_all(
    cluster: LiveCluster,
    drills: Sequence[Drill],
    args: argparse.Namespace,
    results: list[Result],
    say: Callable[[str], None],
) -> str:
    """Run them until one leaves the cluster unhealthy. Returns why not all were run; "" when they were."""
    left = [(drill, number) for drill in drills for number in range(args.repeat)]
    for drill, number in left:
        result = run_drill(cluster, drill, seed=args.seed + number, say=say)
        result.again = f"{result.replay} --cluster"
        results.append(result)
        missing = cluster.watch.unhealthy(list(cluster.nodes))
        if result.healed is None or missing:
            return f"stopped after {drill.name}, which left the cluster unhealthy: {missing or 'it took too long'}"
    return ""


def _remembered(args: argparse.Namespace, target: Target) -> Callable[[str, int], None]:
    """`flypg local` knows its agents by their pid files."""

    def note(node: str, pid: int) -> None:
        layout = local.load(local.root_of(args.dir))
        if layout is None or layout.cluster != target.cluster or node not in layout.names:
            return
        process = identify(pid)
        if layout.endpoints == ",".join(e.target for e in target.etcd.endpoints) and process is not None:
            remember(layout.pid_file(node), process)

    return note
