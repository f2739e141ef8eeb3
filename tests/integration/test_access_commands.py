"""flypg users, databases, attach, detach against a real primary; etcd is not the point here."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from cluster.endpoints import Endpoint, EtcdOptions
from cluster.errors import InstanceError
from cluster.model import Member, NodeId, Phase, Ports, Snapshot, Spec, View
from flypg.cli import build_parser
from flypg.commands import attach, users
from flypg.primary import Primary, serving
from flypg.reply import BadInput, Exit, Refused, Reply
from flypg.target import Target
from tests.support.pgserver import BIN, PgServer

pytestmark = pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"PostgreSQL is not installed in {BIN}")
SUPERUSER = "the password of flypgadmin"
HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@pytest.fixture(scope="module")
def server() -> Iterator[PgServer]:
    server = PgServer()
    try:
        server.initdb(password_encryption="scram-sha-256")
        (server.data / "pg_hba.conf").write_text(HBA)
        if os.geteuid() == 0:
            shutil.chown(server.data / "pg_hba.conf", "postgres", "postgres")
        server.start()
        server.sql(f"CREATE ROLE flypgadmin SUPERUSER LOGIN PASSWORD '{SUPERUSER}'")
        yield server
    finally:
        server.remove()


def primary_of(server: PgServer) -> Primary:
    member = Member(NodeId("n1"), "127.0.0.1", Ports(postgres=server.port, proxy=server.port, pooler=6432))
    view = View(1, Phase.OPEN, NodeId("n1"), 1, (), members=(member,))
    snapshot = Snapshot(1, view, 1, Spec(), 1)
    target = Target("test", EtcdOptions((Endpoint("127.0.0.1", 1, False),)), "a test")
    return Primary(target, None, snapshot, serving(snapshot), SUPERUSER)  # type: ignore[arg-type]


def run(server: PgServer, *typed: str) -> Reply:
    args = build_parser().parse_args(list(typed))
    function = args.run.rpartition(":")[2]
    module = attach if typed[0] in ("attach", "detach") else users
    work = getattr(module, f"_{function}")
    primary = primary_of(server)
    coroutine = work(primary) if function.startswith("list_") else work(args, primary)
    reply: Reply = asyncio.run(coroutine)
    assert reply.exit is Exit.OK
    return reply


def data(reply: Reply) -> dict[str, Any]:
    assert isinstance(reply.data, dict)
    return reply.data


def login(server: PgServer, user: str, password: str, database: str, statement: str) -> None:
    with psycopg.connect(
        host="127.0.0.1", port=server.port, user=user, password=password, dbname=database, autocommit=True
    ) as connection:
        connection.execute(statement.encode())


def test_users_and_databases(server: PgServer) -> None:
    run(server, "databases", "create", "shop")
    made = data(run(server, "users", "create", "ada-x", "--role", "schema-admin"))
    login(server, "ada-x", made["password"], "shop", "CREATE TABLE t (n int)")
    reader = data(run(server, "users", "create", "rhea", "--role", "reader"))
    login(server, "rhea", reader["password"], "shop", "SELECT * FROM t")
    run(server, "users", "set-role", "rhea", "--role", "writer")
    login(server, "rhea", reader["password"], "shop", "INSERT INTO t VALUES (1)")
    changed = data(run(server, "users", "set-password", "rhea"))
    with pytest.raises(psycopg.OperationalError):
        login(server, "rhea", reader["password"], "shop", "SELECT 1")
    login(server, "rhea", changed["password"], "shop", "SELECT 1")
    listed = {u["name"]: u["role"] for u in data(run(server, "users", "list"))["users"]}
    assert listed == {"ada-x": "schema-admin", "postgres": "superuser", "rhea": "writer"}
    assert "shop" in [d["name"] for d in data(run(server, "databases", "list"))["databases"]]

    with pytest.raises(Refused, match="exists already"):
        run(server, "users", "create", "rhea", "--role", "reader")
    with pytest.raises(Refused, match="exists already"):
        run(server, "databases", "create", "shop")
    with pytest.raises(Refused, match="there is no user"):
        run(server, "users", "set-role", "nobody_here", "--role", "reader")

    run(server, "users", "drop", "ada-x", "--yes")
    run(server, "users", "drop", "rhea", "--yes")
    run(server, "databases", "drop", "shop", "--yes")
    with pytest.raises(Refused, match="there is no database"):
        run(server, "databases", "drop", "shop", "--yes")


def test_dropping_asks_and_names_what_is_lost(server: PgServer, monkeypatch: pytest.MonkeyPatch) -> None:
    run(server, "databases", "create", "precious")
    with server.connect("precious") as su:
        su.execute("CREATE TABLE one (n int); CREATE TABLE two (n int)")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(Refused, match="precious is lost for good: 2 tables"):
        run(server, "databases", "drop", "precious")
    run(server, "databases", "drop", "precious", "--yes")


def test_attach_and_detach(server: PgServer) -> None:
    made = data(run(server, "attach", "My-App", "--variable-name", "PG_URL"))
    assert (made["user"], made["database"]) == ("my_app", "my_app")
    assert len(made["password"]) >= 32
    direct = made["variables"]["DIRECT_PG_URL"]
    assert made["variables"]["PG_URL"] == direct.replace(f":{server.port}/", ":6432/")
    with psycopg.connect(direct, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (n int)")
    with pytest.raises(Refused, match="attached already"):
        run(server, "attach", "My-App")
    again = data(run(server, "attach", "My-App", "--new-password"))
    login(server, "my_app", again["password"], "my_app", "SELECT * FROM t")
    assert data(run(server, "detach", "My-App"))["changed"]
    with pytest.raises(psycopg.OperationalError):
        login(server, "my_app", again["password"], "my_app", "SELECT 1")
    with server.connect("my_app") as su:
        assert su.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert not data(run(server, "detach", "My-App"))["changed"], "again: nothing to do"


def test_keys_in_place_of_a_password(server: PgServer) -> None:
    """A client with libpq 18 (psycopg brings it) logs in with them, until the password is changed."""

    def printed(password: str) -> str:
        args = build_parser().parse_args(["connection-string", "--user", "keyed", "--direct", "--scram-keys"])
        reply = asyncio.run(attach._with_keys(args, primary_of(server), password))
        assert "As secret as the password" in reply.text
        return str(data(reply)["url"])

    made = data(run(server, "users", "create", "keyed", "--role", "reader"))
    url = printed(made["password"])
    assert made["password"] not in url and "scram_client_key=" in url and "scram_server_key=" in url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("keyed",)
    for wrong in ("not that", ""):
        with pytest.raises(BadInput, match="not the password of keyed; nothing was printed"):
            printed(wrong)
    run(server, "users", "set-password", "keyed")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    run(server, "users", "drop", "keyed", "--yes")
    with pytest.raises(BadInput, match="there is no user keyed"):
        printed(made["password"])


def test_attach_goes_on_where_it_was_interrupted(server: PgServer) -> None:
    server.sql("CREATE DATABASE half_way")
    made = data(run(server, "attach", "half-way"))
    login(server, "half_way", made["password"], "half_way", "CREATE TABLE t (n int)")


def test_detach_goes_on_where_it_was_interrupted(server: PgServer) -> None:
    data(run(server, "attach", "cut-off"))
    server.sql("ALTER ROLE cut_off NOLOGIN")  # what detach does first
    listed = {u["name"]: u["login"] for u in data(run(server, "users", "list"))["users"]}
    assert listed["cut_off"] is False
    again = data(run(server, "attach", "cut-off"))
    login(server, "cut_off", again["password"], "cut_off", "CREATE TABLE t (n int)")
    server.sql("ALTER ROLE cut_off NOLOGIN")
    assert data(run(server, "detach", "cut-off"))["changed"]
    back = data(run(server, "attach", "cut-off"))
    login(server, "cut_off", back["password"], "cut_off", "ALTER TABLE t ADD m int")


def test_attach_takes_nobody_elses_user(server: PgServer) -> None:
    data(run(server, "users", "create", "taken", "--role", "reader"))
    with pytest.raises(InstanceError, match="exists and is reader"):
        run(server, "attach", "taken")
    with pytest.raises(Refused, match="not a user made by attach"):
        run(server, "detach", "taken")
    with pytest.raises(BadInput):
        attach.app_name("1st")


def test_options_are_checked() -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["users", "create", "x", "--role", "superuser"])
    assert isinstance(build_parser().parse_args(["connect", "--", "-c", "SELECT 1"]), argparse.Namespace)
