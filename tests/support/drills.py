"""Drills as tests: the same faults and judges, bounds by order of magnitude only, since test machines are busy."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from chaos.drills import DRILLS
from chaos.history import NEVER
from chaos.netns import available
from chaos.results import Result
from chaos.runner import run_drill
from chaos.target import Target
from chaos.testbed import Plan, Testbed

BUSY = 10.0  # how many times its bar an outage may last here
FLOOR_S = 15.0  # and what is always allowed
HEAL_S = 90.0
PROGRAMS = ("etcd", "etcdctl", "haproxy")


@contextmanager
def testbed(plan: Plan) -> Iterator[Testbed]:
    """A running cluster; skips, with the reason, where this machine cannot have it."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if plan.namespaces and (why := available()):
        pytest.skip(why)
    with Testbed(plan, lambda text: print(text, flush=True)) as bed:
        yield bed


testbed.__test__ = False  # type: ignore[attr-defined]


def drill(
    bed: Target, name: str, *, hold_s: float, failovers: tuple[int, ...] | None = None, at_most_s: float = FLOOR_S
) -> Result:
    """Run a drill and demand what must hold on any machine: nothing lost, one primary, all nodes the same in the end.

    `failovers`: how many changes of primary are right; None accepts any number, as a busy machine may cause one more.
    `at_most_s`: an outage that is always allowed.
    """
    planned = DRILLS[name]
    result = run_drill(
        bed, dataclasses.replace(planned, hold_s=hold_s, heal_s=HEAL_S), say=lambda text: print(text, flush=True)
    )
    told = "\n".join(f"{v.checker}: {v.ok}: {v.text}" for v in result.verdicts) + f"\n{result.errors}"
    for verdict in result.verdicts:
        if verdict.checker not in ("outage", "failovers", "pooled clients"):
            assert verdict.ok is not False, told
    assert result.durability is not None, told
    assert result.durability.acknowledged > 50, told
    assert result.lost == 0 and result.doubled == 0, told
    assert result.outage_s is not None and result.outage_s != NEVER, told
    assert result.outage_s < max(planned.bar_s * BUSY, at_most_s), told
    if failovers is not None:
        assert result.failovers in failovers, told
    return result
