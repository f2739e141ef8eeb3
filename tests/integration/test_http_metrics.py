"""Scrapes of a real primary and standby of every version, and beside Debian's postgres_exporter, series by series."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.http_node import N2, TestNode, eventually, standby_instance
from tests.support.pairs import Pair, running_pair, streams, until
from tests.support.pgserver import BIN, PgServer
from tests.support.ports import free_ports
from tests.support.serving import Serving, serving
from tests.support.versions import VERSIONS, binaries, missing

pytestmark = pytest.mark.timeout(300)
EXPORTER = shutil.which("prometheus-postgres-exporter")
LISTED = Path(__file__).parents[1] / "data" / "postgres_exporter_0.8.0.tsv"
ONLY_WITH_STANDBYS = {f"pg_stat_replication_{n}" for n in ("pg_current_wal_lsn_bytes", "pg_wal_lsn_diff", "reply_time")}
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


def parsed(text: str) -> Series:
    """By hand: prometheus-client's parser would add `_total` to the old names of counters."""
    found: Series = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        key = (match["name"], tuple(sorted(LABEL.findall(match["labels"] or ""))))
        assert key not in found, f"{key} twice: Prometheus would refuse the scrape"
        found[key] = float(match["value"])
    return found


def names_in(text: str) -> set[str]:
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}


def promised() -> set[str]:
    lines = [line for line in LISTED.read_text().splitlines() if not line.startswith("#")]
    return {line.split("\t")[0] for line in lines}


def value(text: str, name: str, **labels: str) -> float:
    found = [v for (n, given), v in parsed(text).items() if n == name and labels.items() <= dict(given).items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def standby_node(pair: Pair) -> TestNode:
    node = TestNode(pair.standby.conninfo, pair.primary.conninfo)
    node.me, node.local = N2, standby_instance()
    return node


async def complete(server: Serving, expected: set[str]) -> str:
    """A scrape with everything that is expected: on a busy machine the first one may not wait for all of it."""
    text = ""

    async def has_all() -> bool:
        nonlocal text
        text = await server.metrics()
        done = "\npg_up 1\n" in text and "\npg_exporter_last_scrape_error 0\n" in text
        return done and expected <= names_in(text)

    try:
        await eventually(has_all)
    finally:
        print("missing:", sorted(expected - names_in(text)))  # shown when the test fails
    return text


def since(names: set[str], version: int) -> set[str]:
    """Columns that PostgreSQL 13 does not have."""
    new = {n for n in names if n.endswith(("session_time", "active_time", "idle_in_transaction_time"))}
    new |= {n for n in names if n.startswith("pg_stat_database_sessions")}
    return names - new if version < 14 else names


needs_15 = pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as found:
        found.primary.sql("CREATE DATABASE app")
        found.primary.sql('CREATE DATABASE "odd "" \\ name"')
        yield found


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != 15])
def test_every_promised_metric_on_other_versions(version: int, tmp_path: Path) -> None:
    if why := missing(version):
        pytest.skip(why)
    with binaries(version) as directory, running_pair(directory) as pair:
        check_every_promised_metric(pair, version, tmp_path)


@needs_15
def test_every_promised_metric(pair: Pair, tmp_path: Path) -> None:
    check_every_promised_metric(pair, 15, tmp_path)


def check_every_promised_metric(pair: Pair, version: int, tmp_path: Path) -> None:
    async def run() -> None:
        node = TestNode(pair.primary.conninfo)
        async with serving(node, tmp_path) as primary, serving(standby_node(pair), tmp_path) as standby:
            pair.standby.sql("CHECKPOINT")
            expected = since(promised(), version)
            here, there = await complete(primary, expected), await complete(standby, expected - ONLY_WITH_STANDBYS)
            assert not ONLY_WITH_STANDBYS & names_in(there)
            for text in (here, there):
                parsed(text)
                assert value(text, "pg_settings_server_version_num") // 10000 == version
                assert value(text, "pg_stat_bgwriter_buffers_alloc") >= 0
            assert value(here, "pg_stat_replication_pg_wal_lsn_diff", application_name="n2_t3") >= 0
            assert ("pg_stat_checkpointer_num_timed_total" in names_in(here)) is (version >= 17)
            assert ("pg_stat_database_parallel_workers_launched" in names_in(here)) is (version >= 18)
            assert value(here, "pg_replication_lag") == 0

            async def caught_up() -> bool:
                return value(await standby.metrics(), "pg_replication_lag") == 0

            await eventually(caught_up)
            before = value(here, "pg_stat_bgwriter_checkpoints_req")
            pair.primary.sql("CHECKPOINT")

            async def counted() -> bool:
                return value(await primary.metrics(), "pg_stat_bgwriter_checkpoints_req") > before

            await eventually(counted)

    asyncio.run(run())


