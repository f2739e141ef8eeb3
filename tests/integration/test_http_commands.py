"""The commands on a real cluster's standby, which sends them to the primary; their limits; what OpenAPI promises."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_node import N2, TestNode, standby_instance
from tests.support.pairs import Pair, running_pair
from tests.support.pgserver import BIN
from tests.support.serving import Serving, serving

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed"),
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as found:
        yield found


def standby(pair: Pair) -> TestNode:
    node = TestNode(pair.standby.conninfo, pair.primary.conninfo)
    node.me, node.local = N2, standby_instance()
    return node


async def call(server: Serving, method: str, path: str, body: object = None, **more: Any) -> tuple[int, Any]:
    data = json.dumps(body) if body is not None else None
    found = await server.get(f"/commands/{path}", method, data=data, **more)
    assert found.content_type == "application/json", "flyctl compares it exactly"
    assert found.text.endswith("}\n")
    return found.status, json.loads(found.text)


ODD = 'My-User "x"; drop'


def test_users_and_databases_live_and_die_through_any_node(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = standby(pair)
        async with serving(node, tmp_path) as server:
            new = {"username": ODD, "password": "it's \\ secret", "superuser": False, "databases": "odd db"}
            assert (await call(server, "POST", "users/create", new))[0] == 404, "there is no such database yet"
            assert await call(server, "POST", "databases/create", {"name": "odd db"}) == (200, {"result": True})
            assert (await call(server, "POST", "databases/create", {"name": "odd db"}))[0] == 409
            assert await call(server, "POST", "users/create", new) == (200, {"result": True})
            status, found = await call(server, "POST", "users/create", new)
            assert status == 409 and "already exists" in found["error"]
            _, found = await call(server, "GET", "users/list")
            user = next(u for u in found["result"] if u["username"] == ODD)
            assert user == {"username": ODD, "superuser": False, "repluser": False, "databases": ["odd db", "postgres"]}
            pair.primary.sql("SET ROLE postgres")
            with pair.primary.connect("odd db") as session:
                session.execute(f"SET SESSION AUTHORIZATION {_quoted(ODD)}".encode())
                session.execute("CREATE TABLE mine (id int)")
            _, found = await call(server, "GET", "databases/odd%20db")
            assert found["result"]["name"] == "odd db" and ODD in found["result"]["users"]
            assert await call(server, "DELETE", f"users/delete/{ODD.replace(' ', '%20')}") == (200, {"result": True})
            with pair.primary.connect("odd db") as session:
                owner = session.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'mine'").fetchone()
            assert owner == ("postgres",)
            assert (await call(server, "DELETE", "users/delete/nobody"))[0] == 404
            assert (await call(server, "DELETE", "users/delete/postgres"))[0] == 409
            assert (await call(server, "GET", "users/nobody")) == (404, {"error": "no rows in result set"})
            assert await call(server, "DELETE", "databases/delete/odd%20db") == (200, {"result": True})
            assert (await call(server, "DELETE", "databases/delete/odd%20db"))[0] == 404
            assert (await call(server, "DELETE", "databases/delete/postgres"))[0] == 409
        told = [event.text for event in node.memory.events]
        assert told == [
            "created the database odd db",
            f"created the user {ODD}",
            f"deleted the user {ODD}",
            "deleted the database odd db",
        ]
        assert {event.by for event in node.memory.events} == {"http 127.0.0.1"}

    asyncio.run(run())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def test_a_password_is_stored_as_a_verifier_and_never_shown(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(standby(pair), tmp_path) as server:
            pair.primary.sql("ALTER SYSTEM SET log_statement = 'all'")
            pair.primary.sql("SELECT pg_reload_conf()")
            new = {"username": "keeper", "password": "sesame-open-up", "superuser": True}
            assert await call(server, "POST", "users/create", new) == (200, {"result": True})
            stored = pair.primary.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'keeper'")
            assert str(stored[0][0]).startswith("SCRAM-SHA-256$")
            assert "sesame" not in (pair.primary.root / "log").read_text()
            assert (await call(server, "DELETE", "users/delete/keeper"))[0] == 200

    asyncio.run(run())


def test_settings_are_wishes_in_etcd(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = standby(pair)
        async with serving(node, tmp_path) as server:
            _, found = await call(server, "GET", "admin/settings/view", ["max_connections", "shared_buffers", "nix"])
            rows = {row["name"]: row for row in found["result"]["settings"]}
            assert set(rows) == {"max_connections", "shared_buffers"}
            assert rows["shared_buffers"]["unit"] == "8kB" and "pending_restart" not in rows["shared_buffers"]
            assert (await call(server, "GET", "admin/settings/view/postgres", ["nix"]))[0] == 404
            node.memory.conflicts = 2
            patch = {"pgParameters": {"work_mem": "8MB"}}
            assert await call(server, "POST", "admin/settings/update", patch) == (200, {"result": "Ok"})
            assert node.memory.spec.parameters == (("work_mem", "8MB"),)
            wish = {"max_connections": "200", "work_mem": None}
            _, found = await call(server, "POST", "admin/settings/update/postgres", wish)
            assert found["restart_required"] is True and "max_connections" in found["message"]
            assert node.memory.spec.parameters == (("max_connections", "200"),)
            before = node.memory.spec
            for wrong, status in (
                ({"nix": "1"}, 404),
                ({"max_connections": "0"}, 400),
                ({"work_mem": "lots"}, 400),
                ({"log_statement": "some"}, 400),
                ({"fsync": "off"}, 400),
                ({"work_mem": ["8MB"]}, 400),
                ({"wal_level": "minimal"}, 400),
            ):
                assert (await call(server, "POST", "admin/settings/update/postgres", wrong))[0] == status, wrong
            assert (await call(server, "POST", "admin/settings/update", {"maxStandbyLag": 1}))[0] == 400
            assert node.memory.spec == before
            node.memory.conflicts = 99
            assert (await call(server, "POST", "admin/settings/update", patch))[0] == 409
            applied = await server.get("/commands/admin/settings/apply", "POST")
            assert (applied.status, applied.text) == (200, "")

    asyncio.run(run())


def test_the_cluster_is_run_through_requests(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = standby(pair)
        async with serving(node, tmp_path) as server:
            assert await call(server, "GET", "admin/role") == (200, {"result": "replica"})
            status, found = await call(server, "GET", "admin/failover/trigger")
            assert (status, found) == (200, {"message": "failover completed successfully"})
            node.memory.answer = "refused: nobody could take over"
            status, found = await call(server, "GET", "admin/failover/trigger")
            assert status == 500 and "no eligible keepers" in found["error"]
            node.memory.answer = "done: restarted"
            assert await call(server, "GET", "admin/restart") == (200, {"result": "Restart completed successfully"})
            kinds = [str(request.kind) for request in node.memory.requests.values()]
            assert kinds == ["switchover", "switchover", "restart"]
            _, found = await call(server, "GET", "admin/replicationstats")
            assert [row["Name"] for row in found["result"]] == ["stolon_n2"]
            assert await call(server, "GET", "admin/dbuid") == (200, {"result": "n2"})
            assert await call(server, "POST", "admin/readonly/enable") == (200, {"result": True})
            assert node.restarts == 1
            pair.primary.sql("CREATE DATABASE app2")
            assert await call(server, "GET", "admin/readonly/enable") == (200, {"result": True})
            assert await call(server, "GET", "admin/readonly/state") == (200, {"result": True})
            with pair.primary.connect("app2") as session:
                assert session.execute("SHOW transaction_read_only").fetchone() == ("on",)
            assert await call(server, "POST", "admin/readonly/disable") == (200, {"result": True})
            assert await call(server, "GET", "admin/readonly/state") == (200, {"result": False})
            assert (await call(server, "DELETE", "databases/delete/app2"))[0] == 200
            assert await call(server, "POST", "admin/haproxy/restart") == (200, {"result": True})

    asyncio.run(run())


def test_a_token_is_needed_everywhere_once_it_is_set(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = standby(pair)
        async with serving(node, tmp_path, token="s3cret-täken") as server:
            routes = json.loads((await server.get("/openapi.json")).text)["paths"]
            for path, methods in routes.items():
                for method in methods:
                    found = await server.get(path.replace("{name}", "x"), method.upper(), data="{}")
                    assert found.status == 401 and "error" in json.loads(found.text), path
            wrong = {"Authorization": "Bearer s3cret"}
            assert (await call(server, "GET", "admin/dbuid", headers=wrong))[0] == 401
            assert node.memory.requests == {} and node.memory.events == []
            assert (await server.get("/flycheck/role")).text == "replica", "checks need none"
        async with serving(node, tmp_path, token="plain") as server:
            assert (await call(server, "GET", "admin/dbuid", headers={"Authorization": "bearer plain"}))[0] == 200
        async with serving(node, tmp_path) as server:
            foreign = {"Sec-Fetch-Site": "cross-site"}
            assert (await call(server, "GET", "admin/failover/trigger", headers=foreign))[0] == 403
            assert node.memory.requests == {}

    asyncio.run(run())


def test_what_is_not_understood_changes_nothing(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = standby(pair)
        before = pair.primary.sql("SELECT rolname FROM pg_roles ORDER BY 1")
        async with serving(node, tmp_path) as server:
            for body in (
                "{bad",
                "[]",
                "5",
                '{"username": ""}',
                '{"username": "a"}',
                '{"username": 5, "password": "x"}',
            ):
                found = await server.get("/commands/users/create", "POST", data=body)
                assert found.status == 400 and "error" in json.loads(found.text), body
            found = await server.get("/commands/users/create", "POST", data='{"username":"' + "x" * 70000 + '"}')
            assert found.status == 400
            assert (await call(server, "POST", "users/list"))[0] == 405
            assert (await call(server, "GET", "no/such/command")) == (404, {"error": "404 page not found"})
            assert (await call(server, "DELETE", "users/create"))[0] == 405
        assert pair.primary.sql("SELECT rolname FROM pg_roles ORDER BY 1") == before
        assert node.memory.events == [] and node.memory.requests == {}

    asyncio.run(run())


CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_the_running_server_keeps_what_its_description_promises(pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")

    async def run() -> None:
        async with serving(standby(pair), tmp_path) as server:
            program = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
            options = ["--checks", CHECKS, "--max-examples", "3", "--seed", "7", "--phases", "fuzzing"]
            quiet = ["--no-color", "--generation-database", "none", "--workers", "1", "--request-timeout", "30"]
            done = await asyncio.to_thread(
                subprocess.run,
                [*program, *options, *quiet],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=250,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

    asyncio.run(run())
