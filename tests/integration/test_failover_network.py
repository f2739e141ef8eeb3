"""Cables are cut between real machines-in-miniature: packets vanish, nobody is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.testbed import Plan, Testbed
from tests.support.drills import drill, testbed

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with testbed(Plan(nodes=3, etcd=3, namespaces=True)) as running:
        yield running


def test_the_primarys_machine_is_lost(bed: Testbed) -> None:
    result = drill(bed, "lose-machine", hold_s=2, failovers=(1, 2))
    assert result.phases is not None
    assert result.phases.primary != result.victim


def test_the_primary_is_cut_off_and_a_client_beside_it_goes_on_writing(bed: Testbed) -> None:
    result = drill(bed, "isolate", hold_s=14, failovers=(1, 2))
    inside = [w for w in result.writes if w.path.startswith("inside") and w.acknowledged]
    opened = min(w.done for w in result.writes if w.acknowledged and w.timeline > min(x.timeline for x in inside))
    assert inside, "the client beside the primary never wrote"
    assert all(w.invoked < opened for w in inside), "an isolated server acknowledged a write"


def test_the_primary_hears_nobody(bed: Testbed) -> None:
    drill(bed, "deaf", hold_s=3)


def test_nobody_hears_the_primary(bed: Testbed) -> None:
    drill(bed, "mute", hold_s=3)


def test_the_primary_is_cut_off_from_etcd_only(bed: Testbed) -> None:
    drill(bed, "cut-etcd", hold_s=14)