@contextmanager
def exporter(server: PgServer) -> Iterator[int]:
    """Debian's exporter, discovering databases as Fly's does; its port."""
    assert EXPORTER is not None
    port = free_ports(1)[0]
    source = f"postgresql://postgres@127.0.0.1:{server.port}/postgres?sslmode=disable"
    env = {"DATA_SOURCE_NAME": source, "PG_EXPORTER_AUTO_DISCOVER_DATABASES": "true", "PATH": os.defpath}
    process = subprocess.Popen([EXPORTER, f"--web.listen-address=127.0.0.1:{port}"], env=env, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            return b"pg_up 1" in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        until(answers, "the exporter does not answer")
        yield port
    finally:
        process.terminate()
        process.wait(10)


# Theirs alone: their process, their collectors, and one they cannot know.
THEIRS = ("go_", "process_", "promhttp_", "pg_scrape_collector_", "postgres_exporter_build_info", "pg_exporter_")
STEADY = ["confl_", "deadlocks", "tup_inserted", "tup_updated", "tup_deleted", "xact_rollback", "temp_", "stats_reset"]
STEADY += ["archived_count", "failed_count", "checksum_failures", "pg_static", "checkpoints_", "maxwritten", "fsync"]
PER_SESSION = ("timeout", "extra_float_digits", "tcp_", "application_name")  # what a connection sets for itself


def without_slot(series: Series) -> Series:
    """The exporter puts a process id where the slot's name belongs."""
    return {(n, tuple((k, v) for k, v in ls if k != "slot_name")): value for (n, ls), value in series.items()}


@needs_15
@pytest.mark.skipif(EXPORTER is None, reason="Debian's prometheus-postgres-exporter is not installed")
def test_the_same_series_as_the_exporter(pair: Pair, tmp_path: Path) -> None:
    async def run(port: int) -> None:
        node = TestNode(pair.primary.conninfo)
        async with serving(node, tmp_path, server_label=f"127.0.0.1:{pair.primary.port}", table_metrics=True) as server:
            url = f"http://127.0.0.1:{port}/metrics"
            theirs = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=20).read().decode())
            ours = await complete(server, promised())
            mine, other = without_slot(parsed(ours)), without_slot(parsed(theirs))
            lacking = [key for key in other if key not in mine and not key[0].startswith(THEIRS)]
            assert lacking == []
            for key, expected in other.items():
                name = key[0]
                if name.startswith("pg_settings_") and not any(word in name for word in PER_SESSION):
                    assert mine[key] == pytest.approx(expected), key
                elif name.startswith("pg_stat") and any(word in name for word in STEADY) and expected == expected:
                    assert mine[key] == pytest.approx(expected, abs=1), key
            assert {n for n in names_in(ours) if n.startswith("flypg_")}

    with exporter(pair.primary) as port:
        asyncio.run(run(port))


