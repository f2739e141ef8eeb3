"""What can be broken, and how each is mended again.

A fault is a function of the testbed and its victim that breaks something at once and returns its undo. An undo may be
called when nothing is left to mend. Faults on a machine's cable need a testbed with namespaces; full volumes need one
that was built with small ones.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from chaos import processes
from chaos.cuts import (
    bridge,
    cut_clients,
    cut_etcd,
    cut_from,
    cut_replication,
    deaf,
    halves,
    isolate,
    lossy,
    mute,
    network_of,
)
from chaos.places import Node, Place
from chaos.processes import Process
from chaos.target import Target, TestbedError
from chaos.volumes import fill
from chaos.wire import WireError, connect

Undo = Callable[[], None]
REPLACED_S = 15.0  # an agent that was killed together with its helper has to be back first
SEGMENTS = 200  # more than fit on any small volume
LAG_S = 2.0  # for how long a standby gets no WAL before the primary is lost


@dataclass(frozen=True, slots=True)
class Fault:
    """A thing to break. `victim`: "primary", "standby", "etcd" or "" (no node in particular)."""

    name: str
    about: str
    begin: Callable[[Target, Node], Undo]
    victim: str = "primary"
    namespaces: bool = False


def nothing() -> None:
    """The undo of a fault that heals by itself or is healed by the agent."""


# --- kill and freeze ----------------------------------------------------------------------------------------------


def _kill(victims: Iterable[Process], what: str) -> None:
    found = list(victims)
    if not found:
        raise TestbedError(f"nothing to kill: {what} does not run")
    processes.send(found, signal.SIGKILL)


def _freeze(look: Callable[[], list[Process]], what: str) -> Undo:
    """Stop what `look` finds, again until it finds nothing new: a process may have forked meanwhile."""
    frozen: dict[int, Process] = {}
    guards: list[subprocess.Popen[bytes]] = []  # a drill that is killed leaves nobody asleep
    for _ in range(5):
        new = [p for p in look() if p.pid not in frozen]
        if not new:
            break
        guards.append(processes.wake_when_we_are_gone(new))
        processes.send(new, signal.SIGSTOP)
        frozen |= {p.pid: p for p in new}
    if not frozen:
        raise TestbedError(f"nothing to freeze: {what} does not run")

    def undo() -> None:
        processes.send(frozen.values(), signal.SIGCONT)
        for guard in guards:
            guard.communicate(timeout=10)

    return undo


def _one(process: Process | None) -> list[Process]:
    return [process] if process is not None else []


def kill_postmaster(bed: Target, node: Node) -> Undo:
    _kill(_one(node.postmaster()), "the postmaster")
    return nothing


def kill_postgres(bed: Target, node: Node) -> Undo:
    _kill(node.postgres(), "PostgreSQL")
    return nothing


def kill_agent(bed: Target, node: Node) -> Undo:
    agent = _one(node.agent)
    _kill(agent, "the agent")
    if node.process is not None:  # all its threads, not only the first: else its undo would find it running
        node.process.wait(timeout=10)
    processes.wait_gone(agent, 5)
    return lambda: restart_agent(node)


def _kill_helper(node: Node, program: str, what: str) -> Undo:
    """Kill a helper of the agent; the undo demands that there is another."""
    killed = node.helpers(program)
    _kill(killed, what)

    def undo() -> None:
        until = time.monotonic() + REPLACED_S
        while not {p.pid for p in processes.alive(node.helpers(program))} - {p.pid for p in killed}:
            if time.monotonic() > until:
                raise TestbedError(f"{what} of {node.name} was not started again within {REPLACED_S:g} s")
            time.sleep(0.1)

    return undo


def kill_fence(bed: Target, node: Node) -> Undo:
    return _kill_helper(node, "fence_process.py", "the fence")


def kill_haproxy(bed: Target, node: Node) -> Undo:
    return _kill_helper(node, "haproxy", "HAProxy")


def kill_pgbouncer(bed: Target, node: Node) -> Undo:
    return _kill_helper(node, "pgbouncer", "PgBouncer")


def kill_node(bed: Target, node: Node) -> Undo:
    thaw = _freeze(node.all, node.name)  # all of it at the same instant: nothing may see something else die
    processes.send(node.all(), signal.SIGKILL)
    node.kill()
    thaw()  # nothing is left of it; its guard ends
    return lambda: restart_agent(node)


def restart_agent(node: Node) -> None:
    """Start a node's agent again unless it runs."""
    if not node.running:
        node.start()


