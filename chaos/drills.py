"""The drills: what is broken, for how long, and what clients may notice of it.

`bar_s` is what we promise as the median of several runs (docs/protocol.md); a single run passes below `limit_s`, since
one run on a busy machine says little. Every drill also demands: no acknowledged write lost or doubled, never two
servers that acknowledge, all nodes identical in the end, complete within `heal_s` of the last thing being mended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from chaos.faults import FAULTS, Undo, nothing
from chaos.places import Node
from chaos.target import Target, TestbedError


@dataclass(frozen=True, slots=True)
class Needs:
    """What a cluster must offer for a drill."""

    namespaces: bool = False
    wal_mb: int = 0
    data_mb: int = 0


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
    target.flypg("switchover")
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
        _of("kill-etcd-leader", 0.5, failovers=(0,)),
        _of("kill-etcd-member", 0.5, failovers=(0,)),
        _of("freeze-etcd-leader", 0.5, failovers=(0,)),
        _of("kill-standby", 0.5, failovers=(0,)),
        _of("freeze-standby", 0.5, failovers=(0,)),
        _of("kill-haproxy", 1.0, failovers=(0,)),
        _of("kill-fence", 0.0, failovers=(0,)),
        _of("fill-wal", 3.0, needs=Needs(wal_mb=200)),
        _of("fill-data", 5.0, needs=Needs(data_mb=400, wal_mb=400)),
        _of("cut-replication", 2.0, failovers=(0, 1), hold_s=10.0),
        _of("cut-clients", 0.5, failovers=(0,)),
        _of("lossy", 2.0, failovers=(0, 1), hold_s=20.0),
        Drill("switchover", "a planned change of primary", switchover, "", 0.5, pooled=True),
    )
}
