"""PgBouncer's files: where it leads, what differs by version, and what must not be in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.pooling import pool_stats
from agent.routing import pooler_config as config
from agent.routing.pooler_config import PoolerSettings, Pools
from agent.routing.target import Address
from cluster.pool import PoolMode, Share
from postgres.tls import Tls, TlsState

SETTINGS = PoolerSettings(Path("/data/run/pooler"), Path("/data/log"), 6432, 'secret"word')
POOLS = Pools(Address("fdaa::1", 5433), Share(200, 13, 4, 17), PoolMode.SESSION, {"shop": PoolMode.TRANSACTION})


def lines(pools: Pools = POOLS, version: tuple[int, int] = (1, 18)) -> list[str]:
    return config.render(SETTINGS, pools, version).splitlines()


def test_it_leads_to_the_primary() -> None:
    assert "* = host=fdaa::1 port=5433" in lines()
    assert "shop = host=fdaa::1 port=5433 pool_mode=transaction" in lines()
    assert "* = host=127.0.0.1 port=1" in lines(replace(POOLS, primary=None)), "without one it is refused"


def test_sizes_and_the_traps() -> None:
    found = lines()
    for line in (
        "pool_mode = session",
        "max_client_conn = 200",
        "default_pool_size = 13",
        "reserve_pool_size = 4",
        "max_db_connections = 17",
        "server_login_retry = 0.2",
    ):
        assert line in found


@pytest.mark.parametrize(
    ("version", "there", "not_there"),
    [
        ((1, 18), [], ["auth_dbname", "max_prepared_statements"]),
        ((1, 19), ["auth_dbname"], ["max_prepared_statements"]),
        ((1, 25), ["auth_dbname", "max_prepared_statements"], []),
    ],
)
def test_what_a_version_knows(version: tuple[int, int], there: list[str], not_there: list[str]) -> None:
    names = {line.partition(" = ")[0] for line in lines(version=version)}
    assert names >= set(there)
    assert not names & set(not_there)


def test_versions() -> None:
    assert config.parse_version("PgBouncer 1.18.0\nlibevent 2.1.12-stable") == (1, 18)
    assert config.parse_version("?") == (0, 0)


def test_the_password_is_in_the_user_list_only() -> None:
    assert config.render_users(SETTINGS) == '"flypg_pooler" "secret""word"\n'
    assert "secret" not in "\n".join(lines()) + repr(SETTINGS) + config.HBA


def test_a_certificate_is_used_when_there_is_one() -> None:
    tls = TlsState(shown=Tls(Path("/c.pem"), Path("/c.pem"), "abc"))
    settings = replace(SETTINGS, tls=tls)
    before = config.render(settings, POOLS, (1, 18))
    assert "client_tls_sslmode = prefer" in before
    tls.required = True
    assert "client_tls_sslmode = require" in config.render(settings, POOLS, (1, 18))
    tls.required, tls.shown = False, Tls(Path("/c.pem"), Path("/c.pem"), "def")
    assert config.render(settings, POOLS, (1, 18)) != before, "another certificate in the same file is loaded too"
    assert config.fingerprint_of(settings, (1, 18)) == config.fingerprint_of(SETTINGS, (1, 18)), (
        "a pooler of before there was TLS is adopted: its clients stay connected"
    )


def test_the_primary_is_verified_when_that_is_possible() -> None:
    settings = replace(SETTINGS, tls=TlsState(bundle=Path("/ca.crt"), verified=frozenset({("fdaa::1", 5433)})))
    assert "server_tls_sslmode = prefer" in config.render(settings, POOLS, (1, 18))
    found = config.render(settings, replace(POOLS, verified=True), (1, 18))
    assert "server_tls_sslmode = verify-ca" in found and "server_tls_sslmode = prefer" not in found
    assert "server_tls_ca_file = /ca.crt" in found


def test_the_server_of_the_same_node_is_asked_without_tls_unless_tls_is_required() -> None:
    tls = TlsState(bundle=Path("/ca.crt"), shown=Tls(Path("/c.pem"), Path("/c.pem"), "abc"))
    settings, pools = replace(SETTINGS, tls=tls), replace(POOLS, here=True, plain=True, verified=True)
    assert "server_tls_sslmode = disable" in config.render(settings, pools, (1, 18))
    tls.required = True
    assert "server_tls_sslmode = verify-ca" in config.render(settings, pools, (1, 18))


def test_pools_as_the_console_shows_them() -> None:
    row = {
        "database": "shop",
        "user": "ada",
        "cl_active": "3",
        "cl_waiting": "1",
        "sv_active": "2",
        "sv_idle": "0",
        "sv_used": "0",
        "maxwait": "1",
        "maxwait_us": "500000",
    }
    (pool,) = pool_stats([row, {"database": "pgbouncer", "user": "pgbouncer"}])
    assert (pool.database, pool.client_active, pool.maxwait_s) == ("shop", 3, 1.5)
