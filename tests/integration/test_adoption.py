"""A cluster founded with somebody else's data directory: a volume as stolon left it after a crash, and a plain one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from chaos.testbed import Plan, Testbed
from cluster.errors import InstanceError
from postgres import adoption
from postgres.config import InstanceConfig, Passwords
from tests.support.certificates import authority
from tests.support.drills import testbed
from tests.support.pgserver import BIN, PgServer

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed"),
]
STOLON_HBA = """local postgres flypgadmin md5
host replication repluser 0.0.0.0/0 md5
host all nobody all reject   # an operator's, the others are stolon's
host all all 10.0.0.0/8 trust
host all all 0.0.0.0/0 md5
host all all ::0/0 md5
"""
STRANGER = 4711  # a uid that no user here has, as stolon's in another image


@pytest.fixture
def volume() -> Iterator[PgServer]:
    server = PgServer()
    server.data = server.root / "postgres"
    try:
        yield server
    finally:
        server.remove()


def filled(server: PgServer, superuser: str, **settings: str) -> None:
    """A cluster whose bootstrap superuser has that name, with a table, a user of old and a slot of stolon's."""
    arguments = ("-U", superuser, "--auth=trust", "-N", "--locale=C.UTF-8", "-E", "UTF8")
    server.program("initdb", "-D", server.data, *arguments)
    server.configure(**settings)
    with (server.data / "pg_hba.conf").open("w") as file:
        file.write("local all all trust\n")
    # a server without the user `postgres` cannot be asked as that: the test's own user is
    dsn = {"host": str(server.sockets), "port": server.port, "user": superuser, "dbname": "postgres"}
    server.connect = lambda database="postgres": psycopg.connect(**dsn | {"dbname": database}, autocommit=True)  # type: ignore[method-assign]
    server.start()
    for query in (
        "CREATE TABLE kept (id int PRIMARY KEY)",
        "INSERT INTO kept SELECT generate_series(1, 1000)",
        "SELECT pg_create_physical_replication_slot('stolon_5f3a2b1c', true)",
        "SET password_encryption = 'md5'; CREATE ROLE veteran LOGIN PASSWORD 'of old'",
        "GRANT SELECT ON kept TO veteran",
    ):
        server.sql(query)


def as_stolon_left_it(server: PgServer) -> None:
    """Its files beside PGDATA, a server that was killed, the setting file it links to nowhere, and another owner."""
    server.send(signal.SIGKILL)
    server.process.wait(30)
    time.sleep(0.5)
    auto = server.data / "postgresql.auto.conf"
    auto.unlink()
    auto.symlink_to("/dev/null")
    (server.data / "pg_hba.conf").write_text(STOLON_HBA)
    (server.root / "keeperstate").write_text('{"UID":"6b01e7a2","ClusterUID":"1b2c3d4e"}')
    (server.root / "dbstate").write_text(json.dumps({"UID": "5f3a2b1c", "Initializing": False}))
    if os.geteuid() == 0:
        for path in [server.root, *server.root.rglob("*")]:
            os.chown(path, STRANGER, STRANGER, follow_symlinks=False)


def with_tls_of_its_own(server: PgServer) -> None:
    """What the cluster's authority has to take the place of."""
    pair = authority(server.root).pair("of-old")
    for name, file in (("server.crt", pair.certificate), ("server.key", pair.key)):
        path = server.data / name
        path.write_bytes(file.read_bytes())
        path.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(path, "postgres", "postgres")
    server.sql("ALTER SYSTEM SET ssl = on")
    server.configure(ssl_ciphers="ECDHE+AESGCM", ssl_min_protocol_version="TLSv1.3")


def verified(bed: Testbed, root: Path) -> None:
    """Every port shows a certificate of the cluster's authority."""
    for node in bed.nodes.values():
        ports = node.ports
        for port in (ports.proxy, ports.postgres, ports.read, ports.pooler):
            dsn = psycopg.conninfo.make_conninfo(node.conninfo(port), sslmode="verify-full", sslrootcert=str(root))
            with psycopg.connect(dsn, connect_timeout=20) as connection:
                assert connection.pgconn.ssl_in_use, f"{node.name}:{port}"


