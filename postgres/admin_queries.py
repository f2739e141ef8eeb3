"""Users, databases and settings, as the HTTP commands manage them. Every identifier is quoted by psycopg.

Passwords never reach the server in plain text: a statement may be logged, so it carries the SCRAM verifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.rows import class_row

from postgres.monitor import Connection, SqlRefused

PROTECTED_USERS = frozenset({"postgres", "flypgadmin", "repluser"})
PROTECTED_DATABASES = frozenset({"postgres", "template0", "template1"})

USERS = """
SELECT r.rolname AS username, r.rolsuper AS superuser, r.rolreplication AS repluser,
       (SELECT array_agg(d.datname::text ORDER BY d.datname) FROM pg_database d
        WHERE NOT d.datistemplate AND has_database_privilege(r.oid, d.oid, 'CONNECT')) AS databases
FROM pg_roles r WHERE r.rolcanlogin AND (%(name)s::text IS NULL OR r.rolname = %(name)s) ORDER BY r.rolname
"""
DATABASES = """
SELECT d.datname AS name,
       (SELECT array_agg(r.rolname::text ORDER BY r.rolname) FROM pg_roles r
        WHERE r.rolcanlogin AND has_database_privilege(r.oid, d.oid, 'CONNECT')) AS users
FROM pg_database d
WHERE NOT d.datistemplate AND (%(name)s::text IS NULL OR d.datname = %(name)s) ORDER BY d.datname
"""
SETTINGS = """
SELECT name, setting, context, vartype, min_val, max_val, enumvals, unit, short_desc, pending_restart,
       CASE WHEN pending_restart THEN
         (SELECT f.setting FROM pg_file_settings f WHERE f.name = s.name ORDER BY f.seqno DESC LIMIT 1)
       END AS pending_change
FROM pg_settings s WHERE %(names)s::text[] IS NULL OR name = ANY (%(names)s) ORDER BY name
"""
STANDBYS = """
SELECT a.application_name, pg_wal_lsn_diff(pg_current_wal_lsn(), w.flush_lsn)::int8
FROM pg_stat_get_wal_senders() w JOIN pg_stat_get_activity(NULL) a ON a.pid = w.pid ORDER BY 1
"""
READ_ONLY = """
SELECT coalesce(bool_or('default_transaction_read_only=on' = ANY (s.setconfig)
                     OR 'default_transaction_read_only=true' = ANY (s.setconfig)), false)
FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE s.setrole = 0
"""


@dataclass(frozen=True, slots=True)
class User:
    username: str
    superuser: bool
    repluser: bool
    databases: list[str] | None  # those it may connect to; None: none


@dataclass(frozen=True, slots=True)
class Database:
    name: str
    users: list[str] | None


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of pg_settings; `setting` is in `unit`s."""

    name: str
    setting: str
    context: str
    vartype: str
    min_val: str | None
    max_val: str | None
    enumvals: list[str] | None
    unit: str | None
    short_desc: str | None
    pending_restart: bool
    pending_change: str | None


async def allow_writes(connection: Connection) -> None:
    """Also in a database that is switched to read-only."""
    await connection.execute("SET default_transaction_read_only = off")


async def users(connection: Connection, name: str | None = None) -> list[User]:
    """Everyone who may log in; only `name` when it is given."""
    async with connection.cursor(row_factory=class_row(User)) as cursor:
        await cursor.execute(USERS, {"name": name})
        return await cursor.fetchall()


async def databases(connection: Connection, name: str | None = None) -> list[Database]:
    """Every database but templates; only `name` when it is given."""
    async with connection.cursor(row_factory=class_row(Database)) as cursor:
        await cursor.execute(DATABASES, {"name": name})
        return await cursor.fetchall()


async def settings(connection: Connection, names: Sequence[str] | None) -> list[Setting]:
    """The settings called `names`; all of them for None. A name that does not exist is left out."""
    async with connection.cursor(row_factory=class_row(Setting)) as cursor:
        await cursor.execute(SETTINGS, {"names": list(names) if names is not None else None})
        return await cursor.fetchall()


