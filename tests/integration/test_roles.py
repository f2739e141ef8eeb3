"""What schema admins, writers, readers and apps can and cannot do: every row against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from cluster.errors import InstanceError
from postgres import roles
from postgres.monitor import SqlRefused
from postgres.roles import Role
from tests.support.pgserver import BIN, PgServer

pytestmark = pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"PostgreSQL is not installed in {BIN}")
PASSWORD = "a long password"
HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\nlocal replication all trust\n"

USERS = {"ada": Role.SCHEMA_ADMIN, "alan": Role.SCHEMA_ADMIN, "wanda": Role.WRITER, "rhea": Role.READER}
LAYOUT = """
CREATE TABLE {0}t (id serial PRIMARY KEY, n int, big bigint GENERATED ALWAYS AS IDENTITY);
CREATE VIEW {0}v AS SELECT * FROM {0}t;
CREATE MATERIALIZED VIEW {0}m AS SELECT * FROM {0}t;
CREATE SEQUENCE {0}s;
CREATE FUNCTION {0}f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE {0}parts (k int) PARTITION BY LIST (k);
CREATE TABLE {0}parts_1 PARTITION OF {0}parts FOR VALUES IN (1);
"""

OTHER_KINDS = """
SET ROLE NONE;
CREATE DOMAIN own_domain AS int;
CREATE AGGREGATE own_aggregate (int) (sfunc = int4pl, stype = int);
CREATE STATISTICS own_statistics ON n, big FROM t;
CREATE COLLATION own_collation FROM "C";
CREATE TEXT SEARCH CONFIGURATION own_search (COPY = simple);
"""
# What stays the superuser's: it would do less otherwise, or run with a superuser's rights what a schema admin wrote.
PRIVILEGED = """
CREATE FUNCTION su_definer() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
CREATE FUNCTION su_event() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION su_c(text) RETURNS text LANGUAGE internal AS 'upper';
CREATE VIEW su_catalog AS SELECT rolname FROM pg_authid;
"""
CHANGES = """
ALTER TABLE {0}t ADD m int;
CREATE INDEX ON {0}t (n);
CREATE TABLE {0}parts_2 PARTITION OF {0}parts FOR VALUES IN (2);
REFRESH MATERIALIZED VIEW {0}m;
ALTER SEQUENCE {0}s RESTART;
ALTER VIEW {0}v ALTER n SET DEFAULT 1;
CREATE OR REPLACE FUNCTION {0}f() RETURNS int LANGUAGE sql AS 'SELECT 2';
"""


def async_door(server: PgServer) -> roles.Door:
    @contextlib.asynccontextmanager
    async def door(database: str) -> AsyncIterator[Any]:
        connection = await psycopg.AsyncConnection.connect(
            host=str(server.sockets), port=server.port, user="postgres", dbname=database, autocommit=True
        )
        try:
            yield connection
        finally:
            await connection.close()

    return door


@contextlib.contextmanager
def as_user(server: PgServer, user: str, database: str = "shop") -> Iterator[psycopg.Connection[Any]]:
    connection = psycopg.connect(
        host="127.0.0.1", port=server.port, user=user, password=PASSWORD, dbname=database, autocommit=True
    )
    try:
        yield connection
    finally:
        connection.close()


def run(server: PgServer, user: str, statements: str, database: str = "shop") -> None:
    with as_user(server, user, database) as connection:
        for statement in filter(None, (s.strip() for s in statements.split(";"))):
            connection.execute(statement.encode())


@pytest.fixture(scope="module")
def server() -> Iterator[PgServer]:
    """A cluster with objects made before the roles, by a schema admin, by the superuser, and in a later database."""
    server = PgServer()
    try:
        server.initdb(password_encryption="scram-sha-256")
        (server.data / "pg_hba.conf").write_text(HBA)
        if os.geteuid() == 0:
            shutil.chown(server.data / "pg_hba.conf", "postgres", "postgres")
        server.start()
        asyncio.run(prepared(server))
        yield server
    finally:
        server.remove()


async def prepared(server: PgServer) -> None:
    door = async_door(server)
    server.sql("CREATE ROLE veteran LOGIN PASSWORD 'a long password'")
    server.sql("CREATE DATABASE shop")
    with server.connect("shop") as su:
        su.execute(LAYOUT.format("old_").encode())
        su.execute("INSERT INTO old_t (n) VALUES (1)")
    await roles.prepare(door)
    for name, role in USERS.items():
        async with door("postgres") as connection:
            await roles.create_user(connection, name, role, PASSWORD)
    server.sql('CREATE DATABASE "later db"')
    assert await roles.follow(door) == ["later db"]
    assert await roles.follow(door) == [], "what follows is left alone"
    for database in ("shop", "later db"):
        fill(server, database)


def fill(server: PgServer, database: str) -> None:
    """What a schema admin and the superuser have made."""
    run(server, "ada", LAYOUT.format("") + "INSERT INTO t (n) VALUES (1); CREATE SCHEMA lab", database)
    run(server, "ada", "CREATE TABLE lab.t (n int); INSERT INTO lab.t VALUES (1)", database)
    own = "SET ROLE NONE; CREATE TABLE own (n int); CREATE SEQUENCE own_s; CREATE SCHEMA own_lab"
    run(server, "ada", own, database)
    run(server, "ada", "SET ROLE NONE; SELECT 1 AS n INTO own_into", database)
    run(server, "ada", OTHER_KINDS, database)
    with server.connect(database) as su:
        su.execute("CREATE TABLE by_superuser (n int); INSERT INTO by_superuser VALUES (1)")
        su.execute(LAYOUT.format("su_").encode())
        su.execute(PRIVILEGED.encode())


CAN = [
    ("ada", "CREATE TABLE c1 (n int); ALTER TABLE c1 ADD m int; CREATE INDEX ON c1 (n); DROP TABLE c1"),
    (
        "ada",
        "CREATE SCHEMA c2; CREATE TYPE c2.k AS ENUM ('a'); CREATE FUNCTION c2.f() RETURNS int LANGUAGE sql RETURN 1",
    ),
    (
        "ada",
        "CREATE VIEW c3 AS TABLE t; CREATE MATERIALIZED VIEW c4 AS SELECT 1 AS n; CREATE TABLE c5 AS SELECT 1 AS n",
    ),
    ("ada", "CREATE TEMPORARY TABLE c6 (n int)"),
    ("ada", "CREATE EXTENSION pgcrypto"),
    ("alan", "ALTER TABLE t ADD extra int; ALTER TABLE own ADD extra int; ALTER TABLE lab.t ADD extra int; VACUUM t"),
    ("alan", "CREATE TABLE c7 (n int); TRUNCATE c7; DROP TABLE own_into; DROP SCHEMA own_lab"),
    (
        "alan",
        "SELECT * FROM old_t; UPDATE old_t SET n = n + 1; TABLE by_superuser; DISCARD ALL; CREATE TABLE c8 (n int)",
    ),
    (
        "wanda",
        "SELECT * FROM t; INSERT INTO t (n) VALUES (2); UPDATE t SET n = 3 WHERE n = 2; DELETE FROM t WHERE n = 3",
    ),
    (
        "wanda",
        "INSERT INTO old_t (n) VALUES (2); INSERT INTO lab.t VALUES (2); INSERT INTO own VALUES (2); DELETE FROM own",
    ),
    (
        "wanda",
        "SELECT nextval('s'), nextval('old_s'), nextval('own_s'), f(); INSERT INTO parts VALUES (1)",
    ),
    (
        "ada",
        "ALTER TABLE by_superuser ADD later serial; CREATE INDEX ON by_superuser (n); COMMENT ON TABLE su_t IS 'x'",
    ),
    ("ada", CHANGES.format("old_")),
    ("ada", CHANGES.format("su_")),
    ("alan", "ALTER DOMAIN own_domain SET DEFAULT 1; ALTER AGGREGATE own_aggregate (int) RENAME TO own_aggregate2"),
    ("alan", "DROP STATISTICS own_statistics; DROP COLLATION own_collation; DROP TEXT SEARCH CONFIGURATION own_search"),
    ("wanda", "INSERT INTO by_superuser VALUES (2); SELECT * FROM v; SELECT * FROM m; SELECT * FROM old_v"),
    ("rhea", "SELECT * FROM t; SELECT * FROM v; SELECT * FROM m; SELECT * FROM lab.t; SELECT * FROM own; SELECT f()"),
    (
        "rhea",
        "SELECT * FROM old_t; SELECT * FROM old_v; SELECT * FROM old_m; SELECT last_value FROM s; SELECT * FROM parts",
    ),
    ("rhea", "SELECT * FROM by_superuser"),
    ("veteran", "SELECT 1"),
]
CANNOT = [
    ("ada", "CREATE DATABASE more", "permission denied to create database"),
    ("ada", "DROP DATABASE shop", "must be owner of database"),
    ("ada", "CREATE ROLE mallory", "permission denied to create role"),
    ("ada", "GRANT pg_read_server_files TO ada", "admin option|permission denied"),
    ("ada", "COPY t TO PROGRAM 'cat'", "permission denied|must be superuser"),
    ("ada", "ALTER SYSTEM SET work_mem = '1GB'", "permission denied|must be superuser"),
    ("ada", "SELECT rolpassword FROM pg_authid", "permission denied"),
    ("ada", "UPDATE pg_authid SET rolsuper = true", "permission denied"),
    ("ada", "SELECT pg_read_file('/etc/passwd')", "permission denied"),
    ("ada", "SET SESSION AUTHORIZATION postgres", "permission denied"),
    ("ada", "SELECT flypg.user_lookup('ada')", "permission denied"),
    ("ada", "CREATE OR REPLACE FUNCTION su_definer() RETURNS int LANGUAGE sql AS 'SELECT 2'", "must be owner"),
    ("ada", "ALTER FUNCTION su_event() OWNER TO ada", "must be owner"),
    ("ada", "ALTER FUNCTION su_c(text) RENAME TO c", "must be owner"),
    ("ada", "CREATE OR REPLACE VIEW su_catalog AS SELECT rolname, rolpassword FROM pg_authid", "must be owner"),
    ("wanda", "TRUNCATE t", "permission denied"),
    ("wanda", "CREATE TABLE x (n int)", "permission denied"),
    ("wanda", "CREATE TABLE lab.x (n int)", "permission denied"),
    ("wanda", "CREATE SCHEMA x", "permission denied"),
    ("wanda", "CREATE FUNCTION x() RETURNS int LANGUAGE sql AS 'SELECT 1'", "permission denied"),
    ("wanda", "CREATE PROCEDURE x() LANGUAGE sql AS 'SELECT 1'", "permission denied"),
    ("wanda", "CREATE INDEX ON t (n)", "must be owner"),
    ("wanda", "CREATE TEMPORARY TABLE x (n int)", "permission denied to create temporary tables"),
    ("wanda", "CREATE TEMPORARY VIEW x AS SELECT 1", "permission denied to create temporary tables"),
    ("wanda", "ALTER TABLE t ADD x int", "must be owner"),
    ("wanda", "DROP TABLE t", "must be owner"),
    ("wanda", "CREATE EXTENSION hstore", "permission denied"),
    ("wanda", "CREATE DATABASE x", "permission denied"),
    ("wanda", "SET ROLE schema_admin", "permission denied"),
    ("wanda", "CREATE ROLE x", "permission denied"),
    ("wanda", "SELECT rolpassword FROM pg_authid", "permission denied"),
    ("rhea", "INSERT INTO t (n) VALUES (1)", "permission denied"),
    ("rhea", "INSERT INTO old_t (n) VALUES (1)", "permission denied"),
    ("rhea", "UPDATE own SET n = 1", "permission denied"),
    ("rhea", "DELETE FROM lab.t", "permission denied"),
    ("rhea", "INSERT INTO by_superuser VALUES (1)", "permission denied"),
    ("rhea", "SELECT nextval('s')", "permission denied"),
    ("rhea", "SELECT setval('s', 1)", "permission denied"),
    ("rhea", "SELECT * FROM t FOR UPDATE", "permission denied"),
    ("rhea", "CREATE TABLE x (n int)", "permission denied"),
    ("rhea", "CREATE TEMPORARY TABLE x (n int)", "permission denied to create temporary tables"),
    ("rhea", "CREATE SCHEMA x", "permission denied"),
    ("rhea", "SELECT lo_create(0)", "permission denied"),
    ("rhea", "LOCK t IN EXCLUSIVE MODE", "permission denied|can only be used in transaction blocks"),
    ("rhea", "SELECT rolpassword FROM pg_authid", "permission denied"),
    ("rhea", "SELECT pg_read_file('/etc/passwd')", "permission denied"),
    ("rhea", "SET ROLE writer", "permission denied"),
]


@pytest.mark.parametrize(("user", "statements"), CAN, ids=[f"{u}: {s[:40]}" for u, s in CAN])
def test_can(server: PgServer, user: str, statements: str) -> None:
    run(server, user, statements)


@pytest.mark.parametrize(("user", "statement", "error"), CANNOT, ids=[f"{u}: {s[:40]}" for u, s, _ in CANNOT])
def test_cannot(server: PgServer, user: str, statement: str, error: str) -> None:
    with pytest.raises(psycopg.Error, match=error):
        run(server, user, statement)


@pytest.mark.parametrize("user", [*USERS])
@pytest.mark.parametrize("database", ["postgres", "shop", "later db"])
def test_everybody_connects_everywhere(server: PgServer, user: str, database: str) -> None:
    run(server, user, "SELECT * FROM t" if database != "postgres" else "SELECT 1", database)


def test_who_came_before_the_roles_keeps_what_it_had(server: PgServer) -> None:
    run(server, "veteran", "CREATE TEMPORARY TABLE x (n int)")
    with pytest.raises(psycopg.Error, match="permission denied for table"):
        run(server, "veteran", "SELECT * FROM t")


async def test_a_new_role_holds_at_once_and_sessions_end(server: PgServer) -> None:
    door = async_door(server)
    async with door("postgres") as connection:
        await roles.create_user(connection, "changing", Role.SCHEMA_ADMIN, PASSWORD)
        with as_user(server, "changing") as old:
            old.execute("SELECT 1")
            await roles.set_role(door, "changing", Role.READER)
            with pytest.raises(psycopg.OperationalError):
                old.execute("SELECT 1")
        with pytest.raises(psycopg.Error, match="permission denied"):
            run(server, "changing", "CREATE TABLE x (n int)")
        await roles.set_role(door, "changing", Role.WRITER)
        run(server, "changing", "INSERT INTO t (n) VALUES (1)")
        await roles.set_password(connection, "changing", "another long one")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            run(server, "changing", "SELECT 1")
        assert [u.role for u in await roles.users(connection) if u.name == "changing"] == ["writer"]
    await roles.drop_user(door, "changing")
    with pytest.raises(SqlRefused, match="there is no user changing"):
        await roles.set_role(door, "changing", Role.READER)


async def test_a_dropped_user_leaves_its_things_to_the_schema_admins(server: PgServer) -> None:
    door = async_door(server)
    async with door("postgres") as connection:
        await roles.create_user(connection, "leaving", Role.SCHEMA_ADMIN, PASSWORD)
    run(
        server,
        "leaving",
        "CREATE TABLE left_over (n int); SET ROLE NONE; CREATE FUNCTION left_f() RETURNS int LANGUAGE sql RETURN 2",
    )
    await roles.drop_user(door, "leaving")
    run(server, "ada", "ALTER TABLE left_over ADD m int; DROP FUNCTION left_f()")


async def test_an_app_is_schema_admin_of_its_own_database_only(server: PgServer) -> None:
    door = async_door(server)
    server.sql("CREATE DATABASE my_app")
    await roles.follow(door)
    assert await roles.create_app(door, "my_app", "my_app", PASSWORD)
    run(
        server, "my_app", "CREATE TABLE t (n int); INSERT INTO t VALUES (1); CREATE TEMPORARY TABLE x (n int)", "my_app"
    )
    run(server, "rhea", "SELECT * FROM t", "my_app")
    run(server, "ada", "ALTER TABLE t ADD m int", "my_app")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        run(server, "my_app", "SELECT 1", "shop")
    assert not await roles.create_app(door, "my_app", "my_app", "changed password"), "again: only the password changes"
    async with door("postgres") as connection:
        row = next(u for u in await roles.users(connection) if u.name == "my_app")
        assert (row.role, row.databases) == ("app", ["my_app"])
    await roles.drop_user(door, "my_app")
    run(server, "ada", "SELECT n, m FROM t; DROP TABLE t", "my_app")


async def test_a_new_role_is_all_that_a_user_has(server: PgServer) -> None:
    """Of a superuser, too: nothing is left of its attributes, its own rights, its groups or what it owned."""
    door = async_door(server)
    server.sql(f"CREATE ROLE boss LOGIN SUPERUSER CREATEDB BYPASSRLS PASSWORD '{PASSWORD}'; CREATE ROLE team NOLOGIN")
    server.sql("GRANT team, pg_read_all_data TO boss")
    with server.connect("shop") as su:
        su.execute(
            "GRANT TEMPORARY ON DATABASE shop TO boss; CREATE TABLE for_boss (n int); GRANT ALL ON for_boss TO boss"
        )
    run(
        server,
        "boss",
        "CREATE TABLE of_boss (n int); CREATE FUNCTION boss_f() RETURNS int LANGUAGE sql SECURITY DEFINER"
        " RETURN 1; CREATE FOREIGN DATA WRAPPER boss_fdw; CREATE DATABASE of_boss",
    )
    await roles.set_role(door, "boss", Role.READER)
    run(server, "boss", "SELECT * FROM of_boss; SELECT * FROM for_boss")
    for statement in ("INSERT INTO for_boss VALUES (1)", "DROP TABLE of_boss", "CREATE TEMPORARY TABLE x (n int)"):
        with pytest.raises(psycopg.Error, match=r"permission denied|must be owner"):
            run(server, "boss", statement)
    with pytest.raises(psycopg.Error, match="permission denied"):
        run(server, "boss", "SELECT rolpassword FROM pg_authid")
    run(server, "ada", "ALTER TABLE of_boss ADD m int")
    owners = server.sql("SELECT rolname FROM pg_database d JOIN pg_roles r ON r.oid = datdba WHERE datname = 'of_boss'")
    assert owners == [("postgres",)], "who owns a database may drop it"
    await roles.drop_user(door, "boss")


async def test_a_dropped_users_databases_are_not_the_schema_admins(server: PgServer) -> None:
    door = async_door(server)
    async with door("postgres") as connection:
        await roles.create_user(connection, "landlord", Role.SCHEMA_ADMIN, PASSWORD)
    server.sql("CREATE DATABASE landlords OWNER landlord")
    await roles.follow(door)
    await roles.drop_user(door, "landlord")
    with pytest.raises(psycopg.Error, match="must be owner"):
        run(server, "ada", "DROP DATABASE landlords")


async def test_dropping_goes_on_where_it_was_broken_off(server: PgServer) -> None:
    """Which is also how a broken-off detach goes on, and how an attach after it does."""
    door = async_door(server)
    server.sql("CREATE DATABASE broken_off")
    await roles.follow(door)
    await roles.create_app(door, "broken_off", "broken_off", PASSWORD)
    run(server, "broken_off", "CREATE TABLE t (n int)", "broken_off")

    @contextlib.asynccontextmanager
    async def broken(database: str) -> AsyncIterator[Any]:
        if database == "broken_off":
            raise ConnectionError
        async with door(database) as connection:
            yield connection

    with pytest.raises(ConnectionError):
        await roles.drop_user(broken, "broken_off")
    async with door("postgres") as connection:
        row = next(u for u in await roles.users(connection) if u.name == "broken_off")
    assert (row.role, row.login) == ("app", False)
    assert not await roles.create_app(door, "broken_off", "broken_off", PASSWORD)
    run(server, "broken_off", "ALTER TABLE t ADD m int", "broken_off")
    with pytest.raises(ConnectionError):
        await roles.drop_user(broken, "broken_off")
    await roles.drop_user(door, "broken_off")


async def test_owners_that_a_superuser_gives_keep_schema_admins_in(server: PgServer) -> None:
    """As pg_restore does: made by postgres, then given to another."""
    with server.connect("shop") as su:
        su.execute("CREATE TABLE given (id serial, n int); ALTER TABLE given OWNER TO veteran")
        su.execute("CREATE SCHEMA given; ALTER SCHEMA given OWNER TO veteran; CREATE TABLE given.t (n int)")
    run(server, "ada", "INSERT INTO given (n) VALUES (1); SELECT * FROM given.t; CREATE TABLE given.u (n int)")
    run(server, "wanda", "INSERT INTO given (n) VALUES (1)")


@pytest.mark.parametrize("user", [*USERS])
def test_nobody_stands_in_the_way_of_new_databases(server: PgServer, user: str) -> None:
    """One connection to template1, and CREATE DATABASE is refused."""
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        run(server, user, "SELECT 1", "template1")


async def test_two_at_once_do_not_disturb_each_other(server: PgServer) -> None:
    """A command makes a database, the agent has noticed it already, and an app gets it."""
    door = async_door(server)

    async def attach(name: str) -> None:
        async with door("postgres") as connection:
            await connection.execute(f"CREATE DATABASE {name}".encode())
        await roles.prepare(door)
        await roles.create_app(door, name, name, PASSWORD)

    async def agent() -> None:
        while not done.is_set():
            await roles.follow(door)

    done = asyncio.Event()
    await roles.follow(door, pooler="its password")
    looking = [asyncio.create_task(agent()) for _ in range(3)]
    for number in range(6):
        await attach(f"at_once_{number}")
    done.set()
    await asyncio.gather(*looking)
    run(server, "at_once_5", "CREATE TABLE t (n int)", "at_once_5")


async def test_a_database_from_template0_follows(server: PgServer) -> None:
    door = async_door(server)
    server.sql("CREATE DATABASE bare TEMPLATE template0")
    assert await roles.follow(door) == ["bare"]
    run(server, "ada", "CREATE TABLE t (n int)", "bare")
    run(server, "wanda", "INSERT INTO t VALUES (1)", "bare")


async def test_what_an_older_flypg_made_is_brought_up_to_date(server: PgServer) -> None:
    door = async_door(server)
    server.sql("CREATE DATABASE aged")
    await roles.follow(door)
    with server.connect("aged") as su:
        su.execute("ALTER EVENT TRIGGER flypg_own_objects DISABLE; CREATE TABLE t (n int)")
        su.execute("DROP EVENT TRIGGER flypg_own_objects; DROP FUNCTION flypg.adopt")
        su.execute("CREATE EVENT TRIGGER flypg_own_objects ON ddl_command_end EXECUTE FUNCTION flypg.own_objects()")
        su.execute("COMMENT ON EVENT TRIGGER flypg_own_objects IS 'flypg 1'")
    assert await roles.follow(door) == [], "its privileges are as they should be"
    assert await roles.follow(door, thorough=True) == ["aged"]
    assert await roles.follow(door, thorough=True) == []
    run(server, "ada", "ALTER TABLE t ADD m int", "aged")


async def test_names_that_are_flypgs_own(server: PgServer) -> None:
    async with async_door(server)("postgres") as connection:
        for name in (
            "postgres",
            "flypgadmin",
            "reader",
            "flypg_pooler",
            "pgbouncer",
            "pg_x",
            "",
            " ",
            "a\nb",
            "é" * 32,
        ):
            with pytest.raises(InstanceError):
                await roles.create_user(connection, name, Role.READER, PASSWORD)
        with pytest.raises(psycopg.errors.DuplicateObject):
            await roles.create_user(connection, "rhea", Role.READER, PASSWORD)


def test_no_password_reaches_the_servers_log(server: PgServer) -> None:
    server.sql("ALTER SYSTEM SET log_statement = 'all'")
    server.sql("SELECT pg_reload_conf()")

    async def change() -> None:
        async with async_door(server)("postgres") as connection:
            await roles.create_user(connection, "quiet", Role.READER, "never to be seen")

    asyncio.run(change())
    assert "never to be seen" not in (server.root / "log").read_text()
