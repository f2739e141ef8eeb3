"""The drills: what is broken, for how long, and what clients may notice of it.

`bar_s` is what we promise as the median of several runs (docs/protocol.md); a single run passes below `limit_s`, since
one run on a busy machine says little. Every drill also demands: no acknowledged write lost or doubled, never two
servers that acknowledge, all nodes identical in the end, complete within `heal_s` of the last thing being mended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from chaos.clocks import jump
from chaos.crowds import conflict, crowd
from chaos.faults import FAULTS, Undo, nothing
from chaos.harm import corrupt, lose_data
from chaos.places import Node
from chaos.storms import slow_etcd, storm_agent, storm_postgres, upgrade
from chaos.target import Target, TestbedError
from chaos.volumes import WRITES_PER_S, hang_disk, slow_disk


@dataclass(frozen=True, slots=True)
class Needs:
    """What a cluster must offer for a drill."""

    namespaces: bool = False
    wal_mb: int = 0
    data_mb: int = 0
    disk_mb: int = 0
    clocks: bool = False


@dataclass(frozen=True, slots=True)
class Drill:
    """One drill."""

    name: str
    about: str
    begin: Callable[[Target, Node], Undo]
    victim: str  # "primary", "standby" or "" (nobody in particular)
    bar_s: float  # write outage
    failovers: tuple[int, ...] = (1,)  # how many changes of primary are right
    hold_s: float = 5.0  # how long it stays broken, at least
    heal_s: float = 30.0
    paths: tuple[str, ...] = ("steady", "fresh")  # the clients whose outage counts
    needs: Needs = field(default_factory=Needs)
    etcd: bool = False  # breaks etcd itself
    pooled: bool = False  # clients of the pooler must see no error at all
    blocked: bool = False  # nothing may be acknowledged until it is mended
    nodes: int = 2  # how many it takes
    through_victim: bool = False  # clients connect through the victim, and nobody else
    inside: bool = False  # a client on the victim's own machine keeps writing to the victim's server

    @property
    def limit_s(self) -> float:
        return 2 * self.bar_s + 2.0


def _of(fault: str, bar_s: float, **more: object) -> Drill:
    known = FAULTS[fault]
    needs = more.pop("needs", Needs(namespaces=known.namespaces))
    victim = known.victim if known.victim in ("primary", "standby") else ""
    etcd = known.victim == "etcd"
    return Drill(fault, known.about, known.begin, victim, bar_s, needs=needs, etcd=etcd, **more)  # type: ignore[arg-type]


def switchover(target: Target, node: Node) -> Undo:
    """Ask for a planned change of primary and wait until it is done."""
    target.switchover()
    return nothing


def restart_agent(target: Target, node: Node) -> Undo:
    """Kill the agent and start it again at once: nobody may notice, least of all PostgreSQL."""
    before = node.postmaster()
    undo = FAULTS["kill-agent"].begin(target, node)
    undo()
    target.wait_healthy(30)
    after = node.postmaster()
    if before is None or after is None or before.pid != after.pid:
        raise TestbedError(f"the postmaster of {node.name} was {before}, and is {after} after a restart of its agent")
    return nothing


DISK = Needs(disk_mb=1500)

DRILLS = {
    drill.name: drill
    for drill in (
        _of("kill-postmaster", 0.5, failovers=(0, 1)),
        _of("kill-postgres", 0.5, failovers=(0, 1)),
        _of("kill-node", 2.0),
        _of("lose-machine", 2.0),
        _of("isolate", 2.0, inside=True, hold_s=25.0),
        _of("deaf", 2.0, hold_s=10.0),
        _of("mute", 2.0, hold_s=10.0),
        _of("freeze-postgres", 5.0, hold_s=10.0),
        _of("freeze-node", 2.0, hold_s=20.0),
        _of("freeze-postmaster", 5.0, hold_s=10.0),
        _of("kill-agent", 0.5, failovers=(0, 1), hold_s=25.0),
        _of("freeze-agent", 0.5, failovers=(0, 1), hold_s=25.0),
        Drill("restart-agent", "the primary's agent is killed and started again", restart_agent, "primary", 0.0, (0,)),
        _of("cut-etcd", 0.0, failovers=(0,), hold_s=30.0),
        _of("freeze-etcd", 0.0, failovers=(0,), hold_s=60.0),
        _of("kill-etcd", 0.0, failovers=(0,), hold_s=60.0),
        _of("kill-etcd-majority", 0.0, failovers=(0,), hold_s=30.0),
        _of("kill-etcd-leader", 0.5, failovers=(0,)),
        _of("kill-etcd-member", 0.5, failovers=(0,)),
        _of("freeze-etcd-leader", 0.5, failovers=(0,)),
        _of("kill-standby", 0.5, failovers=(0,)),
        _of("freeze-standby", 0.5, failovers=(0,)),
        _of("kill-haproxy", 1.0, failovers=(0,), through_victim=True),
        _of(
            "kill-pgbouncer",
            1.0,
            failovers=(0,),
            through_victim=True,
            paths=("pooled steady", "pooled fresh"),
        ),
        _of("kill-fence", 0.0, failovers=(0,)),
        _of("freeze-fence", 0.0, failovers=(0,), hold_s=20.0),
        _of("fill-wal", 3.0, needs=Needs(wal_mb=200)),
        _of("fill-data", 5.0, needs=Needs(data_mb=400, wal_mb=400)),
        _of("cut-replication", 2.0, failovers=(0, 1), hold_s=10.0),
        _of("halves", 2.0, inside=True, hold_s=15.0),
        _of("bridge", 2.5, failovers=(0,), hold_s=15.0),  # who connects through the cut standby waits: 2 s
        _of("laggard", 23.0, hold_s=20.0, blocked=True, nodes=3),
        _of("cut-clients", 0.5, failovers=(0,)),
        _of("lossy", 2.0, failovers=(0, 1), hold_s=20.0),
        Drill(
            "storm-agent",
            "the primary's agent is killed and started every second or two",
            storm_agent,
            "primary",
            0.5,
            (0, 1),
        ),
        Drill(
            "storm-postgres",
            "one node's PostgreSQL is killed every second or two",
            storm_postgres,
            "primary",
            2.0,
            (0, 1, 2, 3),
        ),
        Drill("upgrade", "every node's agent by turns is replaced, as an upgrade does it", upgrade, "", 0.0, (0,)),
        Drill(
            "slow-etcd",
            "every member of etcd is awake a seventh of the time",
            slow_etcd,
            "",
            0.0,
            (0,),
            30.0,
            etcd=True,
        ),
        Drill(
            "slow-disk",
            f"the primary's disk takes {WRITES_PER_S} writes a second",
            slow_disk,
            "primary",
            2.0,
            (0,),
            30.0,
            needs=DISK,
        ),
        Drill(
            "hang-disk",
            "whoever writes to the primary's disk waits for ever",
            hang_disk,
            "primary",
            5.0,
            (1,),
            15.0,
            needs=DISK,
        ),
        Drill(
            "clock-jump",
            "the primary's wall clock jumps an hour ahead, then behind",
            jump,
            "primary",
            0.0,
            (0,),
            needs=Needs(clocks=True),
        ),
        Drill(
            "crowd",
            "clients take every connection of the primary",
            crowd,
            "primary",
            0.5,
            (0,),
            15.0,
            paths=("steady",),
        ),
        Drill("conflict", "standbys wait for long readers; the primary's node is killed", conflict, "primary", 6.0),
        Drill(
            "lose-data",
            "the primary's node is killed and its data directory is gone",
            lose_data,
            "primary",
            2.0,
            heal_s=60.0,
        ),
        Drill(
            "lose-standby-data",
            "a standby's node is killed and its data directory is gone",
            lose_data,
            "standby",
            0.5,
            (0,),
            heal_s=60.0,
        ),
        Drill("corrupt-primary", "a page on the primary's disk is damaged", corrupt, "primary", 0.5, (1,), heal_s=60.0),
        Drill("corrupt-standby", "a page on a standby's disk is damaged", corrupt, "standby", 0.5, (0,), heal_s=60.0),
        Drill("switchover", "a planned change of primary", switchover, "", 0.5, pooled=True),
    )
}
