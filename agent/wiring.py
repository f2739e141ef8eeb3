"""From settings to the parts of an agent: paths, passwords, connections. Errors name what to do."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from agent.routing.haproxy_config import HAProxySettings, ipv6_works
from agent.routing.pooler_config import PoolerSettings
from agent.routing.program import owner_of
from agent.tls import TlsFiles, TlsSettings, begin, read_settings, refuse_wrong
from backups.config import BackupConfig, read_config, values_of
from backups.facts import NodeFacts, archive_settings
from cluster.clock import SystemClock
from cluster.endpoints import nearest
from cluster.errors import InstanceError, SettingsError
from cluster.etcd import Etcd
from cluster.etcd_store import EtcdStore
from cluster.model import Member
from cluster.settings import Settings
from healthchecks.config import HttpConfig
from healthchecks.settings import configured
from postgres.command import account, closed_above
from postgres.config import InstanceConfig, Passwords
from postgres.roles import pooler_password
from postgres.tls import built_with_tls

if TYPE_CHECKING:
    from agent.drills import DrillSetup

ANY = ("0.0.0.0", "::")
NEAR_S = 0.05  # for a connection to a primary in this region; a client that is held is tried again as often
FAR_S = 1.0  # to one on the other side of the world


@dataclass(frozen=True, slots=True)
class Parts:
    """What a node is made of."""

    cluster: str
    member: Member
    etcd: Etcd
    store: EtcdStore
    instance: InstanceConfig
    tls: TlsSettings
    tls_files: TlsFiles
    haproxy: HAProxySettings
    pooler: PoolerSettings | None  # None: PgBouncer is not installed
    http: HttpConfig
    backups: BackupConfig
    facts: NodeFacts
    state_file: Path
    ttl_s: float
    renew_s: float
    margin_s: float
    sentinel_ttl_s: float
    sentinel: bool
    stop_within_s: float
    version: str
    primary_region: str
    drills: DrillSetup | None  # None: they are switched off


def assemble(settings: Settings) -> Parts:
    """Make the directories and put the parts together. Raises SettingsError or InstanceError."""
    if settings.pg_bin_dir is None:
        raise SettingsError("FLYPG_PG_BIN_DIR", "", "no PostgreSQL was found: install it (apt-get install postgresql)")
    if settings.haproxy is None:
        raise SettingsError("FLYPG_HAPROXY", "", "HAProxy was not found: install it (apt-get install haproxy)")
    _ports_are_free(settings)
    user = settings.os_user or None
    base = settings.data_dir
    tls_settings = _tls(settings, settings.pg_bin_dir)
    tls_files = TlsFiles(base / "conf", base, owner_of(user or ""))
    refuse_wrong(tls_settings, tls_files, time.time())
    make_directories(settings)
    etcd = Etcd(settings.etcd, first=nearest(settings.etcd, settings.host, settings.node))
    clock = SystemClock()
    store = EtcdStore(
        etcd,
        settings.cluster,
        settings.node,
        clock=clock,
        ttl_s=settings.lease_ttl_s,
        sentinel_ttl_s=settings.sentinel_ttl_s,
    )
    listen = addresses(settings.listen)
    backups = read_config(values_of(settings), base)
    facts = _facts(settings, settings.pg_bin_dir)
    refuse_closed(settings, backups.scratch)
    archiving = archive_settings(backups, facts)
    instance = InstanceConfig(
        pgdata=settings.pgdata,
        conf=base / "conf",
        run=base / "run",
        log=base / "log",
        binaries=settings.pg_bin_dir,
        port=settings.ports.postgres,
        passwords=passwords(settings),
        listen=settings.listen,
        user=user,
        tls=begin(tls_settings, tls_files, time.time()),
        archive_command=archiving.command,
        archive_timeout_s=archiving.timeout_s,
    )
    return Parts(
        cluster=settings.cluster,
        member=settings.member,
        etcd=etcd,
        store=store,
        instance=instance,
        tls=tls_settings,
        tls_files=tls_files,
        haproxy=_haproxy(settings, listen),
        pooler=_pooler(settings, instance, listen, user or ""),
        http=_http(settings, listen),
        backups=backups,
        facts=facts,
        state_file=base / "state.json",
        ttl_s=settings.lease_ttl_s,
        renew_s=settings.lease_renew_s,
        margin_s=settings.fence_margin_s,
        sentinel_ttl_s=settings.sentinel_ttl_s,
        sentinel=settings.sentinel,
        stop_within_s=10.0,
        version=metadata.version("flypg"),
        primary_region=settings.primary_region,
        drills=_drills(settings, instance, listen) if settings.drills else None,
    )


def _tls(settings: Settings, binaries: Path) -> TlsSettings:
    """As the settings say; off where this PostgreSQL has none, unless TLS was asked for."""
    found = read_settings(settings.values)
    if found.mode == "off" or built_with_tls(binaries):
        return found
    if found.own or found.mode == "required":
        raise SettingsError("FLYPG_PG_BIN_DIR", str(binaries), "this PostgreSQL was built without TLS")
    logging.getLogger("flypg.agent").warning("this PostgreSQL was built without TLS: there is none")
    return replace(found, mode="off")


def _facts(settings: Settings, binaries: Path) -> NodeFacts:
    return NodeFacts(
        node=settings.node,
        cluster=settings.cluster,
        data_dir=settings.data_dir,
        pgdata=settings.pgdata,
        run_dir=settings.data_dir / "run",
        postgres_port=settings.ports.postgres,
        user=settings.os_user or None,
        programs=str(binaries),
    )


def _haproxy(settings: Settings, listen: tuple[str, ...]) -> HAProxySettings:
    near = settings.region == (settings.primary_region or settings.region)
    return HAProxySettings(
        run_dir=settings.data_dir / "run",
        log_dir=settings.data_dir / "log",
        ports=settings.ports,
        listen=listen,
        user=settings.os_user,
        program=str(settings.haproxy),
        connect_timeout_s=NEAR_S if near else FAR_S,
    )


def _http(settings: Settings, listen: tuple[str, ...]) -> HttpConfig:
    config = HttpConfig(
        listen=listen,
        http_port=settings.ports.http,
        metrics_port=settings.ports.metrics,
        token=settings.api_token,
        data_dir=str(settings.data_dir),
        wal_dir=str(settings.pgdata / "pg_wal"),
    )
    return configured(config, settings.values)


def _pooler(settings: Settings, instance: InstanceConfig, listen: tuple[str, ...], user: str) -> PoolerSettings | None:
    if settings.pgbouncer is None:
        return None
    return PoolerSettings(
        run_dir=instance.run / "pooler",
        log_dir=instance.log,
        port=settings.ports.pooler,
        password=pooler_password(instance.passwords.operator),
        listen=listen,
        user=user,
        program=str(settings.pgbouncer),
        tls=instance.tls,
    )


def _drills(settings: Settings, instance: InstanceConfig, listen: tuple[str, ...]) -> DrillSetup:
    from agent.drills import DrillSetup  # for those who switch them on

    ports = settings.ports
    return DrillSetup(
        cluster=settings.cluster,
        node=settings.node,
        data_dir=settings.data_dir,
        pgdata=settings.pgdata,
        listen=listen,
        port=settings.drills_port,
        etcd=tuple((endpoint.host, endpoint.port) for endpoint in settings.etcd.endpoints),
        client_ports=(ports.proxy, ports.read, ports.pooler),
        ports=(ports.proxy, ports.postgres, ports.read, ports.pooler, ports.http, ports.metrics),
        password=instance.passwords.superuser,
    )


def addresses(listen: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses to bind; "*" means every one, of both families where the machine has IPv6."""
    if "*" in listen:
        return ANY if ipv6_works() else ANY[:1]
    return listen


