"""Faults that come again and again: restart storms, an upgrade of every agent, a store that is hardly ever awake."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator

from chaos import processes
from chaos.places import Node
from chaos.processes import Process
from chaos.target import Target, TestbedError

Undo = Callable[[], None]
STORM_S = 20.0
PAUSES_S = (0.5, 1.2, 2.0, 0.8)  # between two restarts, by turns
ENDED_S = 15.0  # for an agent to end that was asked to
ASLEEP_S, AWAKE_S = 0.3, 0.05  # of each member of a slow etcd


def _pauses() -> Iterator[float]:
    until = time.monotonic() + STORM_S
    for pause_s in itertools.cycle(PAUSES_S):
        if time.monotonic() + pause_s > until:
            return
        yield pause_s


def storm_agent(target: Target, node: Node) -> Undo:
    """kill -9 of the agent, again and again; each time it is started at once."""
    for pause_s in _pauses():
        agent = node.agent
        if agent is not None:
            processes.send([agent], signal.SIGKILL)
            if node.process is not None:
                node.process.wait(timeout=10)
            processes.wait_gone([agent], 5)
        node.start()
        time.sleep(pause_s)
    return nothing


def storm_postgres(target: Target, node: Node) -> Undo:
    """kill -9 of all of PostgreSQL, again and again; the agent starts it whenever it has gone."""
    for pause_s in _pauses():
        processes.send(node.postgres(), signal.SIGKILL)
        time.sleep(pause_s)
    return nothing


def nothing() -> None:
    """The undo of what mends itself."""


def upgrade(target: Target, node: Node) -> Undo:
    """Every agent by turns is ended as an upgrade ends it and started again: PostgreSQL must not notice."""
    before = {n.name: n.postmaster() for n in target.nodes.values()}
    primary = target.primary.name
    for one in target.nodes.values():
        replace_agent(one)
        target.wait_healthy(60)
    after = {n.name: n.postmaster() for n in target.nodes.values()}
    restarted = [name for name, process in after.items() if process is None or process != _same(process, before[name])]
    if restarted or target.primary.name != primary:
        raise TestbedError(f"PostgreSQL was restarted on {restarted or 'no node'}; primary {target.primary.name}")
    return nothing


def _same(now: Process, before: Process | None) -> Process | None:
    """`now` when it is the process it was."""
    same = before is not None and (now.pid, now.started) == (before.pid, before.started)
    return now if same else None


def replace_agent(node: Node) -> None:
    """End an agent, leaving PostgreSQL running, and start one in its place."""
    agent = node.agent
    if agent is None:
        raise TestbedError(f"the agent of {node.name} does not run")
    processes.send([agent], signal.SIGUSR1)
    if node.process is not None:
        node.process.wait(timeout=ENDED_S)
    if processes.wait_gone([agent], ENDED_S):
        raise TestbedError(f"the agent of {node.name} did not end within {ENDED_S:g} s")
    node.start()


def slow_etcd(target: Target, node: Node) -> Undo:
    """Every member of etcd sleeps most of the time, each at another time, as on disks or processors that are busy."""
    pids = [place.process.pid for place in target.etcd.values() if place.process is not None]
    stop = threading.Event()
    threads = [threading.Thread(target=_drowse, args=(pid, number, stop)) for number, pid in enumerate(pids)]
    if not threads:
        raise TestbedError("etcd was not started by this drill")
    for thread in threads:
        thread.start()

    def undo() -> None:
        stop.set()
        for thread in threads:
            thread.join()

    return undo


def _drowse(pid: int, number: int, stop: threading.Event) -> None:
    found = processes.look(pid)
    victims = [found] if found is not None else []
    stop.wait(number * 0.1)
    while not stop.is_set():
        processes.send(victims, signal.SIGSTOP)
        stop.wait(ASLEEP_S)
        processes.send(victims, signal.SIGCONT)
        stop.wait(AWAKE_S)
