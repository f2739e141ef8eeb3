"""The order in which nodes are restarted for parameters that wait for it."""

from __future__ import annotations

from dataclasses import replace

from flypg.commands.rolling import order
from tests.unit.stories import B, C, primary, snap, standby, view

WAITS = ("max_connections",)


def test_standbys_first_the_primary_last() -> None:
    waiting = [replace(r, pending_restart=WAITS) for r in (primary(), standby(C), standby(B))]
    assert order(snap(view(), *waiting)) == ["b", "c", "a"]


def test_only_those_that_wait() -> None:
    assert order(snap(view(), primary(), standby(B), replace(standby(C), pending_restart=WAITS))) == ["c"]
    assert order(snap()) == []
