"""Measures the compose cluster: how soon it is up, and what clients see when the primary's container is lost.

`python -m benchmarks.containers` prints JSON; images are built when they are not there, which takes minutes. What it
waits for is told on standard error. `--pgbench SECONDS` also loads three nodes of 256 MB and one CPU each. What falls
short of the bars is listed in `falls_short`; a machine that is busy with other work falls short by itself.

    make bench-containers                                            everything, about 20 minutes on a quiet machine
    python -m benchmarks.containers --runs 3 --pause 60
    python -m benchmarks.containers --only pgbench --pgbench 600
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from typing import Any

from tests.support.compose import NODES, Cluster
from tests.support.engine import Engine, NoEngine

HOWS = ("up", "kill", "stop", "pause", "disconnect", "pgbench")
UP_S = 20.0
OUTAGE_S = {"kill": 2.0, "stop": 0.6, "pause": 2.0}


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def pgbench(cluster: Cluster, seconds: int) -> dict[str, object]:
    """Eight clients through the primary's own 5432, every node as small as Fly's smallest machine."""
    cluster.down()
    cluster.small = True
    cluster.up()
    primary = cluster.primary()
    events = cluster.flypg("why")
    bench = ("env", "PGPASSWORD=operator", "pgbench", "-h", "127.0.0.1", "-p", "5432", "-U", "postgres", "postgres")
    cluster.docker("exec", primary, *bench, "-i", "-q", "-s", "5", timeout_s=600)
    tell(f"pgbench -c 8 for {seconds} s")
    out = cluster.docker("exec", primary, *bench, "-c", "8", "-T", str(seconds), "-n", timeout_s=seconds + 300)
    found = re.search(r"tps = ([0-9.]+)", out)
    failed = re.search(r"failed transactions: (\d+)", out)
    form = "{{.State.OOMKilled}} {{.RestartCount}}"
    states = cluster.engine.run("docker", "inspect", "-f", form, *cluster.ids.values()).stdout.split("\n")
    usage = {node: cluster.docker("exec", node, "sh", "-c", PEAK).split() for node in NODES}
    return {
        "seconds": seconds,
        "tps": float(found[1]) if found else None,
        "failed_transactions": int(failed[1]) if failed else None,
        "oom_killed_and_restarts": dict(zip(NODES, states, strict=False)),
        "oom_kills_in_group_and_peak_bytes": usage,
        "same_primary": cluster.primary() == primary,
        "decisions_meanwhile": len(cluster.flypg("why").splitlines()) - len(events.splitlines()),
        "load": round(os.getloadavg()[0], 1),
    }


# of either version of control groups; a PostgreSQL backend that is killed does not show in the container's state
PEAK = (
    "cd /sys/fs/cgroup; cat memory.events memory/memory.oom_control 2>/dev/null | sed -n 's/^oom_kill //p';"
    " cat memory.peak memory/memory.max_usage_in_bytes 2>/dev/null; true"
)


def measure(cluster: Cluster, arguments: argparse.Namespace) -> dict[str, object]:
    found: dict[str, object] = {}
    ups = []
    needed = set(arguments.only) - {"up", "pgbench"}
    for _ in range(arguments.runs if "up" in arguments.only else bool(needed)):
        ups.append(round(cluster.up(), 1))
        tell(f"up: healthy after {ups[-1]} s")
    found["up_to_healthy_s"] = ups
    for how in ("kill", "stop", "pause", "disconnect"):
        if how not in arguments.only:
            continue
        runs = []
        for _ in range(1 if how == "pause" and arguments.pause >= 60 else arguments.runs):
            time.sleep(3)
            runs.append(cluster.break_primary(how, pause_s=arguments.pause))
            tell(f"{how}: {json.dumps(runs[-1])}")
        found[how] = runs
    if "pgbench" in arguments.only and arguments.pgbench:
        found["pgbench_256mb"] = pgbench(cluster, arguments.pgbench)
    return found


def falls_short(found: dict[str, Any]) -> list[str]:
    """What misses its bar, in words. Pure. Outages are those of clients that come through a node that stays."""
    said = [f"up: {seconds:g} s, at most {UP_S:g}" for seconds in found.get("up_to_healthy_s", ()) if seconds > UP_S]
    for how in ("kill", "stop", "pause", "disconnect"):
        for run in found.get(how, ()):
            bar = OUTAGE_S.get(how)
            if bar is not None and run["outage_s"] > bar:
                said.append(f"{how}: writes stopped for {run['outage_s']:g} s, at most {bar:g}")
            if run["lost"]:
                said.append(f"{how}: {run['lost']} acknowledged writes are lost")
            if run.get("exit_code", 0) != 0:
                said.append(f"{how}: exit code {run['exit_code']}")
    load = found.get("pgbench_256mb")
    if load is not None:
        for node, state in load["oom_killed_and_restarts"].items():
            if state != "false 0":
                said.append(f"pgbench: {node} was killed for its memory, or restarted: {state}")
        for node, usage in load["oom_kills_in_group_and_peak_bytes"].items():
            if len(usage) > 1 and usage[0] != "0":
                said.append(f"pgbench: {usage[0]} processes of {node} were killed for memory")
        if not load["same_primary"]:
            said.append("pgbench: a failover that nobody needed")
        if load["failed_transactions"] or load["tps"] is None:
            said.append(f"pgbench: {load['failed_transactions']} transactions failed")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.containers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=3, help="how often each is done (3)")
    parser.add_argument("--pause", type=float, default=60, help="seconds that the primary stays frozen (60)")
    parser.add_argument("--pgbench", type=int, default=0, help="seconds of load on small nodes (0: left out)")
    parser.add_argument("--only", nargs="+", choices=HOWS, default=HOWS)
    parser.add_argument(
        "--keep", action="store_true", help="leave the cluster up (needs an engine that runs by itself)"
    )
    arguments = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        try:
            engine = Engine()
        except NoEngine as error:
            tell(f"no engine: {error}")
            return 1
        cluster = Cluster(engine)
        try:
            cluster.prepare()
            found = measure(cluster, arguments)
            found["falls_short"] = falls_short(found)
        except NoEngine as error:
            tell(f"no image: {error}")
            return 1
        finally:
            if not arguments.keep:
                cluster.down()
            engine.close()
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
