"""Every deliberate bug of mutants.py is noticed, soon, and what notices it is silent without the bug."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, Mutant, catch

MOST_SEEDS = 500  # the dice fall anew with every change of the code under test: then other seeds notice


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_mutant_is_caught(mutant: Mutant) -> None:
    for seed in (*mutant.seeds, *range(MOST_SEEDS)):
        said = catch(mutant, seed)
        if said:
            mutant.simulation(seed).run()
            return
    pytest.fail(f"nobody noticed within {MOST_SEEDS} seeds that {mutant.name}")
