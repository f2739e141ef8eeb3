"""Users with the roles schema-admin, writer and reader, and what a pooler needs to know of users.

Everything is safe to repeat. Passwords never reach the server: a statement may be logged, so it carries the verifier.
Functions raise SqlRefused or PostgresUnavailable.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum

from psycopg import sql
from psycopg.rows import class_row

from cluster.errors import InstanceError
from postgres import names, queries, scram
from postgres import role_sql as text
from postgres.admin_queries import PROTECTED_USERS
from postgres.monitor import Connection, SqlRefused, refusable

Door = Callable[[str], AbstractAsyncContextManager[Connection]]  # opens a superuser's connection to a database


class Role(StrEnum):
    """What a user may do, in every database of the cluster."""

    SCHEMA_ADMIN = "schema-admin"
    WRITER = "writer"
    READER = "reader"


LOCK = "SELECT pg_advisory_xact_lock(hashtext('flypg.roles'))"
GROUP = {Role.SCHEMA_ADMIN: text.SCHEMA_ADMIN, Role.WRITER: text.WRITER, Role.READER: text.READER}
PLAIN = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
RESERVED = PROTECTED_USERS | {text.POOLER, *GROUP.values(), "public", "none"}


@dataclass(frozen=True, slots=True)
class UserRow:
    """Somebody who may log in."""

    name: str
    role: str  # a Role, or "app" (schema admin of some databases only), "superuser", "other"
    sessions: int
    databases: list[str] | None  # of an app: where it may connect; None: everywhere its role allows
    login: bool  # False: to be dropped, which was broken off, or kept out by an operator


def pooler_password(operator_password: str) -> str:
    """The pooler's own, the same on every node without being another secret to hand out."""
    return hmac.new(operator_password.encode(), b"flypg pooler", hashlib.sha256).hexdigest()


def check_name(name: str) -> None:
    """Raises InstanceError when nobody may be called that."""
    names.check(name)
    if name in RESERVED:
        raise InstanceError(f"{name} is reserved for flypg itself")


def check_new_name(name: str) -> None:
    """Raises InstanceError when nobody new may be called that."""
    check_name(name)
    if name == "pgbouncer":
        raise InstanceError("pgbouncer is reserved: PgBouncer lets nobody in by that name")
    names.check_new(name)


async def prepare(door: Door) -> None:
    """Make the three groups, and have every database follow them, those made later too. Raises InstanceError when a
    role of such a name exists and is something else."""
    async with door("postgres") as connection:
        bad = await _column(connection, text.BAD_GROUPS)
        if bad:
            raise InstanceError(f"the role {bad[0]} exists and is not flypg's group of that name: rename it first")
        await refusable(_make_groups(connection))
    await follow(door)


