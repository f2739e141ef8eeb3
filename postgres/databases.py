"""Databases as operators manage them: made for the roles, and dropped only after it was said what is in them."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import class_row

from cluster.errors import InstanceError
from postgres import admin_queries as admin
from postgres import names, roles
from postgres import role_sql as text
from postgres.admin_queries import PROTECTED_DATABASES
from postgres.monitor import Connection, refusable

TABLES = """
SELECT count(*)::int FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
"""


@dataclass(frozen=True, slots=True)
class DatabaseRow:
    name: str
    bytes: int
    owner: str
    sessions: int


async def databases(connection: Connection) -> list[DatabaseRow]:
    """Every database but templates."""
    async with connection.cursor(row_factory=class_row(DatabaseRow)) as cursor:
        await cursor.execute(text.DATABASES.encode())
        return await cursor.fetchall()


async def create(door: roles.Door, name: str) -> bool:
    """Make a database that follows the roles; False when it existed, which is made to follow them. Safe to repeat."""
    check_new_name(name)
    await roles.prepare(door)
    async with door("postgres") as connection:
        new = name not in {row.name for row in await databases(connection)}
        if new:
            await refusable(admin.create_database(connection, name))
    await roles.follow(door)
    return new


async def tables(door: roles.Door, name: str) -> int:
    """How many tables a database has."""
    async with door(name) as connection:
        cursor = await connection.execute(TABLES.encode())
        row = await cursor.fetchone()
    return int(row[0]) if row is not None else 0


async def drop(door: roles.Door, name: str) -> None:
    """Its sessions end, and all that is in it is gone. Raises SqlRefused 3D000 when there is none of that name."""
    check_name(name)
    async with door("postgres") as connection:
        await refusable(admin.drop_database(connection, name))


def check_name(name: str) -> None:
    """Raises InstanceError when no database of an operator may be called that."""
    names.check(name)
    if name in PROTECTED_DATABASES:
        raise InstanceError(f"the database {name} is reserved")


def check_new_name(name: str) -> None:
    """Raises InstanceError when no new one may be called that."""
    check_name(name)
    if name == "pgbouncer":
        raise InstanceError("the database pgbouncer is reserved: it is PgBouncer's own console")
    names.check_new(name)