@needs_15
def test_types_and_help_are_as_documented(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(TestNode(pair.primary.conninfo), tmp_path) as server:
            text = await complete(server, promised())
        kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
        helps = {line.split()[2]: line.split(" ", 3)[3] for line in text.splitlines() if line.startswith("# HELP")}
        for line in LISTED.read_text().splitlines():
            if not line.startswith("#"):
                name, kind, labels, words = line.split("\t")
                assert (kinds[name], helps[name]) == (kind, words)
                sample = next(s for s in text.splitlines() if s.startswith((f"{name}{{", f"{name} ")))
                assert not labels or all(f'{label}="' in sample for label in labels.split(",")), sample
        assert 'datname="odd \\" \\\\ name"' in text

    asyncio.run(run())


@needs_15
def test_a_lock_on_a_catalog_costs_its_families_and_not_the_scrape(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(TestNode(pair.primary.conninfo), tmp_path) as server:
            await complete(server, promised())
            with pair.primary.connect() as holder, holder.transaction():
                holder.execute("LOCK pg_database IN ACCESS EXCLUSIVE MODE")

                async def counted() -> bool:
                    begun = time.monotonic()
                    text = await server.metrics()
                    assert time.monotonic() - begun < 5, "the exporter waits as long as the lock is held"
                    assert "\npg_up 1\n" in text
                    assert value(text, "pg_stat_archiver_failed_count") == 0
                    return 'flypg_metrics_errors_total{cluster="test",family="locks",node="n1"}' in text

                await eventually(counted)
            await complete(server, promised())

    asyncio.run(run())


@needs_15
def test_a_database_that_cannot_be_reached_costs_its_own_series(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        pair.primary.sql("CREATE DATABASE closed")
        for database in ("app", "closed"):
            with pair.primary.connect(database) as session:
                session.execute("CREATE TABLE here (id int)")
        rules = pair.primary.data / "pg_hba.conf"
        before = rules.read_text()
        rules.write_text("local closed all reject\n" + before)
        pair.primary.sql("SELECT pg_reload_conf()")
        try:
            async with serving(TestNode(pair.primary.conninfo), tmp_path, table_metrics=True) as server:

                async def has_tables() -> str:
                    text = await server.metrics()
                    return text if "pg_stat_user_tables_n_live_tup" in text else ""

                text = str(await eventually(has_tables))
                assert 'pg_stat_user_tables_n_live_tup{datname="app"' in text
                assert 'pg_stat_user_tables_n_live_tup{datname="closed"' not in text
                assert value(text, "flypg_metrics_errors_total", family="tables") == 1
                assert value(text, "pg_database_size_bytes", datname="closed") > 0
                used = pair.primary.sql(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flypg metrics'"
                )
                assert used == [(1,)], "one connection, whatever the number of databases"
        finally:
            rules.write_text(before)
            pair.primary.sql("SELECT pg_reload_conf()")

    asyncio.run(run())


@needs_15
def test_lag_is_zero_when_idle_and_grows_when_the_primary_is_gone(pair: Pair, tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(standby_node(pair), tmp_path) as server:

            async def lag() -> float:
                return value(await server.metrics(), "pg_replication_lag")

            async def caught_up() -> bool:
                return await lag() == 0

            pair.primary.sql("CREATE TABLE t AS SELECT 1")
            await eventually(caught_up)
            await asyncio.sleep(1.0)
            await eventually(caught_up)  # Fly's query counts the time since the last commit here
            pair.primary.stop()

            async def grows() -> bool:
                return await lag() > 1

            await eventually(grows)
            first = await lag()
            await asyncio.sleep(0.2)
            assert await lag() > first

    try:
        asyncio.run(run())
    finally:
        pair.primary.stop()
        pair.primary.start()
        until(lambda: streams(pair), "the standby does not stream again")


@needs_15
def test_statements_are_summed_where_the_extension_is(tmp_path: Path) -> None:
    if not (BIN.parent / "lib" / "pg_stat_statements.so").exists():
        pytest.skip("pg_stat_statements is not installed")

    async def run() -> None:
        async with serving(TestNode(server.conninfo), tmp_path, statement_metrics=True) as serves:
            assert "pg_stat_statements_calls" not in await complete(serves, set()), "the extension is not created yet"
            server.sql("CREATE SCHEMA odd; CREATE EXTENSION pg_stat_statements SCHEMA odd")
            server.sql("SELECT 1")
            text = await complete(serves, {"pg_stat_statements_calls"})
            assert value(text, "pg_stat_statements_calls", datname="postgres", usename="postgres") >= 1

    server = PgServer()
    try:
        server.initdb(shared_preload_libraries="pg_stat_statements")
        server.start()
        asyncio.run(run())
    finally:
        server.remove()
