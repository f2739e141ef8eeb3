"""What flypg writes into a server's configuration files, and what it keeps for itself. Pure.

Three layers, the later wins: defaults for the machine, the operator's `Spec.parameters`, and flypg's own settings, on
which safety rests (OWNED). The part that changes with every term lives in a file of its own, included last: whom to
receive WAL from and whom commits wait for. That file is never without `synchronous_standby_names` unless the rule is
that of a lone primary: emptying the list would acknowledge every commit that waits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import InstanceError
from cluster.model import NOBODY, NodeId, Rule, Upstream, slot_name, stamped
from postgres.tls import TlsState

SUPERUSER = "postgres"
OPERATOR = "flypgadmin"
REPLICATOR = "repluser"
IDENT_MAP = "flypg"
EVERYBODY = ("host all all 0.0.0.0/0 scram-sha-256", "host all all ::/0 scram-sha-256")
ENCRYPTED = tuple(line.replace("host ", "hostssl ", 1) for line in EVERYBODY)


@dataclass(frozen=True, slots=True)
class Passwords:
    """Of the three users flypg creates. Never printed."""

    superuser: str = field(repr=False)
    operator: str = field(repr=False)
    replicator: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """Where one PostgreSQL lives and how it is reached."""

    pgdata: Path
    conf: Path  # our configuration files, outside PGDATA: base backups and pg_rewind never touch them
    run: Path  # Unix sockets and small marks; its path must be short
    log: Path
    binaries: Path  # directory with postgres, initdb, …
    port: int
    passwords: Passwords
    listen: tuple[str, ...] = ("*",)  # addresses, IPv6 too
    user: str | None = "postgres"  # whom PostgreSQL runs as when we are root
    tls: TlsState = field(default_factory=TlsState)
    archive_command: str = ""  # "" means no archive; runs on a primary only
    archive_timeout_s: int = 0  # the longest that a change waits for the archive; 0 means until its segment is full
    memory_mb: int | None = None  # None means what the machine or its cgroup has
    people: tuple[str, ...] = ()  # more users of the operating system that may connect as superuser over the socket


@dataclass(frozen=True, slots=True)
class Dynamic:
    """The part of the configuration that changes with terms."""

    names: str  # synchronous_standby_names
    upstream: Upstream | None = None
    standing: bool = False  # the list has not been empty since the server's start, or is known to make backends wait
    demands: tuple[tuple[str, str], ...] = ()  # settings that a standby must have at least, from its control file


OWNED_VALUES = {
    "restore_command": "",
    "recovery_target_timeline": "latest",
    "hot_standby": "on",
    "wal_log_hints": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "restart_after_crash": "off",  # recovery in place would show clients what nobody acknowledged
    "wal_retrieve_retry_interval": "100ms",  # with its default of 5 s a promotion or a new stream may wait as long
    "wal_receiver_status_interval": "1s",
    "wal_receiver_timeout": "5s",
    "wal_sender_timeout": "5s",
    "password_encryption": "scram-sha-256",
    "update_process_title": "on",  # by its title we find the WAL receiver
    "lc_messages": "C",
    "logging_collector": "on",
    "log_destination": "stderr",
    "log_filename": "postgresql-%Y%m%d_%H%M%S.log",
    "log_file_mode": "0640",
    "log_rotation_age": "1d",
    "log_rotation_size": "10MB",
    "log_truncate_on_rotation": "off",
    "cluster_name": "",
}
LOCAL_NAMES = (
    "data_directory config_file hba_file ident_file external_pid_file listen_addresses port "
    "unix_socket_directories unix_socket_permissions unix_socket_group log_directory primary_conninfo "
    "primary_slot_name synchronous_standby_names archive_mode archive_command archive_library "
    "archive_cleanup_command recovery_end_command recovery_target recovery_target_action "
    "recovery_target_inclusive recovery_target_lsn recovery_target_name recovery_target_time "
    "recovery_target_xid recovery_min_apply_delay promote_trigger_file trigger_file ssl ssl_cert_file "
    "ssl_key_file ssl_ca_file include include_dir include_if_exists allow_alter_system "
)
OWNED = frozenset(OWNED_VALUES) | frozenset(LOCAL_NAMES.split())  # the operator cannot set these

PARAMETER = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?\Z")
HBA_LINE = re.compile(
    r"(local\s+\S+\s+\S+|(host|hostssl|hostnossl|hostgssenc|hostnogssenc)\s+\S+\s+\S+\s+\S+(\s+\d+\.\d+\.\d+\.\d+)?)"
    r"\s+(trust|reject|scram-sha-256|md5|password|gss|sspi|ident|peer|ldap|radius|cert|pam)(\s+\S+=\S+)*\s*\Z"
)


def check_parameters(parameters: Iterable[tuple[str, str]], hba: Iterable[str]) -> None:
    """Raises InstanceError naming the first wish that cannot be granted."""
    for name, value in parameters:
        if not PARAMETER.match(name):
            raise InstanceError(f"{name!r} is not the name of a PostgreSQL setting")
        if name in OWNED:
            raise InstanceError(f"the setting {name} belongs to flypg and cannot be changed")
        if "\n" in value or "\0" in value:
            raise InstanceError(f"the value of {name} must be one line")
        if name == "wal_level" and value not in ("replica", "logical"):
            raise InstanceError("wal_level must be replica or logical: standbys need it")
    for line in hba:
        if "\n" in line or not HBA_LINE.match(line.strip()):
            raise InstanceError(f"not a pg_hba line: {line!r}")


def settings_fingerprint(parameters: Iterable[tuple[str, str]], hba: Iterable[str]) -> str:
    """Short name of a set of wishes: equal when and only when they are."""
    return hashlib.sha256(json.dumps([sorted(parameters), list(hba)]).encode()).hexdigest()[:16]


def standby_names(rule: Rule) -> str:
    """`synchronous_standby_names` under `rule`: exactly its voters, under the names of its term; "" when it is lone."""
    if rule.lone:
        return ""
    names = (stamped(node, rule.term) for node in sorted(rule.voters))
    listed = ", ".join(name if name[0].isalpha() else f'"{name}"' for name in names)
    return f"ANY {rule.k} ({listed})"


NOBODY_NAMES = f"ANY 1 ({NOBODY})"


def quoted(value: str) -> str:
    """`value` as PostgreSQL's configuration files want it."""
    doubled = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
    return f"'{doubled}'"


