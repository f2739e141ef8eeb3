"""Every deliberate bug of mutants.py is noticed, and the seeds that notice it pass without it."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, Mutant, catch


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_mutant_is_caught(mutant: Mutant) -> None:
    assert mutant.seeds, "no seed is known that catches it"
    said = {seed: catch(mutant, seed) for seed in mutant.seeds}
    assert any(said.values()), f"nobody noticed that {mutant.name} under the seeds {mutant.seeds}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_without_the_bug_all_is_well(mutant: Mutant) -> None:
    for seed in mutant.seeds:
        mutant.simulation(seed).run()
