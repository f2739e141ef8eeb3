"""A request waits for a sentinel to lead, not for a cluster to be founded."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from cluster.model import Snapshot
from cluster.store import OperatorStore
from flypg.asking import ready
from flypg.reply import Refused
from tests.unit.stories import snap, view

LED, ALONE = snap(view()), snap(view(), leader=None)


class Told:
    """A store that tells one snapshot after the other, and goes on with the last."""

    def __init__(self, *snapshots: Snapshot) -> None:
        self.left = list(snapshots)

    async def read(self) -> Snapshot:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


def asked(store: Told, within_s: float) -> Snapshot:
    return asyncio.run(ready(cast(OperatorStore, store), within_s))


def test_the_next_leader_is_waited_for() -> None:
    assert asked(Told(ALONE, ALONE, LED), 60.0) is LED


def test_where_nobody_leads_it_is_refused() -> None:
    with pytest.raises(Refused, match="no sentinel leads"):
        asked(Told(ALONE), 0.2)


def test_a_cluster_that_was_never_founded_is_not_waited_for() -> None:
    with pytest.raises(Refused, match="never founded"):
        asked(Told(replace(LED, view=None, leader=None, reports={})), 3600.0)


def test_a_cluster_that_etcd_has_lost_is_said_to_be_that() -> None:
    with pytest.raises(Refused, match="etcd has lost this cluster"):
        asked(Told(replace(LED, view=None)), 3600.0)
