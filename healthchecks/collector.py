"""Scrapes: PostgreSQL's families over one connection, everything else from memory, an answer within a second.

A scrape waits for a fresh round of statements, which concurrent scrapes share, but never past its deadline: what did
not answer in time keeps its last rows for a minute and says how old they are. A family that fails costs itself only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from cluster.errors import FlypgError, PostgresUnavailable
from healthchecks import pg_families, pg_settings
from healthchecks.config import HttpConfig
from healthchecks.exposition import Family, label_text
from healthchecks.pg_families import BY_QUERY, STARTED, STATIC, TABLES
from healthchecks.provider import Provider
from postgres.metrics_queries import (
    Rows,
    connectable_databases,
    read_rows,
    read_statements,
    read_static,
)
from postgres.monitor import Connection, Session, SqlRefused, refusable

ROUND_TIMEOUT_S = 2.5  # for a whole round of statements
ANSWER_WITHIN_S = 0.8  # a scrape waits no longer for a round
STATEMENT_TIMEOUT_S = 1.5
LOCK_TIMEOUT_S = 0.1
SLOW_EVERY_S = 30.0  # sizes walk every file of every database
TABLES_EVERY_S = 60.0
KEEP_S = 60.0  # rows older than this are not served any more
DATABASE_TIMEOUT_S = 2.0
QUICK = ("bgwriter", "checkpointer", "archiver", "replication", "lag", "database", "conflicts", "activity", "locks")


@dataclass(frozen=True, slots=True)
class Kept:
    """Families as they were last read, at `at` (monotonic seconds)."""

    families: tuple[Family, ...]
    rows: tuple[Rows, ...]
    at: float


def short_version(number: int) -> str:
    """`15.18.0` behind 150018, as the exporter prints it."""
    return f"{number // 10000}.{number % 10000}.0"


class Collector:
    """The rows behind PostgreSQL's metrics, refreshed when somebody scrapes."""

    def __init__(self, config: HttpConfig, provider: Provider) -> None:
        self._config = config
        self._provider = provider
        member = provider.member()
        self._server = config.server_label or f"{member.host}:{member.ports.postgres}"
        self._session = Session(
            lambda: provider.connect("postgres"),
            "flypg metrics",
            statement_timeout_s=STATEMENT_TIMEOUT_S,
            lock_timeout_s=LOCK_TIMEOUT_S,
        )
        self._round: asyncio.Task[None] | None = None
        self._tables: asyncio.Task[None] | None = None
        self._kept: dict[str, Kept] = {}
        self._tables_at = float("-inf")
        self._settings_of = 0.0  # when the settings were loaded that we know
        self.errors: Counter[str] = Counter()
        self.scrapes_total = 0
        self.up = False
        self.last_round_s = 0.0
        self.last_round_failed = False

    async def refresh(self) -> None:
        """Read anew, or wait for whoever is at it; return within `ANSWER_WITHIN_S` in any case."""
        self.scrapes_total += 1
        if self._round is None:
            self._round = asyncio.create_task(self._read(), name="metrics")
        current = self._round
        await asyncio.wait({current}, timeout=ANSWER_WITHIN_S)
        if current.done():
            current.result()  # a bug of ours must not pass for a server that is silent
        due = time.monotonic() >= self._tables_at + TABLES_EVERY_S
        if self._config.table_metrics and self.up and due and self._tables is None:
            self._tables = asyncio.create_task(self._read_tables(), name="metrics of tables")

    def families(self) -> list[Family]:
        """What was read and is not too old, in the order of the documentation."""
        oldest = time.monotonic() - KEEP_S
        found: list[Family] = []
        for name, kept in self._kept.items():
            if kept.at >= oldest or name in ("settings", "tables"):
                found += kept.families
        return found

    def ages(self) -> dict[str, float]:
        now = time.monotonic()
        return {name: now - kept.at for name, kept in self._kept.items()}

    def rows(self, name: str) -> Rows | None:
        kept = self._kept.get(name)
        return kept.rows[0] if kept is not None and kept.rows and kept.at >= time.monotonic() - KEEP_S else None

    async def close(self) -> None:
        for task in (self._round, self._tables):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await self._session.close()

    async def _read(self) -> None:
        begun = time.monotonic()
        errors = self.errors.total()
        try:
            await self._session.run(self._everything, ROUND_TIMEOUT_S)
            self.up = True
        except SqlRefused:
            self.errors["static"] += 1  # it answered, but not the first questions
            self.up = True
        except PostgresUnavailable:
            self.errors["connection"] += 1
            self.up = False
            self._kept.pop("static", None)
        finally:
            self._round = None
        self.last_round_s = time.monotonic() - begun
        self.last_round_failed = self.errors.total() > errors

    async def _everything(self, connection: Connection) -> None:
        text, number, started, loaded = await read_static(connection)
        server = label_text(("server",), (self._server,))
        static = label_text(STATIC.labels, (self._server, short_version(number), text))
        self._keep("static", [Family(STATIC, {static: 1}), Family(STARTED, {server: started})])
        limit = self._config.max_databases
        for name in (*QUICK, "slots"):
            await self._one(name, read_rows(connection, name, number, limit))
        if self._config.settings_metrics and loaded != self._settings_of:
            await self._settings(connection, number, limit)
            self._settings_of = loaded
        if self._age("sizes") >= SLOW_EVERY_S:
            await self._one("sizes", read_rows(connection, "sizes", number, limit))
        if self._config.statement_metrics:
            await self._one("statements", read_statements(connection, limit))

    async def _settings(self, connection: Connection, number: int, limit: int) -> None:
        rows = await read_rows(connection, "settings", number, limit)
        if rows is not None:
            self._keep("settings", pg_settings.families(rows, self._server))

    async def _one(self, name: str, read: Coroutine[Any, Any, Rows | None]) -> None:
        """Read one family. A refusal (a lock, a timeout) is counted, and the family keeps its last rows."""
        try:
            rows = await refusable(read)
        except SqlRefused:
            self.errors[name] += 1
            return
        if rows is not None:
            self._keep(name, pg_families.families(BY_QUERY[name], rows, self._server), rows)

    def _keep(self, name: str, families: list[Family], rows: Rows | None = None) -> None:
        self._kept[name] = Kept(tuple(families), (rows,) if rows is not None else (), time.monotonic())

    def _age(self, name: str) -> float:
        kept = self._kept.get(name)
        return time.monotonic() - kept.at if kept is not None else float("inf")

    async def _read_tables(self) -> None:
        """Every database in turn, over one connection at a time. One that cannot be reached costs its own series."""
        self._tables_at = time.monotonic()
        merged: dict[str, Family] = {}
        try:
            names = await self._session.run(
                lambda connection: connectable_databases(connection, self._config.max_databases), ROUND_TIMEOUT_S
            )
            left = self._config.max_tables
            for name in names:
                rows = await self._tables_of(name, left)
                left -= len(rows.rows) if rows is not None else 0
                for family in pg_families.families(TABLES, rows, self._server) if rows is not None else ():
                    merged.setdefault(family.definition.name, Family(family.definition)).samples.update(family.samples)
                if left <= 0:
                    break
            self._keep("tables", list(merged.values()))
        except (PostgresUnavailable, SqlRefused):
            self.errors["tables"] += 1
        finally:
            self._tables = None

    async def _tables_of(self, database: str, limit: int) -> Rows | None:
        session = Session(
            lambda: self._provider.connect(database),
            "flypg metrics",
            statement_timeout_s=STATEMENT_TIMEOUT_S,
            lock_timeout_s=LOCK_TIMEOUT_S,
        )
        try:
            return await session.run(lambda c: read_rows(c, "tables", 0, limit), DATABASE_TIMEOUT_S)
        except FlypgError:
            self.errors["tables"] += 1
            return None
        finally:
            with contextlib.suppress(PostgresUnavailable):
                await session.close()
