"""What users set for their sessions is not for flypg's own; a volume on which they did is taken over."""

from __future__ import annotations

import asyncio
import signal

import psycopg
import pytest

from chaos.testbed import Plan
from postgres.connection import open_session
from tests.integration.test_adoption import filled, volume
from tests.support.drills import testbed
from tests.support.pgserver import BIN, PgServer
from tests.support.versions import VERSIONS, binaries, missing

__all__ = ["volume"]
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed"),
]
HARD = {
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
}
# these begin before a session of ours can say otherwise, so a busy machine must be given time to say it
SINCE = {14: {"idle_session_timeout": "1s"}, 17: {"transaction_timeout": "1s"}}
EASY = {name: "0" for name in (*HARD, "idle_session_timeout", "transaction_timeout")} | {
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "search_path": "pg_catalog",
}


def reason(version: int) -> str:
    return missing(version)


@pytest.mark.parametrize(
    "version", [pytest.param(v, marks=pytest.mark.skipif(bool(reason(v)), reason=reason(v) or "-")) for v in VERSIONS]
)
def test_no_setting_of_users_reaches_a_session_of_ours(version: int) -> None:
    with binaries(version) as programs:
        server = PgServer(binaries=programs)
        try:
            server.initdb()
            server.start()
            hard = HARD | {
                name: value for since, more in SINCE.items() if version >= since for name, value in more.items()
            }
            with server.connect("postgres") as connection:
                connection.execute("ALTER DATABASE postgres SET search_path = 'theirs, pg_catalog'")
                for name, value in hard.items():
                    connection.execute(f"ALTER ROLE postgres IN DATABASE postgres SET {name} = '{value}'")

            async def shown() -> dict[str, str]:
                sockets = {"host": str(server.sockets), "port": server.port, "user": "postgres", "dbname": "postgres"}
                connection = await open_session(**sockets)
                try:
                    await asyncio.sleep(1.2)  # idle
                    await connection.execute("SELECT pg_sleep(1.2)")
                    found = {}
                    for name in (*hard, "search_path"):
                        row = await (await connection.execute(f"SHOW {name}")).fetchone()  # type: ignore[arg-type]
                        assert row is not None
                        found[name] = str(row[0])
                    return found
                finally:
                    await connection.close()

            assert asyncio.run(shown()) == {name: EASY[name] for name in (*hard, "search_path")}
        finally:
            server.remove()


@pytest.mark.parametrize("kind", ["read only", "no database postgres"])
def test_a_volume_that_its_users_made_hard_to_use_is_taken_over(volume: PgServer, kind: str) -> None:
    """Read only is what Fly's app makes of a database whose disk is nearly full; some drop what they do not use."""
    filled(volume, "alice")
    if kind == "read only":
        volume.sql("CREATE ROLE postgres LOGIN NOSUPERUSER PASSWORD 'weak'")
        volume.sql("ALTER DATABASE template1 ALLOW_CONNECTIONS false")
        volume.sql("ALTER DATABASE postgres SET statement_timeout = '1ms'")
        with volume.connect("postgres") as connection:
            connection.execute("SET statement_timeout = 0")
            connection.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
    else:
        with volume.connect("template1") as connection:
            connection.execute("DROP DATABASE postgres")
    volume.stop(signal.SIGINT)
    if kind == "read only":
        with (volume.data / "postgresql.conf").open("a") as file:
            file.write("default_transaction_read_only = on\nstatement_timeout = 1ms\n")
    plan = Plan(nodes=1, etcd=1, node_env={"n1": {"FLYPG_PGDATA": str(volume.data)}})
    with testbed(plan) as bed:
        node = bed.nodes["n1"]
        options = "-c default_transaction_read_only=off -c statement_timeout=0"
        with psycopg.connect(node.through_proxy, autocommit=True, options=options) as connection:
            if kind == "read only":
                assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
            connection.execute("CREATE TABLE fresh (id int)")
        if kind == "read only":
            with psycopg.connect(node.through_proxy) as connection, pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("SELECT pg_sleep(1)")
            bed.flypg("users", "create", "ann", "--role", "reader")