async def _make_groups(connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute(LOCK)
        await _run(connection, text.GROUPS)


async def follow(door: Door, *, pooler: str | None = None, thorough: bool = False) -> list[str]:
    """Bring databases that do not follow yet into line; returns their names. `pooler`: make the pooler's user, with
    this password, and its look-up in every database. Without the groups only the pooler's part is done. `thorough`:
    look into every database, also for what an older flypg made there."""
    async with door("postgres") as connection:
        managed = (await _column(connection, text.MANAGED))[0] is True
        if pooler is not None:
            await refusable(queries.ensure_role(connection, text.POOLER, "LOGIN NOINHERIT", pooler))
        has_pooler = bool(await _column(connection, f"SELECT 1 FROM pg_roles WHERE rolname = '{text.POOLER}'"))
        cursor = await connection.execute(text.UNREADY.encode())
        databases = await cursor.fetchall()
    changed = []
    for name, ready, pooled in sorted(databases):
        manage, pool = managed and (thorough or not ready), has_pooler and (thorough or not pooled)
        if not manage and not pool:
            continue
        async with door(name) as connection:
            if await refusable(_follow_one(connection, manage=manage, pool=pool)):
                changed.append(str(name))
    return changed


async def _follow_one(connection: Connection, *, manage: bool, pool: bool) -> bool:
    """Was anything to be done? A command and the agent may come at the same moment: who is second looks again."""
    async with connection.transaction():
        await connection.execute(LOCK)
        await connection.execute("SET LOCAL search_path = pg_catalog; SET LOCAL default_transaction_read_only = off")
        cursor = await connection.execute(text.UNREADY_HERE.encode())
        row = await cursor.fetchone()
        assert row is not None, "we are connected to it"
        _, ready, pooled = row
        looked_up = not pool or (pooled and (await _column(connection, text.HAS_LOOKUP))[0] is True)
        if not looked_up:
            await _run(connection, text.LOOKUP)
            await _run(connection, text.POOLER_CONNECTS)
        marked = not manage or (ready and (await _column(connection, text.MARKED))[0] == text.MARK)
        if not marked:
            await _manage(connection)
    return not (looked_up and marked)


async def _manage(connection: Connection) -> None:
    await connection.execute("CREATE SCHEMA IF NOT EXISTS flypg")
    marked = (await _column(connection, text.MARKED))[0]
    if not marked:
        await _run(connection, text.KEEP_OTHERS)
        await _run(connection, text.IN_DATABASE)
    if marked != text.MARK:
        await _run(connection, text.TRIGGER)
        await _run(connection, text.ADOPT)
        await connection.execute(text.MARK_DATABASE.encode())
    await _run(connection, text.ON_DATABASE)


async def users(connection: Connection) -> list[UserRow]:
    """Everyone who may log in but flypg's own users."""
    async with connection.cursor(row_factory=class_row(UserRow)) as cursor:
        await cursor.execute(text.USERS.encode())
        return [row for row in await cursor.fetchall() if row.name not in RESERVED - {"postgres"}]


async def create_user(connection: Connection, name: str, role: Role, password: str) -> None:
    """A user with this role in every database. Raises SqlRefused 42710 when the name is taken."""
    check_new_name(name)
    user = sql.Identifier(name)
    async with connection.transaction():
        await connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, _verifier(connection, name, password))
        )
        await _give(connection, name, role)


async def set_role(door: Door, name: str, role: Role) -> None:
    """Give a user this role, and nothing else that it had: attributes, other memberships, what it owns, and rights of
    its own unless it had one of the roles before. Its sessions end, so that none goes on with the old ones."""
    async with door("postgres") as connection:
        before = await _ours(connection, name)
    await _take_over(door, name, before, rights=before.role not in list(Role))
    user = sql.Identifier(name)
    async with door("postgres") as connection:
        async with connection.transaction():
            await connection.execute(sql.SQL("ALTER ROLE {} INHERIT " + PLAIN).format(user))
            await connection.execute(sql.SQL("ALTER ROLE {} RESET role").format(user))
            for database in before.databases or []:
                where = sql.Identifier(database)
                await connection.execute(sql.SQL("ALTER ROLE {} IN DATABASE {} RESET role").format(user, where))
            cursor = await connection.execute(text.MEMBER_OF, (name,))
            for group, grantor in await cursor.fetchall():
                leave = sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(group), user)
                if connection.info.server_version >= 160000:  # each grantor's grant is one of its own
                    leave += sql.SQL(" GRANTED BY {}").format(sql.Identifier(grantor))
                await connection.execute(leave)
            await _give(connection, name, role)
        await _end_sessions(connection, name)


async def set_password(connection: Connection, name: str, password: str) -> None:
    await _ours(connection, name)
    await connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), _verifier(connection, name, password))
    )


