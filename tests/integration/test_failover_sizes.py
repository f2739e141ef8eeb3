"""Clusters of other sizes and kinds: two nodes, five nodes, nodes that may not lead, and a node copied afresh."""

from __future__ import annotations

import pytest

from chaos.inspection import judge_servers
from chaos.runner import prepare
from chaos.testbed import Plan
from tests.support.drills import drill, testbed

pytestmark = pytest.mark.timeout(300)


def test_two_nodes() -> None:
    with testbed(Plan(nodes=2, etcd=1)) as bed:
        drill(bed, "kill-postgres", hold_s=1)
        drill(bed, "kill-standby", hold_s=5, at_most_s=40)  # commits wait until the rule is that of a lone primary


def test_five_nodes() -> None:
    with testbed(Plan(nodes=5, etcd=1)) as bed:
        drill(bed, "kill-node", hold_s=2, failovers=(1, 2))
        drill(bed, "switchover", hold_s=1)


def test_only_eligible_nodes_take_over() -> None:
    """n1 and n2 are in the primary region; n3 is far away and n4 may not lead."""
    near = {"FLYPG_REGION": "ams", "FLYPG_PRIMARY_REGION": "ams"}
    env = {
        "n1": near,
        "n2": near,
        "n3": {"FLYPG_REGION": "syd", "FLYPG_PRIMARY_REGION": "ams"},
        "n4": {**near, "FLYPG_NOFAILOVER": "true"},
    }
    with testbed(Plan(nodes=4, etcd=1, node_env=env)) as bed:
        assert bed.primary.name in ("n1", "n2")
        for _ in range(2):
            drill(bed, "kill-postgres", hold_s=1)
            assert bed.primary.name in ("n1", "n2")
        views = bed.watch.views()
        assert not any("n3" in rule.voters for _, view in views for rule in view.rules), "a far node was a voter"
        assert {view.primary for _, view in views} <= {"n1", "n2", None}


def test_an_agent_is_restarted_and_a_node_whose_data_is_gone_is_copied_afresh() -> None:
    """With a long lease: on a busy machine an agent may need longer to start than the usual one lasts."""
    with testbed(Plan(nodes=3, etcd=1, env={"FLYPG_LEASE_TTL_S": "60"})) as bed:
        drill(bed, "restart-agent", hold_s=1)  # which compares the postmaster's pid
        prepare(bed)
        lost = bed.standbys[0]
        lost.kill()
        lost.pgdata.rename(lost.directory / "gone")
        lost.start()
        bed.wait_healthy(90)
        verdicts = judge_servers(bed, list(bed.nodes.values()))
        assert all(v.ok is not False for v in verdicts), verdicts