def freeze_postmaster(bed: Target, node: Node) -> Undo:
    return _freeze(lambda: _one(node.postmaster()), "the postmaster")


def freeze_postgres(bed: Target, node: Node) -> Undo:
    return _freeze(node.postgres, "PostgreSQL")


def freeze_agent(bed: Target, node: Node) -> Undo:
    return _freeze(lambda: _one(node.agent), "the agent")


def freeze_fence(bed: Target, node: Node) -> Undo:
    return _freeze(lambda: node.helpers("fence_process.py"), "the fence")


def freeze_node(bed: Target, node: Node) -> Undo:
    return _freeze(node.all, node.name)


# --- the network --------------------------------------------------------------------------------------------------


def laggard(bed: Target, node: Node) -> Undo:
    """Only `late` is left, which lacks what `near` has confirmed to clients: nobody may serve until `near` wakes."""
    network, (near, late, *_) = network_of(bed), bed.standbys
    cut_from(network, late.name, [node.address])
    time.sleep(LAG_S)
    thaw = freeze_node(bed, near)
    back = lose_machine(bed, node)

    def undo() -> None:
        network.heal(late.name)
        thaw()
        back()

    return undo


def lose_machine(bed: Target, node: Node) -> Undo:
    network = network_of(bed)
    heal = isolate(bed, node)  # first: a dying kernel closes no connection
    node.kill()

    def undo() -> None:
        heal()
        restart_agent(node)

    assert network is bed.network
    return undo


# --- etcd ---------------------------------------------------------------------------------------------------------


def etcd_leader(bed: Target) -> Place:
    """The member that leads etcd. Raises TestbedError when none says so."""
    for place in bed.etcd.values():
        fields = bed.etcdctl("endpoint", "status", endpoint=place.endpoint).split(", ")
        if len(fields) > 4 and fields[4] == "true":
            return place
    raise TestbedError("no member of etcd says that it leads")


def _kill_etcd(places: Iterable[Place]) -> Undo:
    found = list(places)
    for place in found:
        place.kill()

    def undo() -> None:
        for place in found:
            if not place.running:
                place.start()

    return undo


def kill_etcd_leader(bed: Target, node: Node) -> Undo:
    return _kill_etcd([etcd_leader(bed)])


def kill_etcd_member(bed: Target, node: Node) -> Undo:
    leader = etcd_leader(bed)
    return _kill_etcd([next(place for place in bed.etcd.values() if place is not leader)])


