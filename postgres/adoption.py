"""Taking over a data directory that something else has run: recognised, or refused with nothing touched.

Two kinds are known: a plain PostgreSQL directory, and the volume of stolon, which Fly's Postgres app ran (PGDATA is
`postgres` beside stolon's own files). What happens, in this order:

1. `inspect` only looks: is it complete, of our version, shut down or crashed, and does nobody run it?
2. `take_over` makes it ours where it lies: owner, postgresql.auto.conf, and a note in conf/ with what its own
   postgresql.conf and pg_hba.conf asked for. The note is removed when 3 is done, so all of this may be cut off and is
   simply repeated.
3. `prepare`, only on the node that founds the cluster and before its first start: in single-user mode, so nobody can
   connect and the bootstrap superuser's name does not matter, the user flypg works as is made and stolon's slots go.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import CommandFailed, InstanceError
from postgres import access, command
from postgres.config import OWNED, PARAMETER, SUPERUSER, InstanceConfig
from postgres.files import read_or_empty, remove, write_atomically
from postgres.parts import Parts

NOTE = "adoption.json"
FIRST_START_S = 24 * 3600.0  # crash recovery of a long WAL
LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*(?:=\s*|\s+)('(?:[^']|'')*'|[^\s#']+)\s*(?:#.*)?\Z")
# What stolon or initdb put there for a machine or a place, and flypg chooses itself.
OF_THE_MACHINE = frozenset(
    {
        "shared_buffers",
        "effective_cache_size",
        "maintenance_work_mem",
        "work_mem",
        "max_wal_size",
        "min_wal_size",
        "wal_keep_size",
        "wal_keep_segments",
        "dynamic_shared_memory_type",
        "log_timezone",
        "max_replication_slots",
        "max_wal_senders",
        "archive_timeout",
        "random_page_cost",
        "effective_io_concurrency",
        "wal_compression",
        "stats_temp_directory",
        "external_pid_file",
    }
)
SINGLE_USER = (  # what its own postgresql.conf says is not for us
    *("logging_collector=off", "archive_mode=off", "synchronous_standby_names=", "default_transaction_read_only=off"),
    *("statement_timeout=0", "lock_timeout=0", "search_path=pg_catalog", "client_min_messages=notice"),
    *("default_transaction_isolation=read committed", "log_min_messages=warning", "lc_messages=C"),
)
SQL = (
    f"CREATE ROLE {SUPERUSER} SUPERUSER LOGIN REPLICATION;",  # an error when it exists, and the next line mends it
    f"ALTER ROLE {SUPERUSER} SUPERUSER LOGIN REPLICATION;",
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ '^stolon_' AND NOT active;",
    "CREATE DATABASE postgres TEMPLATE template0;",  # the same: flypg works there, and some drop it
    f"SELECT 'ready' AS flypg FROM pg_roles, pg_database"
    f" WHERE rolname = '{SUPERUSER}' AND rolsuper AND datname = 'postgres';",
)


@dataclass(frozen=True, slots=True)
class Found:
    """A directory that can be taken over."""

    kind: str  # "stolon" or "plain"
    parameters: tuple[tuple[str, str], ...]  # from its postgresql.conf, see `wishes`
    hba: tuple[str, ...] = access.EVERYBODY  # from its pg_hba.conf, see postgres/access.py
    left_out: tuple[str, ...] = ()  # lines of that which are not carried over, with the reason


def pending(config: InstanceConfig) -> bool:
    """Was a directory taken over that has not been started yet?"""
    return (config.conf / NOTE).exists()


def noted(config: InstanceConfig) -> Found | None:
    """What was taken over and has not been started yet."""
    try:
        plain = json.loads((config.conf / NOTE).read_text())
    except FileNotFoundError:
        return None
    parameters = tuple((name, value) for name, value in plain["parameters"])
    return Found(plain["kind"], parameters, tuple(plain.get("hba", access.EVERYBODY)))


def inspect(config: InstanceConfig) -> Found | None:
    """What somebody else left in PGDATA; None when nothing is there, or when it is ours. Touches nothing.

    Raises InstanceError, saying what to do, for a directory that cannot be taken over.
    """
    pgdata = config.pgdata
    if pending(config):
        return noted(config)
    if (config.conf / "flypg.conf").exists() or not pgdata.is_dir() or not any(pgdata.iterdir()):
        return None
    major = read_or_empty(pgdata / "PG_VERSION").strip()
    if not major or not (pgdata / "global" / "pg_control").is_file():
        raise InstanceError(f"{pgdata} is not empty and is no PostgreSQL data directory: move it away, or name another")
    own = config.binaries.parent.name
    if own.isdigit() and major != own:
        raise InstanceError(
            f"{pgdata} is of PostgreSQL {major}, the programs here are {own}: use those of {major} (FLYPG_PG_BIN_DIR,"
            f" or an image built with PG_MAJOR={major})"
        )
    if (pgdata / "recovery.signal").exists():
        raise InstanceError(f"{pgdata} is in the middle of a restore (recovery.signal): finish that first")
    kind = "stolon" if (pgdata.parent / "keeperstate").exists() or (pgdata.parent / "dbstate").exists() else "plain"
    if kind == "stolon" and _unfinished(pgdata.parent / "dbstate"):
        raise InstanceError(f"{pgdata} is a copy that stolon did not finish: remove it, and this node copies afresh")
    pid = read_or_empty(pgdata / "postmaster.pid").partition("\n")[0].strip()
    if pid.isdigit() and _runs(int(pid), pgdata):
        raise InstanceError(f"a PostgreSQL that flypg did not start runs in {pgdata} (pid {pid}): stop it first")
    owner = pgdata.stat().st_uid
    if os.geteuid() not in (0, owner):
        raise InstanceError(
            f"{pgdata} belongs to uid {owner}, and only root can change that: start the agent as root once"
        )
    text = read_or_empty(pgdata / "postgresql.conf")
    if kind == "plain":
        text += f"\n{read_or_empty(pgdata / 'postgresql.auto.conf')}"
    clients = access.access(_who_got_in(pgdata))
    return Found(kind, wishes(text), clients.lines, clients.left_out)


def _who_got_in(pgdata: Path) -> str:
    """The text of its pg_hba.conf. Fly's app puts that aside while it sets passwords after a restore; when it is cut
    off there, what it leaves in its place trusts everybody."""
    return read_or_empty(pgdata / "pg_hba.conf.bak") or read_or_empty(pgdata / "pg_hba.conf")


def _unfinished(dbstate: Path) -> bool:
    try:
        return bool(json.loads(read_or_empty(dbstate) or "{}").get("Initializing"))
    except ValueError:
        return False  # torn by a crash; PGDATA itself was found complete


def _runs(pid: int, pgdata: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(pgdata.resolve())
    except OSError:
        return False


def wishes(text: str) -> tuple[tuple[str, str], ...]:
    """The settings of a postgresql.conf that are an operator's: not flypg's own, not chosen for a machine. Pure."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        name, value = match[1].lower(), match[2]
        if value.startswith("'"):
            value = value[1:-1].replace("''", "'")
        if name in OWNED or name in OF_THE_MACHINE or not PARAMETER.match(name) or name.startswith(("ssl", "include")):
            continue
        if name == "wal_level" and value != "logical":
            continue
        found[name] = value
    return tuple(sorted(found.items()))


