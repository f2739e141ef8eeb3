"""/commands/databases/*."""

from __future__ import annotations

from healthchecks.commands.journal import note
from healthchecks.commands.route import Call, CommandError, checked_name
from healthchecks.commands.sql import on_primary
from postgres import admin_queries as admin


async def list_databases(call: Call) -> object:
    return [admin.as_json(database) for database in await on_primary(call, admin.databases)]


async def find_database(call: Call) -> object:
    name = call.name()
    found = await on_primary(call, lambda connection: admin.databases(connection, name))
    if not found:
        raise CommandError(404, "no rows in result set")
    return admin.as_json(found[0])


async def create_database(call: Call) -> object:
    name = checked_name(call.fields(name=str)["name"])
    await on_primary(call, lambda connection: admin.create_database(connection, name))
    await note(call, f"created the database {name}")
    return True


async def delete_database(call: Call) -> object:
    name = call.name()
    if name in admin.PROTECTED_DATABASES:
        raise CommandError(409, f"{name} is needed by the cluster itself")
    await on_primary(call, lambda connection: admin.drop_database(connection, name))
    await note(call, f"deleted the database {name}")
    return True
