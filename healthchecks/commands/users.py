"""/commands/users/*: who may log in."""

from __future__ import annotations

from healthchecks.commands.journal import note
from healthchecks.commands.route import Call, CommandError, checked_name
from healthchecks.commands.sql import on_primary
from postgres import admin_queries as admin


async def list_users(call: Call) -> object:
    return [admin.as_json(user) for user in await on_primary(call, admin.users)]


async def find_user(call: Call) -> object:
    name = call.name()
    found = await on_primary(call, lambda connection: admin.users(connection, name))
    if not found:
        raise CommandError(404, "no rows in result set")
    return admin.as_json(found[0])


async def create_user(call: Call) -> object:
    asked = call.fields(username=str, password=str, superuser=bool, databases=str)
    name, database = checked_name(asked["username"]), asked["databases"]
    if not asked["password"] or "\0" in asked["password"]:
        raise CommandError(400, "a password is needed")
    try:
        asked["password"].encode()
    except UnicodeEncodeError:
        raise CommandError(400, "the password is not valid Unicode") from None
    if database:
        checked_name(database)
    superuser = asked["superuser"]
    await on_primary(
        call, lambda c: admin.create_user(c, name, asked["password"], superuser=superuser, database=database)
    )
    if database:
        await on_primary(call, lambda c: admin.grant_schema(c, name), database)
    await note(call, f"created the {'superuser' if superuser else 'user'} {name}")
    return True


async def delete_user(call: Call) -> object:
    """What the user owns goes to postgres, in every database; its sessions end first."""
    name = call.name()
    if name in admin.PROTECTED_USERS:
        raise CommandError(409, f"{name} is needed by the cluster itself")
    await on_primary(call, lambda c: admin.bar_user(c, name))
    for database in await on_primary(call, admin.every_database):
        await on_primary(call, lambda c: admin.disown(c, name), database)
    await on_primary(call, lambda c: admin.drop_user(c, name))
    await note(call, f"deleted the user {name}")
    return True