def make_directories(settings: Settings) -> None:
    """The node's directory and what is below it; the servers' user may write where the servers write.

    Raises InstanceError when it cannot be made.
    """
    base = settings.data_dir
    owner = account(settings.os_user or None)
    try:
        base.mkdir(parents=True, exist_ok=True)
        for name in ("conf", "run", "log"):
            directory = base / name
            directory.mkdir(exist_ok=True)
            directory.chmod(0o750 if name != "run" else 0o755)
            if owner is not None:
                os.chown(directory, owner.uid, owner.gid)
        settings.pgdata.parent.mkdir(parents=True, exist_ok=True)
        if owner is not None and settings.pgdata.parent == base:
            os.chown(base, owner.uid, owner.gid)
    except OSError as error:
        raise InstanceError(f"the data directory {base} cannot be used: {error.strerror}: {error.filename}") from error


def refuse_closed(settings: Settings, scratch: Path) -> None:
    """Raise InstanceError for a place that the servers' user cannot get to, as below root's home."""
    user = account(settings.os_user or None)
    places = {"FLYPG_DATA_DIR": settings.data_dir, "FLYPG_PGDATA": settings.pgdata, "FLYPG_SNAPSHOT_SCRATCH": scratch}
    programs = {
        "FLYPG_PG_BIN_DIR": settings.pg_bin_dir and settings.pg_bin_dir / "postgres",
        "FLYPG_HAPROXY": settings.haproxy,
        "FLYPG_PGBOUNCER": settings.pgbouncer,
    }
    for key, path in (places | programs).items():
        closed = closed_above(path, user) if path is not None else None
        if closed is not None and user is not None:
            raise InstanceError(
                f"{path}: the user {user.name}, as whom servers run, cannot enter {closed}: choose another {key}"
                f", or chmod o+x {closed}"
            )


def passwords(settings: Settings) -> Passwords:
    """As the settings say; what they leave out is generated once and kept in a file that only we can read."""
    file = settings.data_dir / "secrets.json"
    given = {  # in the order of Passwords; on Fly the operator is `postgres`, and SU_PASSWORD is that of flypgadmin
        "OPERATOR_PASSWORD": settings.operator_password,
        "SU_PASSWORD": settings.su_password,
        "REPL_PASSWORD": settings.repl_password,
    }
    kept: dict[str, str] = {}
    if not all(given.values()):
        try:
            kept = json.loads(file.read_text())
        except FileNotFoundError:
            kept = {}
        except ValueError as error:
            raise InstanceError(f"{file} is not JSON: repair it, or set {', '.join(given)}") from error
        missing = {key: secrets.token_urlsafe(18) for key, value in given.items() if not value and not kept.get(key)}
        if missing:
            kept |= missing
            temporary = file.with_suffix(".new")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as out:
                out.write(json.dumps(kept))
                out.flush()
                os.fsync(out.fileno())
            temporary.rename(file)
    return Passwords(*(value or kept[key] for key, value in given.items()))


def lock_directory(base: Path) -> int:
    """Make sure that no other agent keeps this directory. Raises InstanceError; the lock ends with this process."""
    descriptor = os.open(base / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise InstanceError(f"another agent (pid {holder or '?'}) keeps {base}: stop it first") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _ports_are_free(settings: Settings) -> None:
    """Only ports that this agent itself will bind are tried; PostgreSQL and HAProxy may run on from an agent before."""
    for key, port in (("FLYPG_HTTP_PORT", settings.ports.http), ("FLYPG_METRICS_PORT", settings.ports.metrics)):
        for address in addresses(settings.listen):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    probe.bind((address, port))
                except OSError as error:
                    raise SettingsError(key, port, f"cannot listen on {address}: {error.strerror}") from None
