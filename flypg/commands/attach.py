"""flypg attach, detach, connection-string, connect: what an application needs to reach its database."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import InstanceError
from cluster.model import Member, Snapshot
from cluster.store import OperatorStore
from flypg.asking import known_node
from flypg.commands.users import in_postgres, named, new_password, worked
from flypg.connection import ADVICE, KEYS, VERIFY, VERIFYING, Way, place
from flypg.primary import Primary, password_of, serving, with_primary
from flypg.reply import BadInput, Refused, Reply, done
from flypg.target import Target, with_store
from postgres import databases, roles
from postgres.monitor import SqlRefused


def app_name(app: str) -> str:
    """The name of an app's database and user: lower case, with _ for what a name had better not have. Pure."""
    name = re.sub(r"[^a-z0-9_]", "_", app.lower())
    if not re.match(r"[a-z_]", name):
        raise BadInput(f"{app!r} gives no name for a database: choose --database and --user")
    return name[:63]


def names_of(args: argparse.Namespace) -> tuple[str, str]:
    """Of an app's database and user."""
    return (
        app_name(args.app) if args.database is None else args.database,
        app_name(args.app) if args.user is None else args.user,
    )


def common_host(args: argparse.Namespace) -> str:
    """One name for all nodes: --host, or on Fly the app's; "" when there is none."""
    if args.host is not None and not re.fullmatch(r"[A-Za-z0-9_.:-]+", args.host):
        raise BadInput(f"--host {args.host!r} is no name or address of a host")
    app = os.environ.get("FLY_APP_NAME", "")
    return str(args.host or (f"{app}.internal" if app else ""))


def attach(args: argparse.Namespace) -> Reply:
    """flypg attach APP: a database and a user of its own, and how to reach them."""
    database, user = names_of(args)
    named(databases.check_new_name, database)
    named(roles.check_new_name, user)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", args.variable_name):
        raise BadInput(f"--variable-name {args.variable_name!r}: letters, digits and _, not beginning with a digit")
    common_host(args)
    return with_primary(args, lambda primary: _attach(args, primary))


async def _attach(args: argparse.Namespace, primary: Primary) -> Reply:
    database, user = names_of(args)
    password = new_password(args)
    found = {u.name: u for u in await in_postgres(primary, roles.users)}
    whole = user in found and found[user].login and database in (found[user].databases or [])
    if whole and not args.new_password:
        raise Refused(
            f"{args.app} is attached already (user {user}, database {database}), and its password cannot be shown"
            " again; --new-password gives it another, and the old one stops working"
        )

    async def work(door: roles.Door) -> bool:
        new = await databases.create(door, database)
        await roles.create_app(door, user, database, password)
        return new

    new = await worked(primary, work)
    host = common_host(args)
    names = (args.variable_name, f"DIRECT_{args.variable_name}")
    urls = [place(primary.member, way, host).url(user, password, database) for way in (Way.POOLED, Way.DIRECT)]
    lines = [f"{args.app}: user {user}, schema admin of the {'new' if new else 'existing'} database {database} only"]
    lines += [f"{name}={url}" for name, url in zip(names, urls, strict=True)]
    lines.append("shown only now; the second one is for migrations, LISTEN and advisory locks")
    data: dict[str, object] = {"app": args.app, "user": user, "database": database, "password": password}
    data["variables"] = dict(zip(names, urls, strict=True))
    return done("\n".join(lines), data)


def detach(args: argparse.Namespace) -> Reply:
    """flypg detach APP: its user is dropped, its database stays."""
    named(roles.check_name, app_name(args.app) if args.user is None else args.user)
    return with_primary(args, lambda primary: _detach(args, primary))


async def _detach(args: argparse.Namespace, primary: Primary) -> Reply:
    user = app_name(args.app) if args.user is None else args.user
    found = {u.name: u for u in await in_postgres(primary, roles.users)}
    if user not in found:
        return done(f"{args.app} is not attached: there is no user {user}", {"app": args.app, "changed": False})
    if found[user].role not in ("app", "other"):
        raise Refused(f"{user} is {found[user].role}, not a user made by attach; flypg users drop {user} drops it")
    await worked(primary, lambda door: roles.drop_user(door, user))
    kept = ", ".join(found[user].databases or []) or "none"
    ended = found[user].sessions
    return done(
        f"detached {args.app}: the user {user} is gone, its {ended} sessions ended; kept: database {kept}",
        {"app": args.app, "user": user, "databases": found[user].databases, "changed": True},
    )


