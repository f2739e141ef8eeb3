"""A volume is forked: several machines wake with copies of the same data, and with what the old node had promised."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from chaos.places import Node
from chaos.testbed import Plan, Testbed
from cluster.codec import decode
from cluster.model import Disk
from tests.support.drills import PROGRAMS, testbed
from tests.support.pgserver import BIN

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed"),
    pytest.mark.skipif(any(shutil.which(name) is None for name in PROGRAMS), reason=f"needs {', '.join(PROGRAMS)}"),
]


def sql(conninfo: str, *statements: str) -> object:
    """The first value of the last statement's answer. The server may only just be opening its door to clients."""
    until = time.monotonic() + 30
    while True:
        try:
            connection = psycopg.connect(conninfo, autocommit=True)
            break
        except psycopg.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
    with connection:
        for statement in statements:
            cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


class Forked(Testbed):
    """Every node begins with a copy of a volume: all of the same one, or each of its own."""

    volume = Path()

    def _settings(self, node: Node) -> dict[str, str]:
        own = self.volume / node.name
        volume = own if own.exists() else self.volume
        subprocess.run(["cp", "-a", f"{volume}/.", str(node.directory)], check=True, timeout=120)
        return super()._settings(node)


def identity(directory: Path) -> object:
    return json.loads((directory / "identity.json").read_text())


def words(directory: Path) -> Disk:
    return decode(Disk, (directory / "state.json").read_bytes(), "")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """Of a cluster that goes on: taken as a fork takes it, at one moment, in the middle of everything."""
    with testbed(Plan(nodes=1, etcd=1, cluster="shop")) as bed:
        node = bed.nodes["n1"]
        table = "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id"
        sql(node.through_proxy, table, "CHECKPOINT", "INSERT INTO kept VALUES (1001)")
        node.kill()
        subprocess.run(["cp", "-a", str(node.directory), str(tmp_path / "volume")], check=True, timeout=120)
    yield tmp_path / "volume"


def test_forks_of_one_volume_found_one_cluster(volume: Path) -> None:
    assert identity(volume) == {"cluster": "shop", "node": "n1", "restored_from": ""}
    bed = Forked(Plan(nodes=3, etcd=1, cluster="fork", env={"FLYPG_RESTORED_FROM": "vol_1"}))
    bed.volume = volume
    with bed:
        assert len(bed.standbys) == 2
        for name, node in bed.nodes.items():
            assert identity(node.directory) == {"cluster": "fork", "node": name, "restored_from": "vol_1"}
            assert sql(node.direct, "SELECT count(*) FROM kept") == 1001, name
        # copies of one promise are no votes: a failover needs what the nodes say now, and works
        lost, survivor = bed.primary, bed.standbys[0]
        lost.kill()
        assert sql(survivor.through_proxy, "INSERT INTO kept VALUES (1002)", "SELECT count(*) FROM kept") == 1002


def test_a_cluster_is_restored_under_its_own_names(tmp_path: Path) -> None:
    """Every volume goes back to a snapshot, etcd is empty: what the nodes had promised would keep them out for ever."""
    with testbed(Plan(nodes=2, etcd=1, cluster="shop")) as bed:
        sql(bed.primary.through_proxy, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id")
        for _ in range(2):
            bed.switchover()
            bed.wait_healthy()
        for name, node in bed.nodes.items():
            node.kill()
            subprocess.run(["cp", "-a", str(node.directory), str(tmp_path / name)], check=True, timeout=120)
    promised = {name: words(tmp_path / name).promised for name in ("n1", "n2")}
    assert all(term > 2 for term in promised.values()), promised
    bed = Forked(Plan(nodes=2, etcd=1, cluster="shop", env={"FLYPG_RESTORED_FROM": "vs_1"}))
    bed.volume = tmp_path
    with bed:
        standby = bed.standbys[0]
        assert sql(bed.primary.through_proxy, "INSERT INTO kept VALUES (1001)", "SELECT count(*) FROM kept") == 1001
        for name, node in bed.nodes.items():
            assert identity(node.directory) == {"cluster": "shop", "node": name, "restored_from": "vs_1"}
            assert words(node.directory).promised < promised[name]
        # the setting stays where it is: what is promised in the new cluster binds
        given = words(standby.directory)
        assert given.promised > 0
        standby.kill()
        standby.start()
        bed.wait_healthy()
        assert words(standby.directory).promised >= given.promised


def test_the_setting_on_a_living_cluster_costs_no_promise() -> None:
    """`fly secrets set FLY_RESTORED_FROM=…` reaches every machine of the app, also those that were there before."""
    with testbed(Plan(nodes=2, etcd=1, cluster="shop")) as bed:
        bed.switchover()
        bed.wait_healthy()
        standby = bed.standbys[0]
        given = words(standby.directory)
        assert given.promised > 1
        standby.kill()
        standby.env["FLYPG_RESTORED_FROM"] = "vs_1"
        standby.start()
        bed.wait_healthy()
        assert words(standby.directory).promised >= given.promised
        assert not (standby.directory / "state.before.json").exists()
