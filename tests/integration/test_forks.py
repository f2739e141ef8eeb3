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
    """Every node begins with a copy of one volume."""

    volume = Path()

    def _settings(self, node: Node) -> dict[str, str]:
        subprocess.run(["cp", "-a", f"{self.volume}/.", str(node.directory)], check=True, timeout=120)
        return super()._settings(node)


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
    assert json.loads((volume / "identity.json").read_text()) == {"cluster": "shop", "node": "n1"}
    bed = Forked(Plan(nodes=3, etcd=1, cluster="fork", env={"FLYPG_RESTORED_FROM": "vol_1"}))
    bed.volume = volume
    with bed:
        assert len(bed.standbys) == 2
        for name, node in bed.nodes.items():
            assert json.loads((node.directory / "identity.json").read_text()) == {"cluster": "fork", "node": name}
            assert sql(node.direct, "SELECT count(*) FROM kept") == 1001, name
        # copies of one promise are no votes: a failover needs what the nodes say now, and works
        lost, survivor = bed.primary, bed.standbys[0]
        lost.kill()
        assert sql(survivor.through_proxy, "INSERT INTO kept VALUES (1002)", "SELECT count(*) FROM kept") == 1002
