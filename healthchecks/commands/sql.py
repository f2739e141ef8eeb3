"""Running statements for a command on the cluster's primary, with the right status for what PostgreSQL refuses."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cluster.errors import PostgresUnavailable
from healthchecks.commands.route import Call, CommandError
from postgres.admin_queries import allow_writes
from postgres.monitor import Connection, Session, SqlRefused

T = TypeVar("T")
TIMEOUT_S = 30.0
STATUS = {
    "42710": 409,  # duplicate object
    "42P04": 409,  # duplicate database
    "23505": 409,
    "2BP01": 409,  # dependent objects still exist
    "55006": 409,  # object in use
    "42704": 404,  # undefined object
    "3D000": 404,  # no such database
    "23503": 400,
    "23502": 400,
    "42602": 400,  # invalid name
    "42939": 400,  # reserved name
    "0LP01": 400,
    "22023": 400,
    "22021": 400,  # not in this encoding
    "40001": 503,  # somebody else changed the same, as with the next two: try again
    "40P01": 503,
    "XX000": 503,  # "tuple concurrently updated", in catalogs
    "57014": 503,  # statement timeout
    "55P03": 503,  # lock timeout
    "25006": 503,  # read-only: not the primary any more
}


async def on_primary(call: Call, work: Callable[[Connection], Coroutine[Any, Any, T]], database: str = "postgres") -> T:
    """The result of `work` on the primary. Raises CommandError."""
    session = Session(
        lambda: call.provider.connect_primary(database), "flypg commands", statement_timeout_s=25.0, lock_timeout_s=10.0
    )

    async def writing(connection: Connection) -> T:
        await allow_writes(connection)
        return await work(connection)

    try:
        return await session.run(writing, TIMEOUT_S)
    except SqlRefused as error:
        raise CommandError(STATUS.get(error.sqlstate, 500), str(error)) from error
    except PostgresUnavailable as error:
        raise CommandError(503, f"the primary cannot be reached: {error}") from error
    finally:
        await session.close()