def connection_string(args: argparse.Namespace) -> Reply:
    """flypg connection-string: never with a password, which is nowhere in clear; on wish with keys made of it."""
    for option, name in (("--user", args.user), ("--database", args.database)):
        if not 0 < len(name.encode()) < 64:
            raise BadInput(f"{option} {name!r}: a name has 1 to 63 bytes")
    if args.root_cert and args.sslmode not in VERIFYING:
        raise BadInput("--root-cert is for --sslmode verify-ca or verify-full")
    common_host(args)
    if args.scram_keys:
        password = _given_password(args)
        return with_primary(args, lambda primary: _with_keys(args, primary, password))

    async def plain(store: OperatorStore, _: Target) -> Reply:
        return _connection_string(args, await store.read(), {}, ())

    return with_store(args, plain)


async def _with_keys(args: argparse.Namespace, primary: Primary, password: str) -> Reply:
    try:
        found = await in_postgres(primary, lambda connection: roles.keys(connection, args.user, password))
    except (InstanceError, SqlRefused) as error:
        raise BadInput(f"{error}; nothing was printed") from None
    return _connection_string(args, primary.snapshot, found.options(), (KEYS,))


def _given_password(args: argparse.Namespace) -> str:
    """Of the user, from standard input or whoever sits there; known already for the operator of a local cluster."""
    if args.user == "postgres" and (known := _operator_password(args)):
        return known
    if sys.stdin.isatty():
        return getpass.getpass(f"password of {args.user}: ")
    given = sys.stdin.readline().rstrip("\n")
    if not given:
        raise BadInput("--scram-keys reads the user's password from standard input, and there was none")
    return given


def _connection_string(
    args: argparse.Namespace, snapshot: Snapshot, keys: Mapping[str, str], more: tuple[str, ...]
) -> Reply:
    member = _member(args, snapshot)
    way = Way.READ if args.read else Way.DIRECT if args.direct else Way.POOLED
    options = {"sslmode": args.sslmode or "", "sslrootcert": args.root_cert or "", **keys}
    url = place(member, way, common_host(args)).url(args.user, None, args.database, options)
    said = (*more, *ADVICE[way], *((VERIFY,) if args.sslmode in VERIFYING else ()))
    advice = "\n".join(f"# {line}" for line in said)
    return done(f"{url}\n{advice}", {"url": url, "way": str(way), "advice": list(said)})


def _member(args: argparse.Namespace, snapshot: Snapshot) -> Member:
    node = getattr(args, "node", None)
    if node and snapshot.view is not None:
        found = snapshot.view.member(known_node(snapshot, node))
        assert found is not None, "it is known"
        return found
    return serving(snapshot)


def connect(args: argparse.Namespace) -> Reply:
    """flypg connect: psql, to the primary or straight to a node. Replaces this process."""
    psql = shutil.which("psql")
    if psql is None:
        raise BadInput("psql is not installed (apt-get install postgresql-client)")
    found: list[str] = []

    async def look(store: OperatorStore, _: Target) -> Reply:
        member = _member(args, await store.read())
        port = member.ports.postgres if args.node else member.ports.proxy
        found.extend([member.host, str(port)])
        return done("")

    with_store(args, look)
    environment = dict(os.environ) | {
        "PGHOST": found[0],
        "PGPORT": found[1],
        "PGUSER": args.user,
        "PGDATABASE": args.database,
        "PGAPPNAME": "flypg connect",
    }
    if "PGPASSWORD" not in environment and args.user == "postgres" and (known := _operator_password(args)):
        environment["PGPASSWORD"] = known
    os.execve(psql, [Path(psql).name, *args.psql], environment)


def _operator_password(args: argparse.Namespace) -> str:
    """Of the user postgres, when it is at hand; "" when it is not, and one has to ask."""
    try:
        return password_of(args, "OPERATOR_PASSWORD")
    except BadInput:
        return ""
