"""Something is frozen on a real cluster under write load, and woken again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.testbed import Plan, Testbed
from tests.support.drills import drill, testbed

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with testbed(Plan(nodes=3, etcd=1)) as running:
        yield running


def test_whole_node_frozen_and_woken(bed: Testbed) -> None:
    result = drill(bed, "freeze-node", hold_s=4, failovers=(1, 2))
    assert result.phases is not None
    assert result.phases.primary != result.victim


def test_postgres_frozen(bed: Testbed) -> None:
    drill(bed, "freeze-postgres", hold_s=3)


def test_only_the_postmaster_frozen(bed: Testbed) -> None:
    drill(bed, "freeze-postmaster", hold_s=3)


def test_agent_frozen(bed: Testbed) -> None:
    drill(bed, "freeze-agent", hold_s=14)


def test_standby_frozen(bed: Testbed) -> None:
    drill(bed, "freeze-standby", hold_s=3)
