"""Authority that nobody has proven: an agent's restart must not lengthen it."""

from __future__ import annotations

import pytest

from cluster.model import Durability, Spec
from postgres.instance import Run
from tests.simulation.scenes import Scene
from tests.simulation.sim import Simulation
from tests.simulation.sim_store import TTL_S

CUT_S = 1.0


class Watched(Simulation):
    """Notes when the first primary's server ends, and when another one begins."""

    def __init__(self, seed: int, scenes: tuple[Scene, ...], spec: Spec) -> None:
        super().__init__(seed, scenes=scenes, size=3, spec=spec)
        self.cut_at = self.ended_at = self.next_at = 0.0
        self.world.after(0.0, self._look)

    def _look(self) -> None:
        if self.stage.open and not self.cut_at:
            self.cut_at = self.world.now + CUT_S
        old = self.nodes[next(iter(self.nodes))].server
        if self.cut_at and not self.ended_at and (old.state is Run.DOWN or old.recovery):
            self.ended_at = self.world.now
        if self.cut_at and not self.next_at and any(n.server.writable for n in self.nodes.values() if n.server != old):
            self.next_at = self.world.now
        self.world.after(0.01, self._look)


@pytest.mark.timeout(900)  # seconds on a machine that is not busy
@pytest.mark.parametrize("durability", [Durability.ASYNC, Durability.QUORUM])
def test_an_agent_that_is_restarted_has_proven_nothing(durability: Durability) -> None:
    """Cut off from everything, and its agent killed and started again just before its authority ends."""
    for seed in range(5):
        scenes = (
            Scene("start", "isolate", "n1", 24.0, after_s=CUT_S),
            *(Scene("start", "kill_agent", "n1", 0.2, after_s=CUT_S + s) for s in (3.0, 5.5, 7.0, 9.0, 11.0, 13.0)),
        )
        sim = Watched(seed, scenes, Spec(durability=durability))
        sim.run()
        assert 0.0 < sim.ended_at <= sim.cut_at + TTL_S, (seed, sim.cut_at, sim.ended_at)
        if durability is Durability.ASYNC:
            assert sim.next_at >= sim.ended_at, (seed, "two primaries", sim.ended_at, sim.next_at)


@pytest.mark.timeout(900)
def test_a_primary_that_needs_no_proof_outlives_its_agent_without_etcd() -> None:
    """Nobody can be promoted beside a lone primary: an agent that starts without etcd does not have it stopped."""
    for seed in range(5):
        scenes = (
            Scene("start", "store_outage", "n1", 20.0, after_s=CUT_S),
            Scene("start", "kill_agent", "n1", 0.2, after_s=CUT_S + 2.0),
        )
        sim = Simulation(seed, scenes=scenes, size=1, spec=Spec())
        stopped = []
        sim.nodes[next(iter(sim.nodes))].fence.fired = lambda stopped=stopped: stopped.append(1)
        sim.run()
        assert not stopped, seed


@pytest.mark.timeout(900)
def test_a_storm_of_restarts_costs_nothing() -> None:
    """An agent that lives for a second proves its server's authority: for clients nothing has happened."""
    for seed in range(5):
        scenes = tuple(Scene("start", "kill_agent", "n1", 0.3, after_s=CUT_S + 1.3 * n) for n in range(15))
        sim = Simulation(seed, scenes=scenes, size=3, spec=Spec())
        sim.run()
        assert sim.store.view is not None and sim.store.view.term == 1, (seed, sim.store.view)
        assert sim.clients.longest_gap_s < 0.5, seed
