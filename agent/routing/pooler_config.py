"""What PgBouncer is given: the settings of this node's pooler and the files made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.routing.pooler_admin import ADMIN
from agent.routing.slots import REFUSING
from agent.routing.target import Address
from cluster.pool import PoolMode, Share
from postgres.tls import TlsState

LOGIN_RETRY_S = 0.2  # with PgBouncer's own 15 s a failover of half a second would be one of 15
QUERY_WAIT_S = 60  # a client that got no server for so long is told so; above any failover


@dataclass(frozen=True, slots=True)
class PoolerSettings:
    """How PgBouncer runs on this node."""

    run_dir: Path  # its own directory: configuration, socket and user list
    log_dir: Path
    port: int
    password: str = field(repr=False)  # of the user it looks others up as
    listen: tuple[str, ...] = ("0.0.0.0", "::")
    user: str = "postgres"  # when the agent is root
    program: str = "pgbouncer"
    tls: TlsState = field(default_factory=TlsState)


@dataclass(frozen=True, slots=True)
class Pools:
    """What may change while it runs."""

    primary: Address | None  # numeric; None: there is none, connections to it are refused
    share: Share
    mode: PoolMode = PoolMode.SESSION
    modes: Mapping[str, PoolMode] = field(default_factory=dict)  # by database
    verified: bool = False  # the primary shows a certificate that can be verified
    here: bool = False  # it is this node's own server
    plain: bool = False  # which may be asked without TLS: nothing leaves the machine


def parse_version(text: str) -> tuple[int, int]:
    """(1, 18) from what `pgbouncer --version` prints; (0, 0) when it cannot be told."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


HBA = f"""\
local pgbouncer {ADMIN} trust
host all all 0.0.0.0/0 scram-sha-256
host all all ::/0 scram-sha-256
"""


def render_users(settings: PoolerSettings) -> str:
    escaped = settings.password.replace('"', '""')
    return f'"{ADMIN}" "{escaped}"\n'


def render(settings: PoolerSettings, pools: Pools, version: tuple[int, int]) -> str:
    """pgbouncer.ini."""
    at = pools.primary or REFUSING
    where = f"host={at.host} port={at.port}"
    lines = ["; Written by flypg; changes made here are lost.", f"; certificates: {settings.tls.mark}", "[databases]"]
    lines += [f"{database} = {where} pool_mode={mode}" for database, mode in sorted(pools.modes.items())]
    lines += [f"* = {where}", "", "[pgbouncer]"]
    lines += [f"{name} = {value}" for name, value in (_fixed(settings, version) | _tls(settings, pools)).items()]
    lines += [f"{name} = {value}" for name, value in _changing(pools).items()]
    return "\n".join([*lines, ""])


def _fixed(settings: PoolerSettings, version: tuple[int, int]) -> dict[str, object]:
    """What needs a restart, or never changes."""
    run = settings.run_dir
    fixed: dict[str, object] = {
        "listen_addr": ",".join(settings.listen),
        "listen_port": settings.port,
        "unix_socket_dir": run,
        "unix_socket_mode": "0700",
        "auth_type": "hba",
        "auth_hba_file": run / "pg_hba.conf",
        "auth_file": run / "users.txt",
        "auth_user": ADMIN,
        "auth_query": "SELECT uname, phash FROM flypg.user_lookup($1)",
        "admin_users": ADMIN,
        "ignore_startup_parameters": "extra_float_digits,options",
        "server_login_retry": LOGIN_RETRY_S,
        "server_connect_timeout": QUERY_WAIT_S,  # of a login: one that HAProxy holds is not to count as failed
        "server_check_delay": 10,
        "server_lifetime": 3600,
        "server_idle_timeout": 300,
        "query_wait_timeout": QUERY_WAIT_S,
        "reserve_pool_timeout": 3,
        "tcp_keepalive": 1,
        "tcp_keepidle": 5,
        "tcp_keepintvl": 2,
        "tcp_keepcnt": 2,
        "tcp_user_timeout": 5000,
        "log_connections": 0,
        "log_disconnections": 0,
        "log_stats": 0,
        "server_tls_sslmode": "prefer",
    }
    if version >= (1, 19):
        fixed["auth_dbname"] = "postgres"
    if version >= (1, 21):
        fixed["max_prepared_statements"] = 200
    return fixed


def _tls(settings: PoolerSettings, pools: Pools) -> dict[str, object]:
    """TLS to both sides. A RELOAD takes it up, and open connections stay as they are."""
    found: dict[str, object] = {}
    tls = settings.tls
    if tls.shown is not None:
        found["client_tls_sslmode"] = "require" if tls.required else "prefer"
        found["client_tls_cert_file"] = tls.shown.certificate
        found["client_tls_key_file"] = tls.shown.key
    if pools.plain and not tls.required:
        found["server_tls_sslmode"] = "disable"
    elif pools.verified:
        found["server_tls_sslmode"] = "verify-ca"
        found["server_tls_ca_file"] = tls.bundle
    return found


def _changing(pools: Pools) -> dict[str, object]:
    share = pools.share
    return {
        "pool_mode": pools.mode,
        "max_client_conn": share.clients,
        "default_pool_size": share.pool,
        "reserve_pool_size": share.reserve,
        "max_db_connections": share.most,
    }


def fingerprint_of(settings: PoolerSettings, version: tuple[int, int]) -> str:
    """What an adopted PgBouncer must have been started with."""
    return repr(sorted((name, str(value)) for name, value in _fixed(settings, version).items()))
