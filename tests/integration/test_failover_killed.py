"""Something is killed on a real cluster under write load: nothing is lost, and writes go on."""

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


def test_postmaster_killed(bed: Testbed) -> None:
    result = drill(bed, "kill-postmaster", hold_s=1)
    assert result.failovers >= 1 or bed.primary.name == result.victim, "failed over, or restarted in place"


def test_all_of_postgres_killed_comes_back_by_rewind(bed: Testbed) -> None:
    drill(bed, "kill-postgres", hold_s=1)


def test_whole_node_killed_and_started_again(bed: Testbed) -> None:
    result = drill(bed, "kill-node", hold_s=2, failovers=(1, 2))
    assert result.phases is not None
    assert result.phases.primary != result.victim


def test_two_failovers_in_a_row(bed: Testbed) -> None:
    before = bed.watch.view
    drill(bed, "kill-node", hold_s=1)
    drill(bed, "kill-node", hold_s=1)
    after = bed.watch.view
    assert before is not None and after is not None
    assert after.term >= before.term + 2
    assert len({branch.timeline for branch in after.branches}) == len(after.branches), "a timeline was used twice"


def test_switchover_under_load(bed: Testbed) -> None:
    before = bed.primary.name
    result = drill(bed, "switchover", hold_s=1, failovers=(1, 2))
    assert result.failovers > 1 or bed.primary.name != before


def test_agent_killed_and_nobody_restarts_it(bed: Testbed) -> None:
    drill(bed, "kill-agent", hold_s=15)


def test_standby_lost_and_back(bed: Testbed) -> None:
    result = drill(bed, "kill-standby", hold_s=6)
    rules = [view.rule for at, view in bed.watch.views(result.fault) if view.rule is not None]
    assert any(result.victim not in rule.voters for rule in rules), "the rule did not shrink"
    view = bed.watch.view
    assert view is not None and view.rule is not None
    assert result.victim in view.rule.voters | {view.primary}, "the rule did not grow again"


def test_haproxy_killed(bed: Testbed) -> None:
    drill(bed, "kill-haproxy", hold_s=1)
