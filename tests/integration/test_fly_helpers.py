"""What flyctl runs over ssh, run from images/bin against a real primary, and decoded as flyctl decodes it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_node import TestNode
from tests.support.pairs import Pair, running_pair
from tests.support.pgserver import BIN
from tests.support.serving import Serving, serving

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed"),
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as found:
        yield found


class Machine:
    """Runs programs as an ssh session on the machine would: images/bin and flypg are in PATH."""

    def __init__(self, server: Serving, directory: Path, **more: str) -> None:
        wrapper = directory / "flypg"
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m flypg "$@"\n')
        wrapper.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLY", "PG"))}
        self.env = {
            **kept,
            "PATH": f"{directory}:{ROOT / 'images' / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FLYPG_LISTEN": "127.0.0.1",
            "FLYPG_HTTP_PORT": str(server.port),
            "FLYPG_METRICS_PORT": str(server.metrics_port),
            **more,
        }

    async def run(self, *argv: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *argv, env=self.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), err.decode()

    async def decoded(self, *argv: str) -> dict[str, Any]:
        """flyctl: json.Unmarshal of the whole output into {success bool, message string, data string}."""
        code, out, err = await self.run(*argv)
        assert code == 0, err
        found = json.loads(out)
        assert set(found) == {"success", "message", "data"}
        assert isinstance(found["success"], bool) and isinstance(found["message"], str), out
        assert isinstance(found["data"], str), out
        return found  # type: ignore[no-any-return]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_config_update_as_flyctl_makes_it(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = TestNode(pair.primary.conninfo)
        async with serving(node, tmp_path) as server:
            machine = Machine(server, tmp_path)
            patch = """update --patch '{"pgParameters":{"work_mem":"8192","log_statement":"ddl"}}'"""
            found = await machine.decoded("stolonctl-run", encoded(patch))
            assert found["success"] and found["message"] == "Command completed successfully"
            assert dict(node.memory.spec.parameters) == {"work_mem": "8192", "log_statement": "ddl"}

            found = await machine.decoded(
                "stolonctl-run", encoded("""update --patch '{"pgParameters":{"no_such":"1"}}'""")
            )
            assert not found["success"] and "no_such" in found["message"]
            assert "no_such" not in dict(node.memory.spec.parameters)

            for wrong in ("not base64!", encoded("update '"), encoded("init -y")):
                found = await machine.decoded("stolonctl-run", wrong)
                assert not found["success"] and found["message"], wrong

    asyncio.run(run())


def test_role_settings_failover_and_restart(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = TestNode(pair.primary.conninfo)
        async with serving(node, tmp_path, token="sesame") as server:
            machine = Machine(server, tmp_path, FLYPG_API_TOKEN="sesame")
            found = await machine.decoded("pg-role")
            assert found == {"success": True, "message": "Role retrieved successfully", "data": "leader"}
            found = await machine.decoded("pg-settings", encoded("work_mem,shared_buffers"))
            settings = json.loads(found["data"])["settings"]
            assert {s["name"] for s in settings} == {"work_mem", "shared_buffers"}
            assert all({"setting", "context", "vartype", "short_desc"} <= set(s) for s in settings)
            assert (await machine.decoded("pg-failover"))["success"]
            assert (await machine.decoded("pg-restart"))["message"] == "Restart completed successfully"
            assert {str(r.kind) for r in node.memory.requests.values()} == {"switchover", "restart"}
            node.memory.answer = "refused: nobody could take over"
            found = await machine.decoded("pg-failover")
            assert not found["success"] and "nobody could take over" in found["message"]

    asyncio.run(run())


def test_without_an_agent_or_with_a_wrong_token_one_object_says_so(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(TestNode(pair.primary.conninfo), tmp_path, token="sesame") as server:
            found = await Machine(server, tmp_path).decoded("pg-role")
            assert not found["success"] and "token" in found["message"]
            machine = Machine(server, tmp_path)
        found = await machine.decoded("pg-role")
        assert not found["success"] and "does not answer" in found["message"]

    asyncio.run(run())


def test_flyadmin(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(TestNode(pair.primary.conninfo), tmp_path) as server:
            machine = Machine(server, tmp_path)

            async def admin(*argv: str) -> dict[str, Any]:
                code, out, err = await machine.run("flyadmin", *argv)
                assert code == 0, err
                return json.loads(out)  # type: ignore[no-any-return]

            new = json.dumps({"username": "ann b", "password": "a long password", "superuser": True})
            assert await admin("user-create", new) == {"result": True}
            users = (await admin("user-list"))["result"]
            assert {"username", "superuser", "databases"} == set(users[0])
            assert any(u["username"] == "ann b" and u["superuser"] for u in users)
            assert await admin("database-create", '{"name": "shop"}') == {"result": True}
            again = await admin("database-create", '{"name": "shop"}')
            assert again["result"] is False and again["error"]
            assert any(d["name"] == "shop" for d in (await admin("database-list"))["result"])
            assert await admin("user-delete", '{"username": "ann b"}') == {"result": True}
            assert await admin("database-delete", '{"name": "shop"}') == {"result": True}
            code, out, err = await machine.run("flyadmin", "nonsense")
            assert code != 0 and not out and "nonsense" in err

    asyncio.run(run())


def test_stolonctl_says_its_version(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(TestNode(pair.primary.conninfo), tmp_path) as server:
            code, out, _ = await Machine(server, tmp_path).run("stolonctl", "version")
            assert code == 0 and out.startswith("stolonctl version")

    asyncio.run(run())
