"""Logins through PgBouncer: users and roles as with PostgreSQL itself, TLS, and nothing of the password to be seen."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from agent.routing.pooler_config import PoolerSettings
from agent.routing.program import owner_of, write_owned
from agent.shown import fingerprint, shown_at
from cluster.model import Spec
from cluster.x509 import parse
from postgres.tls import Tls, TlsState
from tests.integration.test_roles import CAN, CANNOT, PASSWORD
from tests.support.certificates import authority
from tests.support.pgserver import PgServer
from tests.support.pooled import (
    NEEDED,
    SPEC,
    address,
    ask,
    connect,
    pooler_settings,
    released,
    running,
    two_servers,
)

pytestmark = NEEDED


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PgServer, PgServer]]:
    with two_servers() as both:
        yield both


@pytest.fixture
def settings() -> Iterator[PoolerSettings]:
    with pooler_settings() as made:
        yield made


async def test_logins_pass_through(settings: PoolerSettings, servers: tuple[PgServer, PgServer]) -> None:
    a, _ = servers
    async with running(settings) as pooler:
        pooler.route(address(a), SPEC, 1)
        await released(pooler)
        assert await asyncio.to_thread(ask, settings, "SELECT session_user::text, current_user::text", "ada") == [
            ("ada", "schema_admin")
        ]
        a.sql("ALTER ROLE veteran VALID UNTIL '2001-01-01'")
        for user in ("wanda", "nobody", "flypgadmin", "veteran"):
            password = "wrong" if user == "wanda" else PASSWORD
            with pytest.raises(psycopg.OperationalError):
                await asyncio.to_thread(connect, settings, user, password=password, connect_timeout=20)
        a.sql("ALTER ROLE veteran VALID UNTIL 'infinity'")
        with pytest.raises(psycopg.OperationalError):
            await asyncio.to_thread(connect, settings, "flypg_pooler", "pgbouncer")


async def test_every_can_and_cannot_through_the_pooler(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    a, _ = servers
    async with running(settings) as pooler:
        pooler.route(address(a), Spec(), 1)
        await released(pooler)
        await asyncio.to_thread(cans_and_cannots, settings)


def cans_and_cannots(settings: PoolerSettings) -> None:
    for user, statements in CAN:
        with connect(settings, user) as connection:
            for statement in filter(None, (s.strip() for s in statements.split(";"))):
                connection.execute(statement.encode())
    for user, statement, error in CANNOT:
        with connect(settings, user) as connection, pytest.raises(psycopg.Error, match=error):
            connection.execute(statement.encode())


async def test_the_password_is_in_no_command_line_and_no_readable_file(
    settings: PoolerSettings, servers: tuple[PgServer, PgServer]
) -> None:
    async with running(settings) as pooler:
        assert pooler.pid is not None
        assert settings.password not in open_text(Path(f"/proc/{pooler.pid}/cmdline"))
        assert settings.password not in repr(settings)
        assert settings.run_dir.stat().st_mode & 0o077 == 0
        assert (settings.run_dir / "users.txt").stat().st_mode & 0o077 == 0


def open_text(path: Path) -> str:
    return path.read_text()


async def test_clients_may_use_tls(settings: PoolerSettings, servers: tuple[PgServer, PgServer]) -> None:
    """A certificate comes, and is replaced, while clients are connected: none of them notices."""
    signer, tls = authority(settings.log_dir), TlsState()
    a, _ = servers
    async with running(replace(settings, tls=tls)) as pooler:
        pooler.route(address(a), SPEC, 1)
        await released(pooler)
        clients = [await asyncio.to_thread(connect, settings, sslmode="prefer")]
        assert clients[0].pgconn.ssl_in_use is False
        for name in ("first", "second"):
            pair = signer.pair(name)
            file = settings.log_dir / "server.pem"
            write_owned(file, pair.certificate.read_text() + pair.key.read_text(), owner_of(settings.user))
            tls.shown = Tls(file, file, parse(file.read_text()).fingerprint)
            pooler.refresh()
            wanted = tls.shown.fingerprint
            async with asyncio.timeout(30):
                while fingerprint(await shown_at("127.0.0.1", settings.port) or b"") != wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            verify = {"sslmode": "verify-full", "sslrootcert": str(signer.certificate)}
            clients.append(await asyncio.to_thread(connect, settings, **verify))
            assert clients[-1].pgconn.ssl_in_use
        clients.append(await asyncio.to_thread(connect, settings, sslmode="disable"))
        for client in clients:
            with client:
                assert client.execute("SELECT 1").fetchone() == (1,)
