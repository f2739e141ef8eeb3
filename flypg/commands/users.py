"""flypg users, databases: who may do what, on the primary of a running cluster."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cluster.errors import InstanceError
from flypg.commands.change import confirm
from flypg.primary import Primary, with_primary
from flypg.reply import BadInput, Refused, Reply, done
from flypg.show import columns
from postgres import databases, roles
from postgres.config import OPERATOR
from postgres.doors import Doors, remote_doors
from postgres.monitor import SqlRefused
from postgres.roles import Role

WITHIN_S = 60.0
T = TypeVar("T")


def doors_of(primary: Primary) -> Doors:
    return remote_doors(primary.member.host, primary.member.ports.postgres, OPERATOR, primary.password)


async def worked(primary: Primary, work: Callable[[roles.Door], Coroutine[Any, Any, T]]) -> T:
    """The result of `work` on the primary's databases."""
    doors = doors_of(primary)
    return await doors.work(work(doors.open), WITHIN_S)


async def in_postgres(primary: Primary, work: Callable[[Any], Awaitable[T]]) -> T:
    """The result of `work` on a connection to the database postgres."""

    async def on(door: roles.Door) -> T:
        async with door("postgres") as connection:
            return await work(connection)

    return await worked(primary, on)


def new_password(args: argparse.Namespace) -> str:
    """From standard input when it was asked for, else a new one of 32 characters that fit into a URL."""
    if not getattr(args, "password_stdin", False):
        return secrets.token_urlsafe(24)
    given = sys.stdin.readline().rstrip("\n")
    if len(given) < 8:
        raise BadInput("the password on standard input must have at least 8 characters")
    return given


def named(check: Callable[[str], None], name: str) -> None:
    """Raises BadInput when `check` says that nobody may be called that."""
    try:
        check(name)
    except InstanceError as error:
        raise BadInput(str(error)) from None


def list_users(args: argparse.Namespace) -> Reply:
    return with_primary(args, _list_users)


async def _list_users(primary: Primary) -> Reply:
    found = await in_postgres(primary, roles.users)
    rows = [
        [
            u.name,
            u.role + ("" if u.login else ", may not log in"),
            ", ".join(u.databases or []) or "all",
            str(u.sessions),
        ]
        for u in found
    ]
    data = [
        {"name": u.name, "role": u.role, "databases": u.databases, "sessions": u.sessions, "login": u.login}
        for u in found
    ]
    return done(columns(["name", "role", "databases", "sessions"], rows), {"users": data})


def create(args: argparse.Namespace) -> Reply:
    """flypg users create NAME --role ROLE"""
    named(roles.check_new_name, args.name)
    return with_primary(args, lambda primary: _create(args, primary))


async def _create(args: argparse.Namespace, primary: Primary) -> Reply:
    password, role = new_password(args), Role(args.role)

    async def work(door: roles.Door) -> None:
        await roles.prepare(door)
        async with door("postgres") as connection:
            await roles.create_user(connection, args.name, role, password)

    try:
        await worked(primary, work)
    except SqlRefused as error:
        if error.sqlstate != "42710":
            raise
        raise Refused(f"the user {args.name} exists already; flypg users set-role or set-password change it") from None
    return _with_password(args, f"created {args.name}, {role}", {"name": args.name, "role": str(role)}, password)


def _with_password(args: argparse.Namespace, text: str, data: dict[str, object], password: str) -> Reply:
    """A password that was generated is shown once; one that was given is not repeated."""
    if getattr(args, "password_stdin", False):
        return done(text, data)
    return done(f"{text}\npassword (shown only now): {password}", data | {"password": password})


def set_role(args: argparse.Namespace) -> Reply:
    named(roles.check_name, args.name)
    return with_primary(args, lambda primary: _set_role(args, primary))


async def _set_role(args: argparse.Namespace, primary: Primary) -> Reply:
    async def work(door: roles.Door) -> None:
        await roles.prepare(door)
        await roles.set_role(door, args.name, Role(args.role))

    await _known(args.name, worked(primary, work))
    return done(f"{args.name} is {args.role} now; its sessions were ended", {"name": args.name, "role": args.role})


def set_password(args: argparse.Namespace) -> Reply:
    named(roles.check_name, args.name)
    return with_primary(args, lambda primary: _set_password(args, primary))


async def _set_password(args: argparse.Namespace, primary: Primary) -> Reply:
    password = new_password(args)
    await _known(args.name, in_postgres(primary, lambda c: roles.set_password(c, args.name, password)))
    return _with_password(args, f"{args.name} has a new password", {"name": args.name}, password)


def drop(args: argparse.Namespace) -> Reply:
    named(roles.check_name, args.name)
    return with_primary(args, lambda primary: _drop(args, primary))


async def _drop(args: argparse.Namespace, primary: Primary) -> Reply:
    found = {u.name: u for u in await in_postgres(primary, roles.users)}
    if args.name not in found:
        raise Refused(f"there is no user {args.name}; nothing was changed")
    if not args.yes:
        warning = (
            f"{primary.target.said}: the user {args.name} ({found[args.name].role}) is dropped, its"
            f" {found[args.name].sessions} sessions end; what it owns goes to the schema admins."
        )
        confirm(warning, typed=args.name, unless="--yes")
    await _known(args.name, worked(primary, lambda door: roles.drop_user(door, args.name)))
    return done(f"dropped the user {args.name}", {"name": args.name})


async def _known(name: str, work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except SqlRefused as error:
        if error.sqlstate != "42704":
            raise
        raise Refused(f"there is no user {name}; nothing was changed") from None


def list_databases(args: argparse.Namespace) -> Reply:
    return with_primary(args, _list_databases)


async def _list_databases(primary: Primary) -> Reply:
    found = await in_postgres(primary, databases.databases)
    rows = [[d.name, f"{d.bytes / 1e6:.1f} MB", d.owner, str(d.sessions)] for d in found]
    data = [{"name": d.name, "bytes": d.bytes, "owner": d.owner, "sessions": d.sessions} for d in found]
    return done(columns(["name", "size", "owner", "sessions"], rows), {"databases": data})


def create_database(args: argparse.Namespace) -> Reply:
    named(databases.check_new_name, args.name)
    return with_primary(args, lambda primary: _create_database(args, primary))


async def _create_database(args: argparse.Namespace, primary: Primary) -> Reply:
    new = await worked(primary, lambda door: databases.create(door, args.name))
    if not new:
        raise Refused(f"the database {args.name} exists already; its privileges were checked")
    return done(f"created the database {args.name}; every user may connect to it as its role says", {"name": args.name})


def drop_database(args: argparse.Namespace) -> Reply:
    named(databases.check_name, args.name)
    return with_primary(args, lambda primary: _drop_database(args, primary))


async def _drop_database(args: argparse.Namespace, primary: Primary) -> Reply:
    databases.check_name(args.name)
    found = {d.name: d for d in await in_postgres(primary, databases.databases)}
    if args.name not in found:
        raise Refused(f"there is no database {args.name}; nothing was changed")
    row = found[args.name]
    if not args.yes:
        count = await worked(primary, lambda door: databases.tables(door, args.name))
        warning = (
            f"{primary.target.said}: the database {args.name} is lost for good:"
            f" {count} tables, {row.bytes / 1e6:.1f} MB. Its {row.sessions} sessions end."
            " Only a snapshot can bring it back (flypg snapshots list)."
        )
        confirm(warning, typed=args.name, unless="--yes")
    await worked(primary, lambda door: databases.drop(door, args.name))
    return done(f"dropped the database {args.name}", {"name": args.name, "bytes": row.bytes})