def conninfo(parts: Mapping[str, object]) -> str:
    """A libpq connection string; never with a password in it."""

    def value(raw: object) -> str:
        text = str(raw)
        if re.fullmatch(r"[A-Za-z0-9_./:%@-]+", text):
            return text
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    return " ".join(f"{key}={value(raw)}" for key, raw in parts.items())


def passfile(config: InstanceConfig) -> Path:
    return config.conf / "passfile"


def remote_conninfo(config: InstanceConfig, source: Upstream, *, user: str, name: str, database: str = "") -> str:
    """How to reach `source` as one of flypg's own users; the password comes from the passfile."""
    parts: dict[str, object] = {
        "host": source.host,
        "port": source.port,
        "user": user,
        "passfile": passfile(config),
        "application_name": name,
        **config.tls.parameters(source.host, source.port),
        "connect_timeout": 3,
        "keepalives": 1,
        "keepalives_idle": 2,
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "tcp_user_timeout": 5000,
    }
    return conninfo(parts | ({"dbname": database} if database else {}))


def render_main(config: InstanceConfig, parameters: Mapping[str, str]) -> str:
    """postgresql.conf. `parameters`: defaults with the operator's wishes over them; owned ones are left out."""
    own = OWNED_VALUES | {
        "listen_addresses": ",".join(config.listen),
        "port": str(config.port),
        "unix_socket_directories": str(config.run),
        "unix_socket_permissions": "0777",
        "hba_file": str(config.conf / "pg_hba.conf"),
        "ident_file": str(config.conf / "pg_ident.conf"),
        "log_directory": str(config.log),
        # On, a stop in order ends a WAL file and sends all of it to every standby, which a switchover would wait for.
        "archive_mode": "on" if config.archive_command else "off",
        "archive_command": config.archive_command or "/bin/true",
        **({"archive_timeout": f"{config.archive_timeout_s}s"} if config.archive_command else {}),
    }
    if (shown := config.tls.shown) is not None:
        own |= {"ssl": "on", "ssl_cert_file": str(shown.certificate), "ssl_key_file": str(shown.key)}
    lines = ["# Written by flypg at every start and reload: change settings with `flypg spec set`, not here."]
    lines += [f"{k} = {quoted(v)}" for k, v in sorted(parameters.items()) if k not in OWNED]
    lines += ["", "# flypg's own"]
    lines += [f"{k} = {quoted(v)}" for k, v in sorted(own.items())]
    return "\n".join([*lines, "", "include 'flypg.conf'", ""])


