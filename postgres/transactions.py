"""Transactions of clients that are open for a while, as an operator wants to see them before a change of primary."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import class_row

from postgres.config import OPERATOR
from postgres.connection import Connection

OPEN = """
SELECT pid, coalesce(usename, '') AS "user", coalesce(datname, '') AS database, application_name AS application,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_s, coalesce(state, '') AS state,
       left(regexp_replace(query, '\\s+', ' ', 'g'), 60) AS query
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND usename IS DISTINCT FROM %(ours)s
  AND xact_start < clock_timestamp() - %(older_s)s * interval '1 second'
ORDER BY xact_start, pid
"""


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """One transaction of a client."""

    pid: int
    user: str
    database: str
    application: str
    age_s: float
    state: str  # active, idle in transaction, …
    query: str  # the first 60 characters of its last statement, on one line


async def open_transactions(connection: Connection, older_s: float) -> list[OpenTransaction]:
    """Those open for longer than `older_s`, the oldest first; flypg's own are left out."""
    async with connection.cursor(row_factory=class_row(OpenTransaction)) as cursor:
        await cursor.execute(OPEN, {"ours": OPERATOR, "older_s": older_s})
        return await cursor.fetchall()
