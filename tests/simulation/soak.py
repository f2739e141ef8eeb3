"""Many seeds: `python -m tests.simulation.soak --seeds 0-9999 [--processes 2]`."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.sim import run_seed

CHUNK = 25


def failures(seeds: range) -> list[tuple[int, str]]:
    """Seeds that fail, with what happened."""
    found = []
    gc.disable()
    for seed in seeds:
        try:
            run_seed(seed)
        except Exception as error:  # a bug of any kind in the code under test is what this looks for
            found.append((seed, f"{type(error).__name__}: {error}"))
        if seed % 5 == 0:
            gc.collect()
    gc.enable()
    return found


def soak(seeds: range, processes: int) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    chunks = [range(start, min(start + CHUNK, seeds.stop)) for start in range(seeds.start, seeds.stop, CHUNK)]
    with ProcessPoolExecutor(processes) as pool:
        for chunk, found in zip(chunks, pool.map(failures, chunks), strict=True):
            yield len(chunk), found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("--seeds", default="0-9999", help="first-last, or a number of seeds")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    first, dash, last = options.seeds.partition("-")
    seeds = range(int(first), int(last) + 1) if dash else range(int(first))
    began, done, failed = time.perf_counter(), 0, 0
    for count, found in soak(seeds, options.processes):
        done += count
        failed += len(found)
        for seed, text in found:
            print(f"FAILED {seed}: {text}\n  replay: python -m tests.simulation.replay {seed} --trace", flush=True)
        if sys.stderr.isatty():
            print(f"\r{done}/{len(seeds)} seeds, {failed} failed", end="", file=sys.stderr)
    spent = time.perf_counter() - began
    print(
        f"{done} seeds in {spent:.1f} s ({1000 * spent * options.processes / max(done, 1):.0f} ms each),"
        f" {failed} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