async def create_app(door: Door, name: str, database: str, password: str) -> bool:
    """A user that is schema admin of `database` only; True when it was new, else it gets this password.

    It does not inherit its group's right to connect elsewhere, and becomes the group in its own database."""
    check_new_name(name)
    user, where = sql.Identifier(name), sql.Identifier(database)
    async with door("postgres") as connection:
        found = [u for u in await users(connection) if u.name == name]
        if found and found[0].role != "app":
            raise InstanceError(f"the user {name} exists and is {found[0].role}: choose another with --user")
        verifier = _verifier(connection, name, password)
        async with connection.transaction():
            word = sql.SQL("ALTER" if found else "CREATE")
            await connection.execute(sql.SQL("{} ROLE {} LOGIN NOINHERIT PASSWORD {}").format(word, user, verifier))
            await connection.execute(sql.SQL("GRANT schema_admin TO {}").format(user))
            await connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(where, user))
            await connection.execute(
                sql.SQL("ALTER ROLE {} IN DATABASE {} SET role TO schema_admin").format(user, where)
            )
    return not found


async def drop_user(door: Door, name: str) -> None:
    """Its sessions end, what it owns goes to the schema admins, then it is gone. Can be repeated after a failure."""
    async with door("postgres") as connection:
        before = await _ours(connection, name)
        await connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(name)))
        await _end_sessions(connection, name)
    await _take_over(door, name, before, rights=True)
    async with door("postgres") as connection:
        await connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


async def _take_over(door: Door, name: str, owner: UserRow, *, rights: bool) -> None:
    """What a user owns goes to the schema admins; with `rights`, it also loses what was granted to it.

    Databases go to postgres: schema admins who own one could drop it. So does what a superuser owned that only a
    superuser may own, or that would lend a superuser's rights."""
    user = sql.Identifier(name)
    async with door("postgres") as connection:
        managed = (await _column(connection, text.MANAGED))[0] is True
        cursor = await connection.execute(text.OWNED_DATABASES, (name,))
        for (database,) in await cursor.fetchall():
            where = sql.Identifier(database)
            await connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO postgres").format(where))
        databases = await _column(connection, "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")
    if managed:
        await follow(door, thorough=True)
    heir = sql.Identifier("postgres" if owner.role == "superuser" or not managed else text.SCHEMA_ADMIN)
    for database in databases:
        async with door(str(database)) as connection, connection.transaction():
            await connection.execute(sql.SQL("REASSIGN OWNED BY {} TO {}").format(user, heir))
            if managed and owner.role == "superuser":
                await _run(connection, text.ADOPT)
            if rights:
                await connection.execute(sql.SQL("DROP OWNED BY {}").format(user))


async def _give(connection: Connection, name: str, role: Role) -> None:
    user = sql.Identifier(name)
    await connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(GROUP[role]), user))
    if role is Role.SCHEMA_ADMIN:
        await connection.execute(sql.SQL("ALTER ROLE {} SET role TO schema_admin").format(user))


async def _ours(connection: Connection, name: str) -> UserRow:
    """Raises InstanceError unless `name` is a user that may be changed, SqlRefused 42704 when there is none."""
    check_name(name)
    for user in await users(connection):
        if user.name == name:
            return user
    raise SqlRefused("42704", f"there is no user {name}")


async def _end_sessions(connection: Connection, name: str) -> None:
    await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (name,))


async def keys(connection: Connection, name: str, password: str) -> scram.Keys:
    """What a client of `name` may keep instead of its password. Raises InstanceError when that is not its password,
    SqlRefused 42704 when there is no such user."""
    cursor = await connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (name,))
    row = await cursor.fetchone()
    if row is None:
        raise SqlRefused("42704", f"there is no user {name}")
    if row[0] is None:
        raise InstanceError(f"{name} has no password")
    if (found := await asyncio.to_thread(scram.keys, row[0], password)) is None:
        raise InstanceError(f"that is not the password of {name}")
    return found


def _verifier(connection: Connection, name: str, password: str) -> sql.Literal:
    return sql.Literal(connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode())


async def _run(connection: Connection, statements: str) -> None:
    await connection.execute(statements.encode())


async def _column(connection: Connection, query: str) -> list[object]:
    cursor = await connection.execute(query.encode())
    return [row[0] for row in await cursor.fetchall()]