def take_over(config: InstanceConfig, found: Found) -> None:
    """Make the directory ours, where it lies. Raises InstanceError. Safe to repeat."""
    owner = command.account(config.user)
    try:
        if owner is not None:
            _give(config.pgdata, owner.uid, owner.gid)
        config.pgdata.chmod(0o700)
        auto = config.pgdata / "postgresql.auto.conf"
        if auto.is_symlink():  # stolon's, to /dev/null
            auto.unlink()
            write_atomically(auto, "", owner=owner, durable=False)
    except OSError as error:
        raise InstanceError(f"{error.filename} cannot be taken over: {error.strerror}") from error
    settings = config.conf / "settings.json"
    if not settings.exists():
        stored = {"parameters": found.parameters, "hba": found.hba, "generation": 0}
        write_atomically(settings, json.dumps(stored), owner=owner, durable=False)
    note = json.dumps({"kind": found.kind, "parameters": found.parameters, "hba": found.hba})
    write_atomically(config.conf / NOTE, note, owner=owner, durable=True)


def _give(directory: Path, uid: int, gid: int) -> None:
    """Owner of a whole directory, without following links, except that of pg_wal."""
    for top, directories, files in os.walk(directory):
        for path in (top, *(os.path.join(top, name) for name in (*directories, *files))):
            if os.lstat(path).st_uid != uid:
                os.chown(path, uid, gid, follow_symlinks=False)
    wal = directory / "pg_wal"
    if wal.is_symlink():
        _give(wal.resolve(), uid, gid)


def complaint(said: bytes) -> str:
    """The last line in which PostgreSQL complains of something unexpected; else its last words. Pure."""
    lines = command.last_words(said).splitlines()
    marks = ("ERROR:", "FATAL:", "PANIC:")
    found = [line for line in lines if any(mark in line for mark in marks) and "already exists" not in line]
    return found[-1].strip() if found else " ".join(lines)


async def prepare(parts: Parts) -> None:
    """Before the first start as primary: our user exists, and nothing of stolon's holds WAL. Safe to repeat."""
    config, files = parts.config, parts.files
    files.write_all(files.without_rule(), gate_open=False)
    files.remove_signals()
    remove(config.pgdata / "postmaster.pid")  # `inspect` saw that nobody runs
    said: list[bytes] = []
    try:
        output = await command.run(
            [
                config.binaries / "postgres",
                *("--single", "-D", config.pgdata, "-c", f"config_file={files.main_path}"),
                *(word for setting in SINGLE_USER for word in ("-c", setting)),
                "template1",  # there is always one, and in this mode it lets us in
            ],
            timeout_s=FIRST_START_S,
            user=parts.owner,
            stdin="".join(f"{line}\n" for line in SQL).encode(),
            on_stderr=said.append,
        )
    except CommandFailed as error:
        raise CommandFailed(complaint(b"".join(said)) or str(error)) from error
    if b'flypg = "ready"' not in output:
        raise CommandFailed(f"postgres --single did not make the user {SUPERUSER}: {complaint(b''.join(said))}")
    remove(config.conf / NOTE)
