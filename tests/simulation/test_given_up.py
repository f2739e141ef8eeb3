"""Durability async: a failover does not wait for ever for WAL that one node has and cannot hand on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.model import Durability, NodeId, Phase, Spec
from tests.simulation.sim import Simulation

FOUND_S = 40.0
FURTHEST, BEHIND = NodeId("n2"), NodeId("n3")


def _lost_primary(durability: Durability, seed: int) -> Simulation:
    """n2 is furthest and may not lead, n3 lacks a little that n2 has removed, and the machine of n1 is lost."""
    sim = Simulation(seed, size=3, spec=Spec(durability=durability, k=1), trace=True)
    for node in sim.nodes.values():
        tags = {"nofailover": node.name == FURTHEST, "nosync": False, "priority": 200 if node.name == "n1" else 100}
        node.member = replace(node.member, **tags)
    for node in sim.nodes.values():
        sim.world.after(0.0 if node.name == "n1" else 0.4, node.start_agent)
    sim.clients.every_s = 0.02
    sim.clients.start()
    sim._until_whole(FOUND_S, "founded")
    assert sim.store.view is not None and sim.store.view.primary == "n1", "the others came later"
    n1, n2, n3 = (sim.nodes[NodeId(name)] for name in ("n1", FURTHEST, BEHIND))
    had = len(n3.server.wal)
    sim.world.cut("n1", BEHIND)
    while len(n2.server.wal) < had + 3:
        sim.world.run(sim.world.now + 0.01)
    n1.power_off()
    n2.server.oldest = len(n2.server.wal)
    return sim


@pytest.mark.parametrize("seed", range(5))
def test_async_goes_on_without_it(seed: int) -> None:
    sim = _lost_primary(Durability.ASYNC, seed)
    lost_at = sim.world.now
    while (view := sim.store.view) is None or view.phase is not Phase.OPEN or view.primary == "n1":
        sim.world.run(sim.world.now + 0.5)
        assert sim.world.now < lost_at + 60.0, "\n".join(sim.world.trace[-40:])
    assert view.primary == BEHIND
    assert any("is given up, as durability async allows" in event.text for event in sim.store.history)


@pytest.mark.parametrize("seed", range(3))
def test_quorum_never_does(seed: int) -> None:
    sim = _lost_primary(Durability.QUORUM, seed)
    sim.world.run(sim.world.now + 60.0)
    view = sim.store.view
    assert view is not None
    assert view.phase is Phase.REVOKING, view
    assert view.fetch is not None and view.fetch.source == FURTHEST