async def create_user(connection: Connection, name: str, password: str, *, superuser: bool, database: str) -> None:
    """A user who may log in. `database`: also give all rights on it and on its schema public; "" for none.

    Raises SqlRefused: 42710 when the name is taken, 3D000 when there is no such database."""
    if database and not await databases(connection, database):
        raise SqlRefused("3D000", f'database "{database}" does not exist')
    verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    kind = sql.SQL("SUPERUSER" if superuser else "NOSUPERUSER")
    user = sql.Identifier(name)
    async with connection.transaction():
        await connection.execute(
            sql.SQL("CREATE USER {} LOGIN {} PASSWORD {}").format(user, kind, sql.Literal(verifier))
        )
        if database:
            await connection.execute(sql.SQL("GRANT ALL ON DATABASE {} TO {}").format(sql.Identifier(database), user))


async def grant_schema(connection: Connection, name: str) -> None:
    """All rights on this database's schema public, which from PostgreSQL 15 on nobody has by default."""
    await connection.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(sql.Identifier(name)))


async def bar_user(connection: Connection, name: str) -> None:
    """No new logins, and the sessions there are end. Raises SqlRefused 42704 when there is no such user."""
    await connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(name)))
    await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (name,))


async def disown(connection: Connection, name: str) -> None:
    """Give what `name` owns in this database to postgres, and take its grants away."""
    user = sql.Identifier(name)
    await connection.execute(sql.SQL("REASSIGN OWNED BY {} TO postgres").format(user))
    await connection.execute(sql.SQL("DROP OWNED BY {}").format(user))


async def drop_user(connection: Connection, name: str) -> None:
    await connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


async def every_database(connection: Connection) -> list[str]:
    """The databases that take connections, templates included: a user may own things there too."""
    cursor = await connection.execute("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")
    return [str(row[0]) for row in await cursor.fetchall()]


async def create_database(connection: Connection, name: str) -> None:
    """Raises SqlRefused 42P04 when the name is taken."""
    await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


async def drop_database(connection: Connection, name: str) -> None:
    """Ends its sessions. Raises SqlRefused 3D000 when there is no such database."""
    await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def standbys(connection: Connection) -> list[tuple[str, int | None]]:
    """Who streams from this server, and how many bytes each has yet to flush. Raises SqlRefused on a standby."""
    cursor = await connection.execute(STANDBYS)
    return [(str(name), None if diff is None else int(diff)) for name, diff in await cursor.fetchall()]


async def read_only(connection: Connection) -> bool:
    """Is any database switched to read-only?"""
    cursor = await connection.execute(READ_ONLY)
    row = await cursor.fetchone()
    return bool(row is not None and row[0])


async def set_read_only(connection: Connection, *, on: bool) -> None:
    """Every database but `postgres`: all of them or none. Sessions that are open keep what they have."""
    names = [d.name for d in await databases(connection) if d.name not in PROTECTED_DATABASES]
    async with connection.transaction():
        for name in names:
            await connection.execute(_read_only_statement(name, on=on))


def _read_only_statement(name: str, *, on: bool) -> sql.Composed:
    target = sql.Identifier(name)
    if on:
        return sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(target)
    return sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(target)


async def unknown_settings(connection: Connection, names: Iterable[str]) -> list[str]:
    """Those of `names` that this PostgreSQL does not have. Names with a dot belong to extensions and pass."""
    wanted = [name for name in names if "." not in name]
    have = {setting.name for setting in await settings(connection, wanted)}
    return [name for name in wanted if name not in have]


def as_json(row: User | Database | Setting) -> dict[str, Any]:
    """The row as Fly's API prints it."""
    if isinstance(row, User):
        return {name: getattr(row, name) for name in User.__slots__}
    if isinstance(row, Database):
        return {"name": row.name, "users": row.users}
    pairs = ((name, getattr(row, name)) for name in Setting.__slots__)  # what is null or false is left out
    return {name: value for name, value in pairs if value is not None and value is not False}
