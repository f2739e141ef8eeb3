"""Open transactions as a real server tells them."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from postgres.transactions import OpenTransaction, open_transactions
from tests.support.pgserver import BIN, PgServer

pytestmark = pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"PostgreSQL is not installed in {BIN}")


def test_open_transactions_of_clients() -> None:
    server = PgServer()
    try:
        server.initdb()
        server.start()
        server.sql("CREATE ROLE flypgadmin SUPERUSER LOGIN")
        with server.connect() as idle, server.connect() as open_one, server.connect() as ours:
            idle.execute("SELECT 1")
            open_one.execute("SET application_name = 'report'")
            open_one.execute("BEGIN")
            open_one.execute("SELECT 'one\n   two', " + ", ".join(str(n) for n in range(60)))
            ours.execute("SET SESSION AUTHORIZATION flypgadmin")
            listed = asyncio.run(listing(server, 0.0))
            assert [t.application for t in listed if t.application == "report"] == ["report"]
            found = next(t for t in listed if t.application == "report")
            assert (found.pid, found.state) == (open_one.info.backend_pid, "idle in transaction")
            assert (found.user, found.database) == (idle.info.user, idle.info.dbname)
            assert found.query.startswith("SELECT 'one two', 0, 1") and len(found.query) == 60
            assert found.age_s >= 0
            assert idle.info.backend_pid not in [t.pid for t in listed]
            assert asyncio.run(listing(server, 3600.0)) == []
    finally:
        server.remove()


async def listing(server: PgServer, older_s: float) -> list[OpenTransaction]:
    with server.connect() as known:
        parameters = known.info.get_parameters()
    connection = await psycopg.AsyncConnection.connect(**parameters, autocommit=True)
    try:
        return await open_transactions(connection, older_s)
    finally:
        await connection.close()