def kill_etcd_majority(bed: Target, node: Node) -> Undo:
    """The member that is left answers, and may decide nothing."""
    leader = etcd_leader(bed)
    others = [place for place in bed.etcd.values() if place is not leader]
    return _kill_etcd([leader, *others[: len(bed.etcd) // 2]])


def kill_etcd(bed: Target, node: Node) -> Undo:
    return _kill_etcd(bed.etcd.values())


def freeze_etcd(bed: Target, node: Node) -> Undo:
    pids = [place.process.pid for place in bed.etcd.values() if place.process is not None]
    return _freeze(lambda: [p for pid in pids for p in _one(processes.look(pid))], "etcd")


def freeze_etcd_leader(bed: Target, node: Node) -> Undo:
    process = etcd_leader(bed).process
    assert process is not None, "it answered"
    return _freeze(lambda: _one(processes.look(process.pid)), "etcd's leader")


# --- full volumes -------------------------------------------------------------------------------------------------


def fill_wal(bed: Target, node: Node) -> Undo:
    """Fill the volume, then use up the segments that PostgreSQL keeps for reuse, until it needs a new one."""
    undo = fill(node.wal_volume)
    try:
        wire = connect(node.direct, timeout_s=5)
        try:
            for _ in range(SEGMENTS):
                wire.execute("SELECT pg_logical_emit_message(false, 'flypg_drill', 'next')", timeout_s=5)
                wire.execute("SELECT pg_switch_wal()", timeout_s=5)
        finally:
            wire.close()
    except WireError:
        return undo  # that was it
    undo()
    raise TestbedError(f"PostgreSQL never ran out of WAL segments on {node.name}")


def fill_data(bed: Target, node: Node) -> Undo:
    return fill(node.directory)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill-postmaster", "kill -9 of the primary's postmaster", kill_postmaster),
        Fault("kill-postgres", "kill -9 of all of the primary's PostgreSQL", kill_postgres),
        Fault("kill-agent", "kill -9 of the primary's agent, and nobody restarts it", kill_agent),
        Fault("kill-fence", "kill -9 of the primary's fence", kill_fence),
        Fault("kill-haproxy", "kill -9 of a standby's HAProxy", kill_haproxy, victim="standby"),
        Fault("kill-pgbouncer", "kill -9 of a standby's PgBouncer", kill_pgbouncer, victim="standby"),
        Fault("kill-node", "kill -9 of everything on the primary's node", kill_node),
        Fault("kill-standby", "kill -9 of everything on a standby's node", kill_node, victim="standby"),
        Fault("freeze-postmaster", "SIGSTOP of the primary's postmaster only", freeze_postmaster),
        Fault("freeze-postgres", "SIGSTOP of all of the primary's PostgreSQL", freeze_postgres),
        Fault("freeze-agent", "SIGSTOP of the primary's agent", freeze_agent),
        Fault("freeze-fence", "SIGSTOP of the primary's fence", freeze_fence),
        Fault("freeze-node", "SIGSTOP of everything on the primary's node", freeze_node),
        Fault("freeze-standby", "SIGSTOP of everything on a standby's node", freeze_node, victim="standby"),
        Fault("lose-machine", "the primary's machine is gone: no packet, no process", lose_machine, namespaces=True),
        Fault("isolate", "no packet to or from the primary's node", isolate, namespaces=True),
        Fault("deaf", "no packet reaches the primary's node; it still sends", deaf, namespaces=True),
        Fault("mute", "no packet leaves the primary's node; it still receives", mute, namespaces=True),
        Fault("lossy", "a fifth of the primary's packets is lost", lossy, namespaces=True),
        Fault("cut-etcd", "the primary's node is cut off from etcd only", cut_etcd, namespaces=True),
        Fault(
            "cut-replication", "the primary's node is cut off from the other nodes", cut_replication, namespaces=True
        ),
        Fault("halves", "the primary and one etcd member see nobody else", halves, namespaces=True),
        Fault("bridge", "the primary and one standby do not see each other", bridge, namespaces=True),
        Fault(
            "laggard",
            "a standby lags, the other falls asleep, the primary's machine is lost",
            laggard,
            namespaces=True,
        ),
        Fault("cut-clients", "the primary's node is cut off from clients outside", cut_clients, namespaces=True),
        Fault("kill-etcd-leader", "kill -9 of etcd's leader", kill_etcd_leader, victim="etcd"),
        Fault("kill-etcd-member", "kill -9 of a follower of etcd", kill_etcd_member, victim="etcd"),
        Fault("kill-etcd-majority", "kill -9 of etcd's leader and one follower", kill_etcd_majority, victim="etcd"),
        Fault("kill-etcd", "kill -9 of all of etcd", kill_etcd, victim="etcd"),
        Fault("freeze-etcd", "SIGSTOP of all of etcd", freeze_etcd, victim="etcd"),
        Fault("freeze-etcd-leader", "SIGSTOP of etcd's leader", freeze_etcd_leader, victim="etcd"),
        Fault("fill-wal", "the primary's WAL volume is full", fill_wal),
        Fault("fill-data", "the primary's data volume is full; its WAL has room", fill_data),
    )
}
