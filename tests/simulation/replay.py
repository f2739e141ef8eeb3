"""Replay a seed: `python -m tests.simulation.replay SEED [--trace]`."""

from __future__ import annotations

import sys
import time
import traceback

from tests.simulation.sim import Simulation


def replay(seed: int, *, trace: bool) -> int:
    """Run it and print its history. 0: everything held; 1: a violation or a bug, printed with the history before it."""
    sim = Simulation(seed, trace=trace)
    began = time.perf_counter()
    try:
        sim.run()
    except Exception:  # whatever it was, what led to it is wanted first
        print("\n".join(sim.world.trace))
        traceback.print_exc()
        print(f"seed {seed} failed at {sim.world.now:.3f} s of simulated time", file=sys.stderr)
        return 1
    print("\n".join(sim.world.trace))
    print(
        f"seed {seed}: {sim.world.now:.1f} s simulated in {time.perf_counter() - began:.3f} s,"
        f" {sim.world.events} events,"
        f" {len(sim.nodes)} nodes, term {sim.store.view.term if sim.store.view else 0},"
        f" {sim.clients.acknowledged} of {sim.clients.invoked} writes acknowledged"
    )
    return 0


if __name__ == "__main__":
    sys.exit(replay(int(sys.argv[1]), trace="--trace" in sys.argv[2:]))
