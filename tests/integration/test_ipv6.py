"""A cluster in a network that has IPv6 and nothing else, as on Fly: everything listens and connects."""

from __future__ import annotations

import socket
import time
import urllib.request

import psycopg
import pytest

from chaos.testbed import Plan, written
from tests.support.drills import testbed

pytestmark = pytest.mark.timeout(300)


def test_a_cluster_that_has_only_ipv6() -> None:
    with testbed(Plan(nodes=3, etcd=1, namespaces=True, ipv6=True)) as bed:
        for node in bed.nodes.values():
            assert ":" in node.address
            for port in (node.ports.proxy, node.ports.postgres, node.ports.read):
                socket.create_connection((node.address, port), timeout=10).close()
            for port, path in ((node.ports.http, "/flycheck/pg"), (node.ports.metrics, "/metrics")):
                with urllib.request.urlopen(f"http://{written(node.address)}:{port}{path}", timeout=10) as answer:
                    assert answer.status == 200
        old = bed.primary
        through = next(node for node in bed.standbys)
        with psycopg.connect(through.through_proxy, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
        bed.flypg("switchover", "--to", through.name)
        bed.wait_healthy()
        assert bed.primary.name == through.name
        through.kill()
        deadline = time.monotonic() + 60
        while True:
            try:
                with psycopg.connect(old.through_proxy, autocommit=True, connect_timeout=5) as connection:
                    connection.execute("INSERT INTO kept VALUES (2)")
                    break
            except psycopg.Error as error:
                assert time.monotonic() < deadline, f"nobody took over: {error}"
                time.sleep(0.2)
        through.start()
        bed.wait_healthy()
