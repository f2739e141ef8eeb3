"""The settings of one node: read once from environment over file, typed, checked together, refused by key.

docs/settings.md lists them for operators. Keys that begin like one of FOREIGN belong to the packages that read them.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from cluster import values as read
from cluster.endpoints import DEFAULT_PORT, Endpoint, EtcdOptions, parse_endpoint
from cluster.errors import SettingsError
from cluster.keys import CLUSTER_NAME
from cluster.model import NODE_NAME, Member, NodeId, Ports
from cluster.values import FILE_SUFFIX, Values

SECRETS = (
    "SU_PASSWORD",  # of the superuser `flypgadmin`, as on Fly
    "OPERATOR_PASSWORD",  # of the superuser `postgres`, the operator
    "REPL_PASSWORD",  # of `repluser`, between nodes
    "FLYPG_API_TOKEN",
    "FLYPG_ETCD_PASSWORD",
)
PORT_KEYS = {
    "proxy": "FLYPG_PROXY_PORT",
    "postgres": "FLYPG_POSTGRES_PORT",
    "read": "FLYPG_READ_PORT",
    "pooler": "FLYPG_POOLER_PORT",
    "http": "FLYPG_HTTP_PORT",
    "metrics": "FLYPG_METRICS_PORT",
    "stats": "FLYPG_STATS_PORT",
}
OF_FLY = {  # ours, and what it is called on Fly or in Fly's own Postgres app
    "FLYPG_CLUSTER": "FLY_APP_NAME",
    "FLYPG_NODE": "FLY_MACHINE_ID",
    "FLYPG_HOST": "FLY_PRIVATE_IP",
    "FLYPG_REGION": "FLY_REGION",
    "FLYPG_PRIMARY_REGION": "PRIMARY_REGION",
    "FLYPG_POSTGRES_PORT": "PG_PORT",
    "FLYPG_PROXY_PORT": "PG_PROXY_PORT",
    "FLYPG_RESTORED_FROM": "FLY_RESTORED_FROM",
}
KNOWN = frozenset(
    {
        *(secret + suffix for secret in SECRETS for suffix in ("", FILE_SUFFIX)),
        *PORT_KEYS.values(),
        *OF_FLY,
        "FLYPG_CONFIG",
        "FLYPG_DATA_DIR",
        "FLYPG_PGDATA",
        "FLYPG_LISTEN",
        "FLYPG_ETCD_ENDPOINTS",
        "FLYPG_ETCD_CA_FILE",
        "FLYPG_ETCD_CERT_FILE",
        "FLYPG_ETCD_KEY_FILE",
        "FLYPG_ETCD_USER",
        "FLYPG_PG_BIN_DIR",
        "FLYPG_HAPROXY",
        "FLYPG_PGBOUNCER",
        "FLYPG_LEASE_TTL_S",
        "FLYPG_LEASE_RENEW_S",
        "FLYPG_FENCE_MARGIN_S",
        "FLYPG_SENTINEL_TTL_S",
        "FLYPG_SENTINEL",
        "FLYPG_TICK_S",
        "FLYPG_NOFAILOVER",
        "FLYPG_NOSYNC",
        "FLYPG_SEED_FROM",
        "FLYPG_PRIORITY",
        "FLYPG_DRILLS",
        "FLYPG_DRILLS_PORT",
        "FLYPG_LOG_FORMAT",
        "FLYPG_LOG_LEVEL",
        "FLYPG_OS_USER",
    }
)
FOREIGN = (
    "FLYPG_SNAPSHOT_",
    "FLYPG_WAL_",
    "FLYPG_S3_",
    "FLYPG_CHECK_",
    "FLYPG_METRICS_",
    "FLYPG_POOL_",
    "FLYPG_TLS_",
    "FLYPG_LOCAL_",
    "FLYPG_DRILL_",
)
LONGEST_SOCKET = 100  # bytes; the kernel allows 107
SERVER_USER = "postgres"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator decides about one node. Secrets never appear in a repr."""

    node: NodeId
    cluster: str
    data_dir: Path
    pgdata: Path
    host: str  # the address other nodes use
    listen: tuple[str, ...]  # addresses to listen on; "*" means all
    ports: Ports
    etcd: EtcdOptions
    pg_bin_dir: Path | None  # None: no PostgreSQL was found, as on a witness
    haproxy: Path | None  # None: not found
    pgbouncer: Path | None
    lease_ttl_s: float
    lease_renew_s: float
    fence_margin_s: float  # authority ends so long before the lease does
    sentinel_ttl_s: float
    sentinel: bool  # run a sentinel beside the keeper
    tick_s: float  # a turn at least so often
    region: str  # "" means unknown
    primary_region: str  # "" means every region
    restored_from: str  # the volume or snapshot that this cluster begins with; "" means none
    nofailover: bool
    nosync: bool
    priority: int
    drills: bool  # may `flypg drill --cluster` break this node?
    drills_port: int  # where a drill renews what it has asked for; 0: any free port
    log_format: str  # "text" or "json"
    log_level: str
    os_user: str  # whom the servers run as; "" means the caller
    su_password: str = field(default="", repr=False)  # "" means not set: generated
    operator_password: str = field(default="", repr=False)
    repl_password: str = field(default="", repr=False)
    api_token: str = field(default="", repr=False)  # "" means that commands need none
    values: Values = field(default_factory=lambda: MappingProxyType({}), repr=False)  # for those who read their own

    @property
    def member(self) -> Member:
        return Member(
            node=self.node,
            host=self.host,
            ports=self.ports,
            region=self.region,
            nofailover=self.nofailover,
            nosync=self.nosync,
            priority=self.priority,
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be logged."""
        found = (self.su_password, self.operator_password, self.repl_password, self.api_token, self.etcd.password)
        return tuple(secret for secret in found if secret)


def load(environment: Mapping[str, str] | None = None, config: Path | None = None) -> Settings:
    """The settings of this node. Raises SettingsError. `config` wins over FLYPG_CONFIG."""
    values = load_values(environment, config)
    data_dir = _absolute(values, "FLYPG_DATA_DIR", Path("/data"))
    ports = _ports(values)
    ttl_s = read.seconds(values, "FLYPG_LEASE_TTL_S", 10.0, at_least=2, at_most=3600)
    settings = Settings(
        node=node_name(values),
        cluster=cluster_name(values),
        data_dir=data_dir,
        pgdata=_absolute(values, "FLYPG_PGDATA", _usual_pgdata(data_dir)),
        host=read.text(values, "FLYPG_HOST", socket.gethostname()),
        listen=_list(read.text(values, "FLYPG_LISTEN", "*")),
        ports=ports,
        etcd=etcd_options(values),
        pg_bin_dir=_pg_bin_dir(values),
        haproxy=_program(values, "FLYPG_HAPROXY", "haproxy"),
        pgbouncer=_program(values, "FLYPG_PGBOUNCER", "pgbouncer"),
        lease_ttl_s=ttl_s,
        lease_renew_s=read.seconds(values, "FLYPG_LEASE_RENEW_S", ttl_s / 5, at_least=0.1),
        fence_margin_s=read.seconds(values, "FLYPG_FENCE_MARGIN_S", min(2.0, ttl_s / 5), at_least=0.1),
        sentinel_ttl_s=read.seconds(values, "FLYPG_SENTINEL_TTL_S", 5.0, at_least=2, at_most=3600),
        sentinel=read.flag(values, "FLYPG_SENTINEL", True),
        tick_s=read.seconds(values, "FLYPG_TICK_S", 1.0, at_least=0.05),
        region=read.text(values, "FLYPG_REGION"),
        primary_region=read.text(values, "FLYPG_PRIMARY_REGION"),
        restored_from=read.text(values, "FLYPG_RESTORED_FROM"),
        nofailover=read.flag(values, "FLYPG_NOFAILOVER"),
        nosync=read.flag(values, "FLYPG_NOSYNC"),
        priority=read.integer(values, "FLYPG_PRIORITY", 100, at_least=0, at_most=1000),
        drills=read.flag(values, "FLYPG_DRILLS"),
        drills_port=read.integer(values, "FLYPG_DRILLS_PORT", 0, at_least=0, at_most=65535),
        log_format=read.choice(values, "FLYPG_LOG_FORMAT", ("text", "json"), "text"),
        log_level=read.choice(values, "FLYPG_LOG_LEVEL", ("debug", "info", "warning", "error"), "info"),
        os_user=_os_user(values),
        su_password=read.secret(values, "SU_PASSWORD"),
        operator_password=read.secret(values, "OPERATOR_PASSWORD"),
        repl_password=read.secret(values, "REPL_PASSWORD"),
        api_token=read.secret(values, "FLYPG_API_TOKEN"),
        values=values,
    )
    return _together(settings)


def load_values(environment: Mapping[str, str] | None = None, config: Path | None = None) -> Values:
    """Environment over file, under our own names, unknown keys refused. Raises SettingsError."""
    found = dict(os.environ if environment is None else environment)
    named = found.get("FLYPG_CONFIG", "")
    path = config or (Path(named) if named else None)
    secret = {*SECRETS, "FLYPG_S3_SECRET_ACCESS_KEY", "FLYPG_SNAPSHOT_KEY"}
    file = read.from_toml(path, KNOWN, FOREIGN, secret) if path else {}
    for ours, theirs in OF_FLY.items():
        if not found.get(ours) and not file.get(ours) and (value := found.get(theirs)):
            found[ours] = sanitized(value) if ours == "FLYPG_NODE" else value
    return read.merge(found, file, KNOWN, FOREIGN)


def cluster_name(values: Values) -> str:
    """The cluster's name. Raises SettingsError."""
    name = read.text(values, "FLYPG_CLUSTER", "flypg")
    if not CLUSTER_NAME.match(name):
        raise SettingsError("FLYPG_CLUSTER", name, "must be letters, digits, - . _ and begin with a letter or digit")
    return name


def node_name(values: Values) -> NodeId:
    """This node's name, else made from the host's. Raises SettingsError."""
    name = read.text(values, "FLYPG_NODE") or sanitized(socket.gethostname())
    if not NODE_NAME.match(name):
        raise SettingsError("FLYPG_NODE", name, "must be 1 to 40 of a-z, 0-9 and _")
    return NodeId(name)


def sanitized(name: str) -> str:
    """A machine's name as a node's: `My-Host.example` becomes `my_host_example`."""
    return re.sub(r"[^a-z0-9_]", "_", name.lower())[:40]


def etcd_options(values: Values) -> EtcdOptions:
    """How to reach etcd. Raises SettingsError."""
    key = "FLYPG_ETCD_ENDPOINTS"
    written = read.text(values, key, f"http://127.0.0.1:{DEFAULT_PORT}")
    endpoints: list[Endpoint] = []
    for part in _list(written):
        try:
            endpoints.append(parse_endpoint(part))
        except ValueError as error:
            raise SettingsError(key, written, str(error)) from None
    if not endpoints:
        raise SettingsError(key, written, "must name at least one endpoint, like http://etcd1:2379")
    if len(set(endpoints)) != len(endpoints):
        raise SettingsError(key, written, "names the same endpoint twice")
    if len({endpoint.tls for endpoint in endpoints}) != 1:
        raise SettingsError(key, written, "mixes http and https")
    ca, cert, private = (read.text(values, f"FLYPG_ETCD_{name}_FILE") for name in ("CA", "CERT", "KEY"))
    for name, path in (("CA", ca), ("CERT", cert), ("KEY", private)):
        if path and not endpoints[0].tls:
            raise SettingsError(f"FLYPG_ETCD_{name}_FILE", path, f"needs https:// in {key}")
    if bool(cert) != bool(private):
        raise SettingsError("FLYPG_ETCD_CERT_FILE", cert, "needs FLYPG_ETCD_KEY_FILE, and the other way round")
    user, password = read.text(values, "FLYPG_ETCD_USER"), read.secret(values, "FLYPG_ETCD_PASSWORD")
    if bool(user) != bool(password):
        raise SettingsError("FLYPG_ETCD_USER", user, "needs FLYPG_ETCD_PASSWORD, and the other way round")
    return EtcdOptions(tuple(endpoints), ca, cert, private, user, password)


def _list(written: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in written.split(",") if part.strip())


def _usual_pgdata(data_dir: Path) -> Path:
    """`pgdata`; on a volume that Fly's Postgres app has used, `postgres`, where it lies (or lay before a copy)."""
    ours, theirs = data_dir / "pgdata", data_dir / "postgres"
    try:
        used = not ours.exists() and (theirs.exists() or any(data_dir.glob("postgres.*-*")))
    except OSError:
        used = False  # whoever may not look here is told so when it is used
    return theirs if used else ours


def _absolute(values: Values, key: str, default: Path) -> Path:
    path = Path(read.text(values, key, str(default)))
    if not path.is_absolute():
        raise SettingsError(key, str(path), "must be an absolute path")
    return Path(os.path.normpath(path))


def _ports(values: Values) -> Ports:
    usual = Ports()
    found = {name: read.port(values, key, getattr(usual, name)) for name, key in PORT_KEYS.items()}
    seen: dict[int, str] = {}
    for name, number in found.items():
        if number in seen:
            raise SettingsError(PORT_KEYS[name], number, f"is the port of {PORT_KEYS[seen[number]]} too")
        seen[number] = name
    return Ports(**found)


def _pg_bin_dir(values: Values) -> Path | None:
    """Where `postgres` is: as told, else the newest of Debian's, else on the PATH, else None."""
    told = read.text(values, "FLYPG_PG_BIN_DIR")
    if told:
        if not os.access(Path(told) / "postgres", os.X_OK):
            raise SettingsError("FLYPG_PG_BIN_DIR", told, "has no program postgres")
        return Path(told)
    installed = [path for path in Path("/usr/lib/postgresql").glob("*/bin/postgres") if path.parts[-3].isdigit()]
    if installed:
        return max(installed, key=lambda path: int(path.parts[-3])).parent
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


def _program(values: Values, key: str, name: str) -> Path | None:
    told = read.text(values, key)
    if told and not os.access(told, os.X_OK):
        raise SettingsError(key, told, "is not a program")
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    found = told or shutil.which(name, path=path)
    return Path(found) if found else None


def _os_user(values: Values) -> str:
    """Whom the servers run as. Only root can choose."""
    key = "FLYPG_OS_USER"
    told = read.text(values, key)
    if os.geteuid() != 0:
        if told and told != pwd.getpwuid(os.geteuid()).pw_name:
            raise SettingsError(key, told, "only root can start servers as somebody else")
        return ""
    try:
        user = pwd.getpwnam(told or SERVER_USER)
    except KeyError:
        raise SettingsError(
            key, told or SERVER_USER, "there is no such user, and PostgreSQL does not run as root"
        ) from None
    if user.pw_uid == 0:
        raise SettingsError(key, user.pw_name, "PostgreSQL does not run as root")
    return user.pw_name


def _together(settings: Settings) -> Settings:
    """Check what only makes sense together. Raises SettingsError."""
    ttl_s, renew_s, margin_s = settings.lease_ttl_s, settings.lease_renew_s, settings.fence_margin_s
    for key, seconds in (("FLYPG_LEASE_TTL_S", ttl_s), ("FLYPG_SENTINEL_TTL_S", settings.sentinel_ttl_s)):
        if seconds != int(seconds):
            raise SettingsError(key, seconds, "must be whole seconds: etcd counts no smaller ones")
    if renew_s * 3 > ttl_s:  # survives two lost renewals
        raise SettingsError("FLYPG_LEASE_RENEW_S", renew_s, f"must be at most a third of FLYPG_LEASE_TTL_S ({ttl_s:g})")
    if margin_s >= ttl_s:
        raise SettingsError("FLYPG_FENCE_MARGIN_S", margin_s, f"must be below FLYPG_LEASE_TTL_S ({ttl_s:g})")
    if renew_s * 2 > ttl_s - margin_s:
        raise SettingsError(
            "FLYPG_FENCE_MARGIN_S",
            margin_s,
            f"leaves {ttl_s - margin_s:g} s of authority, too few for two renewals {renew_s:g} s apart",
        )
    if settings.tick_s > ttl_s / 2:
        raise SettingsError("FLYPG_TICK_S", settings.tick_s, f"must be at most half of FLYPG_LEASE_TTL_S ({ttl_s:g})")
    if settings.data_dir == settings.pgdata or settings.data_dir.is_relative_to(settings.pgdata):
        raise SettingsError("FLYPG_PGDATA", str(settings.pgdata), "must not contain FLYPG_DATA_DIR")
    if settings.host in ("*", "0.0.0.0", "::"):
        raise SettingsError("FLYPG_HOST", settings.host, "must be an address that the other nodes can reach")
    path = f"{settings.data_dir}/run/.s.PGSQL.{settings.ports.postgres}"
    if len(path.encode()) > LONGEST_SOCKET:
        raise SettingsError(
            "FLYPG_DATA_DIR", str(settings.data_dir), f"is too long: {path} would be over {LONGEST_SOCKET} bytes"
        )
    return settings
