"""The checks against a real primary and standby: Fly's lines, full servers, locks, hanging servers, many who ask."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.support.http_node import N2, TestNode, eventually, open_snapshot, primary_instance, standby_instance
from tests.support.pairs import Pair, running_pair
from tests.support.pgserver import BIN, PgServer
from tests.support.serving import Serving, serving

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed"),
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as found:
        yield found


def on_primary(pair: Pair) -> TestNode:
    return TestNode(pair.primary.conninfo)


def on_standby(pair: Pair) -> TestNode:
    node = TestNode(pair.standby.conninfo, pair.primary.conninfo)
    node.me, node.local = N2, standby_instance()
    node.current = open_snapshot()
    return node


def names(body: str) -> list[str]:
    return [line.split("] ", 1)[1].split(":")[0] for line in body.splitlines()]


def test_flys_lines_come_first_and_in_flys_order(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(on_primary(pair), tmp_path) as primary, serving(on_standby(pair), tmp_path) as standby:
            found = await primary.get("/flycheck/pg")
            assert (found.status, found.content_type) == (200, "text/plain; charset=utf-8"), found.text
            assert names(found.text)[:3] == ["transactions", "replicationLag", "connections"]
            assert found.text.startswith("[✓] transactions: read/write (") and not found.text.endswith("\n")
            found = await standby.get("/flycheck/pg")
            assert found.status == 200, found.text
            assert names(found.text)[:3] == ["transactions", "replication", "connections"]
            assert "[✓] replication: syncing from 127.0.0.1 (" in found.text
            found = await primary.get("/flycheck/vm", "POST")
            assert names(found.text) == ["checkDisk", "checkLoad", "memory", "cpu", "io"]
            assert (await primary.get("/flycheck/role")).text == "leader"
            assert (await standby.get("/flycheck/role")).text == "replica"
            assert [(await standby.get(p)).status for p in ("/primary", "/replica", "/replica?lag=64MB")] == [
                503,
                200,
                200,
            ]
            assert (await standby.get("/replica?lag=much")).status == 400
            assert (await primary.get("/primary", "OPTIONS")).text == ""

    asyncio.run(run())


def test_the_role_follows_what_the_node_knows_at_once(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = on_primary(pair)
        async with serving(node, tmp_path) as server:
            assert (await server.get("/flycheck/role")).text == "leader"
            node.authority = 0.0
            found = await server.get("/flycheck/role")
            assert found.status == 500 and "authority has run out" in found.text
            node.authority, node.local = float("inf"), standby_instance()
            assert (await server.get("/flycheck/role")).text == "replica"
            node.local = None
            assert (await server.get("/flycheck/role")).status == 500

    asyncio.run(run())


def test_one_connection_serves_everyone_even_when_all_others_are_taken(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = on_primary(pair)
        taken: list[psycopg.Connection[object]] = []
        pair.primary.sql("CREATE ROLE app LOGIN CONNECTION LIMIT -1")
        try:
            with pytest.raises(psycopg.OperationalError, match="remaining connection slots are reserved"):
                while True:
                    taken.append(
                        psycopg.connect(
                            host=str(pair.primary.sockets), port=pair.primary.port, user="app", dbname="postgres"
                        )
                    )
            async with serving(node, tmp_path) as server:
                found = await asyncio.gather(*(server.get("/flycheck/pg") for _ in range(50)))
                assert {answer.status for answer in found} == {200}, found[0].text
                assert "connectionsLimit: warning:" in found[0].text
                assert node.opened == 1
                assert server.server.checks.pg.runs_total <= 5
        finally:
            for connection in taken:
                connection.close()

    asyncio.run(run())


def test_a_lock_on_a_catalog_turns_no_node_red(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        node = on_primary(pair)
        async with serving(node, tmp_path) as server:
            server.server.checks._upkeep_at = time.monotonic()  # upkeep was read a moment ago, and failed
            assert (await server.get("/flycheck/pg")).status == 200
            with pair.primary.connect() as holder, holder.transaction():
                holder.execute("LOCK pg_database IN ACCESS EXCLUSIVE MODE")
                server.server.checks._upkeep_at = float("-inf")
                await asyncio.sleep(1.1)  # the answer is kept for a second
                found = await server.get("/flycheck/pg")
                assert found.status == 200, found.text
                assert "wraparound: warning: not measured" in found.text

    asyncio.run(run())


def family(server: PgServer) -> list[int]:
    """The postmaster and its children."""
    found = [server.process.pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[1]) == server.process.pid:
                found.append(int(entry.name))
    return found


def test_every_check_answers_while_postgresql_is_stopped(pair: Pair, tmp_path: Path) -> None:
    async def asked(server: Serving, path: str) -> tuple[int, str, float]:
        begun = time.monotonic()
        answer = await server.get(path)
        return answer.status, answer.text, time.monotonic() - begun

    async def run() -> None:
        node = on_standby(pair)
        async with serving(node, tmp_path) as server:
            assert (await server.get("/flycheck/pg")).status == 200
            stopped = family(pair.standby)
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(1.1)  # the last answer is kept for a second
                paths = ("/flycheck/vm", "/flycheck/pg", "/flycheck/role", "/node", "/metrics", "/")
                found = dict(zip(paths, await asyncio.gather(*(asked(server, p) for p in paths)), strict=True))
                assert all(took < 5 for _, _, took in found.values()), found
                assert found["/flycheck/vm"][0] == 200
                status, text, _ = found["/flycheck/pg"]
                assert status == 500 and text.startswith("[✗] transactions: Timed out ("), text
                assert "[-] connections: Not processed" in text
                assert "pg_up 0" in found["/metrics"][1]
                node.local = replace(primary_instance(), run=standby_instance().run, in_recovery=None)
                assert (await server.get("/flycheck/role")).status == 500
                again = await asked(server, "/flycheck/pg")
                assert again[0] == 500 and again[2] < 5
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)

            async def well() -> bool:
                return (await server.get("/flycheck/pg")).status == 200

            node.local = standby_instance()
            await eventually(well)

    asyncio.run(run())


def test_a_server_that_is_down_is_one_plain_line(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(TestNode("host=/nonexistent port=1 user=postgres"), tmp_path) as server:
            found = await server.get("/flycheck/pg")
            assert found.status == 500 and found.text.startswith("failed to connect with local node: ")
            assert "\n" not in found.text
            text = await server.metrics()
            assert "\npg_up 0\n" in text and "\npg_exporter_last_scrape_error 1\n" in text
            assert 'flypg_term{cluster="test",node="n1"} 3' in text

    asyncio.run(run())


def test_many_ask_at_once_and_nothing_is_refused(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(on_primary(pair), tmp_path) as server:
            limit = asyncio.Semaphore(50)

            async def one(path: str) -> int:
                async with limit:
                    return (await server.get(path)).status

            paths = ["/flycheck/role", "/flycheck/pg", "/primary", "/node"] * 100
            assert set(await asyncio.gather(*(one(path) for path in paths))) == {200}
            assert server.node.opened == 1

    asyncio.run(run())
