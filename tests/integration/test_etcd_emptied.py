"""All of etcd's data is lost, the nodes have theirs: nothing is founded, promoted or lost until an operator says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from chaos.testbed import Plan, Testbed
from tests.support.drills import testbed
from tests.support.pgserver import BIN

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed"),
]
WORD = ("failover", "--accept-data-loss", "--yes", "--wait", "60")


@pytest.fixture
def bed() -> Iterator[Testbed]:
    with testbed(Plan(nodes=3, etcd=1)) as running:
        primary = running.primary
        write(running, primary.name, "CREATE TABLE kept (word text)", "INSERT INTO kept VALUES ('first')")
        yield running


def write(bed: Testbed, through: str, *statements: str) -> Any:
    """The first value of the last answer."""
    with psycopg.connect(bed.nodes[through].through_proxy, autocommit=True, connect_timeout=60) as connection:
        for statement in statements:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def words(bed: Testbed, through: str) -> object:
    return write(bed, through, "SELECT string_agg(word, ' ' ORDER BY word) FROM kept")


def flypg(bed: Testbed, *command: str) -> subprocess.CompletedProcess[str]:
    return bed.flypg(*command, timeout_s=120, check=False)


def status(bed: Testbed) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(flypg(bed, "status", "--json").stdout)
    return found


def until(bed: Testbed, wanted: Callable[[dict[str, Any]], bool], within_s: float = 60.0) -> dict[str, Any]:
    end = time.monotonic() + within_s
    while not wanted(found := status(bed)):
        assert time.monotonic() < end, json.dumps(found, indent=1)
        time.sleep(0.2)
    return found


def empty_etcd(bed: Testbed) -> None:
    """Its members lose their disks, and start again."""
    for member in bed.etcd.values():
        member.kill()
        shutil.rmtree(member.directory)
        member.directory.mkdir()
        member.start()


def take_up(bed: Testbed) -> None:
    taken = flypg(bed, *WORD)
    assert taken.returncode == 0, taken.stdout + taken.stderr
    until(bed, lambda s: s["failover_without_loss"] and [node["healthy"] for node in s["nodes"]] == [True] * 3)


def all_have_told(found: dict[str, Any]) -> bool:
    told = [node["problem"] for node in found["nodes"] if "etcd has lost this cluster" in node["problem"]]
    return found["leader"] is not None and len(told) == 3


def test_a_cluster_that_runs_goes_on_until_an_operator_takes_it_up(bed: Testbed) -> None:
    flypg(bed, "switchover", "--wait", "60")  # so that its term is no first one
    bed.wait_healthy()
    primary, others = bed.primary, [node.name for node in bed.standbys]
    postmaster = primary.postmaster()
    empty_etcd(bed)
    found = until(bed, all_have_told)
    assert not found["founded"] and "etcd has lost this cluster" in found["serving_why"]
    time.sleep(12)  # longer than any lease of before: nobody is founded, fenced or cut off
    write(bed, others[0], "INSERT INTO kept VALUES ('meanwhile')")
    assert not status(bed)["founded"]
    now = primary.postmaster()
    assert postmaster is not None and now is not None and now.pid == postmaster.pid
    refused = flypg(bed, "switchover")
    assert refused.returncode != 0 and "etcd has lost this cluster" in refused.stdout + refused.stderr
    take_up(bed)
    assert words(bed, others[0]) == "first meanwhile"
    assert status(bed)["term"] > 10, "above whatever was promised, also by nodes that were not there"
    write(bed, others[1], "INSERT INTO kept VALUES ('since')")
    assert words(bed, others[0]) == "first meanwhile since"


def test_of_nodes_that_were_stopped_the_furthest_is_chosen_though_it_comes_last(bed: Testbed) -> None:
    primary = bed.primary
    first, second = bed.standbys
    first.kill()
    until(bed, lambda s: [rule["voters"] for rule in s["rules"]] == [[second.name]])
    write(bed, primary.name, "INSERT INTO kept VALUES ('without the first')")
    second.kill()
    primary.kill()
    empty_etcd(bed)
    first.start()
    until(bed, lambda s: any("etcd has lost this cluster" in node["problem"] for node in s["nodes"]))
    time.sleep(3)  # past every moment of grace
    assert not status(bed)["founded"], "alone it would found the cluster without what was acknowledged since"
    second.start()
    primary.start()
    until(bed, all_have_told)
    take_up(bed)
    assert words(bed, first.name) == "first without the first"