STATE_MARK = "# state: "


def render_dynamic(config: InstanceConfig, me: NodeId, dynamic: Dynamic) -> str:
    """flypg.conf, the included file. Its first line keeps `dynamic` for an agent that adopts the server."""
    up = dynamic.upstream
    state = {
        "names": dynamic.names,
        "upstream": [up.node, up.host, up.port, up.term] if up else None,
        "standing": dynamic.standing,
        "demands": [list(d) for d in dynamic.demands],
    }
    settings = {"synchronous_standby_names": dynamic.names, "primary_conninfo": "", "primary_slot_name": ""}
    if up is not None:
        settings["primary_conninfo"] = remote_conninfo(config, up, user=REPLICATOR, name=up.application_name(me))
        settings["primary_slot_name"] = slot_name(me)
    lines = [STATE_MARK + json.dumps(state)]
    lines += [f"{k} = {quoted(v)}" for k, v in (*dynamic.demands, *settings.items())]
    return "\n".join([*lines, ""])


def parse_dynamic(text: str) -> Dynamic:
    """What `render_dynamic` noted; the state of a server without a rule when there is no such note."""
    first = text.partition("\n")[0]
    if not first.startswith(STATE_MARK):
        return Dynamic(NOBODY_NAMES)
    state = json.loads(first.removeprefix(STATE_MARK))
    up = state["upstream"]
    return Dynamic(
        names=state["names"],
        upstream=Upstream(NodeId(up[0]), up[1], int(up[2]), int(up[3])) if up else None,
        standing=bool(state["standing"]),
        demands=tuple((n, v) for n, v in state["demands"]),
    )


GATE_OPEN = "# gate: open"
GATE_CLOSED = "# gate: closed"


def render_hba(*, gate_open: bool, lines: tuple[str, ...], everybody: tuple[str, ...] = EVERYBODY) -> str:
    """pg_hba.conf: we and replication always; clients only while the gate is open: by `lines`, else `everybody`."""
    always = [
        f"local all {SUPERUSER} peer map={IDENT_MAP}",
        f"local replication {SUPERUSER} peer map={IDENT_MAP}",
        *(f"host {database} {user} {net} scram-sha-256"
          for database, user in (("all", OPERATOR), ("replication", REPLICATOR))
          for net in ("0.0.0.0/0", "::/0")),
    ]  # fmt: skip
    clients = ["local all all scram-sha-256", *(lines or everybody)] if gate_open else []
    return "\n".join([GATE_OPEN if gate_open else GATE_CLOSED, *always, *clients, ""])


def parse_gate(text: str) -> bool:
    return text.startswith(GATE_OPEN)


def render_ident(people: Iterable[str]) -> str:
    return "".join(f"{IDENT_MAP} {person} {SUPERUSER}\n" for person in sorted(set(people)))


def render_passfile(passwords: Passwords) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace(":", "\\:")

    return f"*:*:*:{REPLICATOR}:{escaped(passwords.replicator)}\n*:*:*:{OPERATOR}:{escaped(passwords.operator)}\n"


AUTO_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)")


def strip_auto_conf(text: str) -> str:
    """postgresql.auto.conf without what belongs to flypg: base backups and ALTER SYSTEM bring it along, and it would
    win."""
    kept = []
    for line in text.splitlines():
        found = AUTO_LINE.match(line)
        if found is None or found.group(1).lower() not in OWNED:
            kept.append(line)
    return "".join(f"{line}\n" for line in kept)
