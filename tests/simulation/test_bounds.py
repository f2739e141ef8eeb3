"""How long nobody can write after one thing has gone wrong, in simulated seconds (docs/protocol.md, section 9).

The models have the delays of a small machine, now and then much longer: the median of several seeds counts. A change
that makes a failover wait for a tick, a lease or a time-out it need not wait for shows here.
"""

from __future__ import annotations

from statistics import median

import pytest

from cluster.model import Spec
from tests.simulation.scenes import Scene
from tests.simulation.sim import Simulation

BOUNDS = [
    ("the postmaster dies", "kill_postgres", 0.0, 0.5),
    ("the machine is lost", "power", 20.0, 2.0),
    ("cut off from everything", "isolate", 20.0, 2.5),
    ("PostgreSQL is frozen", "freeze_postgres", 20.0, 5.0),
    ("the whole machine is frozen", "freeze", 20.0, 2.5),
    ("the agent is killed", "kill_agent", 20.0, 0.5),
    ("the agent is frozen", "freeze_agent", 20.0, 0.5),
    ("cut off from the store only", "cut_from_store", 20.0, 0.5),
    ("the store is down", "store_outage", 20.0, 0.5),
    ("a switchover", "switchover_away", 0.0, 1.0),
]


@pytest.mark.timeout(900)  # a second on a machine that is not busy
@pytest.mark.parametrize(("story", "fault", "for_s", "bound_s"), BOUNDS, ids=[b[0].replace(" ", "_") for b in BOUNDS])
def test_outage(story: str, fault: str, for_s: float, bound_s: float) -> None:
    gaps = []
    for seed in range(5):
        sim = Simulation(seed, scenes=(Scene("start", fault, "n1", for_s, after_s=1.0),), size=3, spec=Spec())
        sim.run()
        gaps.append(sim.clients.longest_gap_s)
    assert median(gaps) <= bound_s, sorted(round(gap, 2) for gap in gaps)


@pytest.mark.timeout(900)
def test_two_nodes_lose_the_one_whose_sentinel_leads() -> None:
    """Nobody judges until its lease has run out; then nothing else is waited for: who looked on knows since when the
    standby has been away, and no other sentinel is left to be let first."""
    gaps = []
    for seed in range(9):
        scene = Scene("start", "power", "n2", 20.0, after_s=8.0)  # by then n2's sentinel leads: it is not the primary's
        sim = Simulation(seed, scenes=(scene,), size=2, spec=Spec())
        sim.run()
        gaps.append(sim.clients.longest_gap_s)
    assert median(gaps) <= 7.0, sorted(round(gap, 2) for gap in gaps)
