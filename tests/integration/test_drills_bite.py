"""Drills fail on a build that is broken on purpose: else their passing would prove nothing."""

from __future__ import annotations

import dataclasses

import pytest

from chaos.drills import DRILLS
from chaos.results import Result
from chaos.runner import run_drill
from chaos.testbed import Plan
from tests.support.broken_agent import VARIABLE
from tests.support.drills import testbed

pytestmark = pytest.mark.timeout(300)
HEAL_S = 60.0


def broken(bug: str, drill: str, *, hold_s: float) -> Result:
    """What a drill says of a cluster whose agents have a planted bug."""
    env = {VARIABLE: bug, "FLYPG_LEASE_TTL_S": "5", "FLYPG_SENTINEL_TTL_S": "3"}
    plan = Plan(nodes=3, etcd=1, namespaces=True, module="tests.support.broken_agent", env=env)
    with testbed(plan) as bed:
        planned = dataclasses.replace(DRILLS[drill], hold_s=hold_s, heal_s=HEAL_S)
        return run_drill(bed, planned, say=lambda text: print(text, flush=True))


def told(result: Result, checker: str) -> bool | None:
    return next(v.ok for v in result.verdicts if v.checker == checker)


def test_a_primary_that_waits_for_nobody_is_found_out() -> None:
    result = broken("rule ignored", "isolate", hold_s=3)
    assert not result.passed
    assert result.lost > 0 and told(result, "durability") is False, result.line
    assert result.doubled > 0 and told(result, "one primary") is False, result.line


def test_a_primary_chosen_before_the_old_one_was_revoked_is_found_out() -> None:
    result = broken("revocation skipped", "laggard", hold_s=9)
    assert not result.passed
    assert result.lost > 0 and told(result, "durability") is False, result.line