@pytest.mark.parametrize("kind", ["stolon", "plain"])
def test_a_cluster_begins_with_the_data_it_is_given(volume: PgServer, kind: str) -> None:
    if kind == "stolon":
        filled(volume, "flypgadmin", log_min_duration_statement="1234", primary_conninfo="host=gone")
        as_stolon_left_it(volume)
    else:
        filled(volume, "alice", log_min_duration_statement="1234")
        with_tls_of_its_own(volume)
        volume.stop(signal.SIGINT)
    waiting = {"FLYPG_RESTORED_FROM": "vol_1"}  # whoever comes first without data founds nothing
    plan = Plan(
        nodes=2, etcd=1, env=waiting, node_env={"n1": {"FLYPG_PGDATA": str(volume.data), "FLYPG_PRIORITY": "200"}}
    )
    with testbed(plan) as bed:
        node = bed.nodes["n1"]
        with psycopg.connect(node.through_proxy, autocommit=True) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
            assert (
                connection.execute("SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ 'stolon'").fetchall()
                == []
            )
            roles = connection.execute("SELECT rolname FROM pg_roles WHERE rolsuper ORDER BY 1").fetchall()
            assert {"postgres", "flypgadmin"} <= {name for (name,) in roles}
            assert connection.execute("SHOW log_min_duration_statement").fetchone() == ("1234ms",)
            connection.execute("INSERT INTO kept VALUES (1001)")
        spec = bed.flypg("spec", "show").stdout
        assert "log_min_duration_statement" in spec and "primary_conninfo" not in spec
        if kind == "stolon":
            assert "host all nobody all reject" in spec and "trust" not in spec and "repluser" not in spec
        old = psycopg.conninfo.make_conninfo(node.through_proxy, user="veteran", password="of old")
        with psycopg.connect(old) as connection:
            assert connection.execute("SELECT max(id) FROM kept").fetchone() == (1001,), "old passwords are good"
        root = bed.directory / "root.crt"
        root.write_text(bed.flypg("tls", "ca").stdout)
        verified(bed, root)
        # it is an ordinary cluster now: another node takes over with everything
        bed.flypg("switchover", "--to", "n2")
        bed.wait_healthy()
        verified(bed, root)
        with psycopg.connect(bed.nodes["n1"].through_proxy) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1001,)


def test_what_is_not_recognised_is_refused_and_not_touched(volume: PgServer, tmp_path: Path) -> None:
    filled(volume, "alice")
    volume.stop(signal.SIGINT)
    config = InstanceConfig(volume.data, tmp_path, tmp_path, tmp_path, BIN, 1, Passwords("a", "b", "c"))

    def picture() -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in volume.root.rglob("*"):
            stat = path.lstat()
            found[str(path)] = (stat.st_uid, stat.st_mtime_ns, stat.st_size)
        return found

    def refusal() -> str:
        before = picture()
        with pytest.raises(InstanceError) as caught:
            adoption.inspect(config)
        assert picture() == before and list(tmp_path.iterdir()) == []
        return str(caught.value)

    assert adoption.inspect(config) is not None, "as it is, it can be taken over"
    (volume.data / "recovery.signal").touch()
    assert "recovery.signal" in refusal()
    (volume.data / "recovery.signal").unlink()
    (volume.root / "dbstate").write_text('{"Initializing": true}')
    assert "did not finish" in refusal()
    (volume.root / "dbstate").unlink()
    (volume.data / "PG_VERSION").write_text("14\n")
    assert "PostgreSQL 14" in refusal()
    (volume.data / "PG_VERSION").write_text("15\n")
    volume.start()
    with pytest.raises(InstanceError, match="stop it first"):
        adoption.inspect(config)
    volume.stop(signal.SIGINT)
    shutil.rmtree(volume.data / "global")
    assert "no PostgreSQL data directory" in refusal()
