"""The commands around users, databases, pools and connections. What they do is imported only once one was chosen."""

from __future__ import annotations

import argparse

from cluster.pool import PLANS
from flypg.connection import TLS_MODES
from flypg.parsing import Parser

Commands = argparse._SubParsersAction  # argparse has no public name for it
ROLES = ("schema-admin", "writer", "reader")
PASSWORD = "Needs the cluster's SU_PASSWORD, which a node and a local cluster have at hand."


def add(commands: Commands[Parser]) -> None:
    _users(commands)
    _databases(commands)
    _pool(commands)
    _attach(commands)
    _connections(commands)


def finish(parser: Parser, run: str) -> Parser:
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    group = parser.add_argument_group("which cluster")
    group.add_argument("--etcd", metavar="HOST:PORT,…", help="etcd endpoints (FLYPG_ETCD_ENDPOINTS)")
    group.add_argument("--cluster", metavar="NAME", help="name of the cluster (FLYPG_CLUSTER)")
    group.add_argument("--dir", metavar="DIR", help="directory of a local cluster (FLYPG_LOCAL_DIR)")
    return parser


def _users(commands: Commands[Parser]) -> None:
    users = commands.add_parser(
        "users",
        description="Users of the databases. Roles hold in every database, for what is there and what is made later:\n"
        "  schema-admin  reads, writes, and changes the structure; not a superuser\n"
        "  writer        reads and writes rows\n  reader        reads\n" + PASSWORD,
    )
    actions = users.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    finish(
        actions.add_parser("list", help="list them", description="List the users and their roles."), RUN + "list_users"
    )
    create = actions.add_parser("create", help="create one", description="Create a user. Its password is shown once.")
    set_role = actions.add_parser(
        "set-role", help="give one another role", description="Give a user another role. Its sessions end."
    )
    set_password = actions.add_parser(
        "set-password", help="give one a new password", description="Give a user a new password, shown once."
    )
    drop = actions.add_parser(
        "drop", help="drop one", description="Drop a user. What it owns goes to the schema admins."
    )
    for parser in (create, set_role, set_password, drop):
        parser.add_argument("name", metavar="NAME")
    for parser in (create, set_role):
        parser.add_argument("--role", choices=ROLES, required=True, help="what it may do")
    for parser in (create, set_password):
        parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    drop.add_argument("--yes", action="store_true", help="do not ask")
    for parser, name in ((create, "create"), (set_role, "set_role"), (set_password, "set_password"), (drop, "drop")):
        finish(parser, RUN + name)


RUN = "flypg.commands.users:"


def _databases(commands: Commands[Parser]) -> None:
    databases = commands.add_parser("databases", description="Databases of the cluster.\n" + PASSWORD)
    actions = databases.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    listed = actions.add_parser("list", help="list them", description="List the databases.")
    finish(listed, RUN + "list_databases")
    create = actions.add_parser("create", help="create one", description="Create a database. Users' roles hold in it.")
    drop = actions.add_parser("drop", help="drop one", description="Drop a database, after saying what would be lost.")
    for parser in (create, drop):
        parser.add_argument("name", metavar="NAME")
    drop.add_argument("--yes", action="store_true", help="do not ask")
    finish(create, RUN + "create_database")
    finish(drop, RUN + "drop_database")


def _pool(commands: Commands[Parser]) -> None:
    pool = commands.add_parser("pool", description="The connection pools (PgBouncer, port 6432 of every node).")
    actions = pool.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    show = actions.add_parser("show", help="settings and use", description="Settings of the pools, and how they do.")
    finish(show, "flypg.commands.pool:show")
    change = actions.add_parser(
        "set",
        help="change mode or sizes",
        description="Change the pools. No client is dropped: they load it as they run.",
    )
    change.add_argument("--mode", choices=("session", "transaction", "default"), help="when connections go back")
    change.add_argument("--database", metavar="NAME", help="the mode of this database only")
    change.add_argument("--plan", choices=tuple(PLANS), help="sizes by plan")
    change.add_argument("--clients", metavar="N", help="client connections to each node; 0: as the plan says")
    change.add_argument(
        "--connections", metavar="N", help="connections of all nodes to a database; 0: as the plan says"
    )
    change.add_argument("--reserve", metavar="N", help="of these, kept in reserve; -1: as the plan says")
    finish(change, "flypg.commands.pool:change")


def _attach(commands: Commands[Parser]) -> None:
    attach = commands.add_parser(
        "attach",
        description="Give an application a database and a user of its own, both named after it, and print how to\n"
        "reach them: pooled as DATABASE_URL, direct as DIRECT_DATABASE_URL. Safe to repeat when it was interrupted.\n"
        + PASSWORD,
    )
    detach = commands.add_parser(
        "detach", description="Drop an application's user; its database stays, owned by the schema admins.\n" + PASSWORD
    )
    for parser in (attach, detach):
        parser.add_argument("app", metavar="APP")
        parser.add_argument("--user", metavar="NAME", help="its user (named after the app)")
    attach.add_argument("--database", metavar="NAME", help="its database (named after the app)")
    attach.add_argument("--variable-name", metavar="NAME", default="DATABASE_URL", help="name to print (DATABASE_URL)")
    attach.add_argument("--new-password", action="store_true", help="when it is attached already: another password")
    attach.add_argument("--host", metavar="HOST", help="a name that leads to the nodes (on Fly: APP.internal)")
    finish(attach, "flypg.commands.attach:attach")
    finish(detach, "flypg.commands.attach:detach")


def _connections(commands: Commands[Parser]) -> None:
    string = commands.add_parser(
        "connection-string",
        description="Print a connection string, and what to tell the client library. Passwords are nowhere in clear:\n"
        "they are shown when they are made (flypg users create, flypg attach).",
    )
    way = string.add_mutually_exclusive_group()
    way.add_argument("--pooled", action="store_true", help="through PgBouncer (the default)")
    way.add_argument("--direct", action="store_true", help="to the primary, for migrations, LISTEN, advisory locks")
    way.add_argument("--read", action="store_true", help="to standbys")
    string.add_argument("--sslmode", choices=TLS_MODES, help="how the client uses TLS (left out: as it likes)")
    string.add_argument("--root-cert", metavar="FILE", help="what flypg tls ca printed, to verify the servers")
    string.add_argument("--host", metavar="HOST", help="a name that leads to the nodes (on Fly: APP.internal)")
    string.add_argument(
        "--scram-keys",
        action="store_true",
        help="read the user's password, and print the keys that libpq 18 and newer takes instead: each connection"
        " costs the client some 5 ms less CPU",
    )
    connect = commands.add_parser("connect", description="Open psql on the primary, or straight on a node.")
    connect.add_argument("psql", nargs="*", metavar="-- PSQL-OPTIONS", help="options for psql, after --")
    for parser in (string, connect):
        parser.add_argument("--user", metavar="NAME", default="postgres", help="who connects (postgres)")
        parser.add_argument("--database", metavar="NAME", default="postgres", help="to which database (postgres)")
        parser.add_argument("--node", metavar="NODE", help="this node instead of the primary")
    finish(string, "flypg.commands.attach:connection_string")
    finish(connect, "flypg.commands.attach:connect")
