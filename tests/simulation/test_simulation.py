"""Thousands of clusters and their misfortunes: every invariant holds at every step, and all are whole at the end.

`FLYPG_SIM_SEEDS` sets how many seeds are run (default 1000). A failing one is printed with the command to replay it.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.sim import run_seed
from tests.simulation.soak import failures

SEEDS = int(os.environ.get("FLYPG_SIM_SEEDS", "1000"))
CHUNK = 50
CHUNKS = [range(start, min(start + CHUNK, SEEDS)) for start in range(0, SEEDS, CHUNK)]


@pytest.mark.timeout(900)  # a few seconds on a machine that is not busy
@pytest.mark.parametrize("seeds", CHUNKS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_seeds(seeds: range) -> None:
    found = failures(seeds)
    told = [f"{text}\n  replay it: python -m tests.simulation.replay {seed} --trace" for seed, text in found]
    assert not found, "\n".join(told)


def test_one_seed_is_one_run() -> None:
    histories = []
    for _ in range(2):
        sim = run_seed(7, trace=True)
        histories.append((sim.world.trace, sim.world.events, sim.clients.acknowledged))
    assert histories[0] == histories[1]
