"""A volume of the primary has no byte left."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from chaos.testbed import Plan, Testbed
from tests.support.drills import drill, testbed

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="small volumes are mounted, which needs root"),
]


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with testbed(Plan(nodes=3, etcd=1, data_mb=400, wal_mb=400)) as running:
        yield running


def test_the_wal_volume_is_full(bed: Testbed) -> None:
    result = drill(bed, "fill-wal", hold_s=1, failovers=(1, 2))
    assert result.phases is not None
    assert result.phases.primary != result.victim


def test_the_data_volume_is_full_while_wal_has_room(bed: Testbed) -> None:
    result = drill(bed, "fill-data", hold_s=12, failovers=(1, 2))  # rows fit into pages that are there, for a while
    assert result.phases is not None
    assert result.phases.primary != result.victim
