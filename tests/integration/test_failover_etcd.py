"""etcd is lost, in part or as a whole, under write load: a healthy cluster does not notice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.testbed import Plan, Testbed
from tests.support.drills import drill, testbed

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with testbed(Plan(nodes=3, etcd=3)) as running:
        yield running


def test_a_follower_of_etcd_killed(bed: Testbed) -> None:
    drill(bed, "kill-etcd-member", hold_s=3)


def test_the_leader_of_etcd_killed(bed: Testbed) -> None:
    drill(bed, "kill-etcd-leader", hold_s=3)


def test_all_of_etcd_gone_for_longer_than_any_lease(bed: Testbed) -> None:
    before = bed.primary
    postmaster = before.postmaster()
    drill(bed, "kill-etcd", hold_s=20)
    assert bed.primary is before
    assert postmaster is not None and before.postmaster() is not None
    assert postmaster.pid == before.postmaster().pid  # type: ignore[union-attr]


def test_all_of_etcd_frozen(bed: Testbed) -> None:
    before = bed.primary
    drill(bed, "freeze-etcd", hold_s=15)
    assert bed.primary is before
