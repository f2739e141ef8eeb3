"""How large the connection pools are and how nodes share them: plans, explicit numbers, modes per database. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cluster.model import Spec

DATABASE = re.compile(r"[A-Za-z0-9_.-]{1,63}\Z")  # with any other name PgBouncer refuses its whole configuration
CONSOLE = "pgbouncer"  # that, too


class PoolMode(StrEnum):
    """When a connection to PostgreSQL goes back to the pool."""

    SESSION = "session"  # when its client disconnects: everything works
    TRANSACTION = "transaction"  # at the end of each transaction: more clients, no state between transactions


@dataclass(frozen=True, slots=True)
class PoolSize:
    """For a whole cluster."""

    clients: int  # connections of clients, to each node's pooler
    connections: int  # to PostgreSQL, of all poolers together, the reserve included
    reserve: int  # of these kept for when clients have waited


PLANS: Mapping[str, PoolSize] = {
    "basic": PoolSize(200, 50, 10),
    "starter": PoolSize(200, 50, 10),
    "launch": PoolSize(500, 150, 30),
    "scale": PoolSize(1000, 300, 50),
    "performance": PoolSize(1000, 300, 50),
}


@dataclass(frozen=True, slots=True)
class Share:
    """What one node's pooler may use: `pool` per user and database, `reserve` beyond it, `most` per database in all."""

    clients: int
    pool: int
    reserve: int
    most: int


def pool_size(spec: Spec) -> PoolSize:
    """As the plan says, and over it what is set explicitly."""
    plan = PLANS[spec.pool_plan]
    connections = spec.pool_connections or plan.connections
    reserve = spec.pool_reserve if spec.pool_reserve >= 0 else plan.reserve
    return PoolSize(spec.pool_clients or plan.clients, connections, min(reserve, connections - 1))


def share(size: PoolSize, poolers: int) -> Share:
    """One of `poolers` nodes' share. Each takes all clients, since an application may know one address only; the
    connections to PostgreSQL are divided."""
    most = max(1, math.ceil(size.connections / max(1, poolers)))
    reserve = min(most - 1, math.ceil(size.reserve / max(1, poolers)))
    return Share(size.clients, most - reserve, reserve, most)


def modes(spec: Spec) -> dict[str, PoolMode]:
    """The databases whose mode differs from `spec.pool_mode`. Names that a flypg of before took are left out."""
    parts = (part.strip().partition("=") for part in spec.pool_modes.split(","))
    return {name: PoolMode(mode) for name, _, mode in parts if mode in tuple(PoolMode) and _may_have_a_mode(name)}


def _may_have_a_mode(database: str) -> bool:
    return DATABASE.match(database) is not None and database != CONSOLE


def parse_modes(text: str) -> dict[str, PoolMode]:
    """`shop=transaction,etl=session`. Raises ValueError, saying what is allowed."""
    found: dict[str, PoolMode] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        database, _, mode = part.partition("=")
        if mode not in tuple(PoolMode):
            raise ValueError("must be DATABASE=session or DATABASE=transaction, several with commas between")
        if not _may_have_a_mode(database):
            raise ValueError(
                f"{database!r} cannot have a mode of its own: PgBouncer takes letters, digits, _ . - in such a name,"
                f" and {CONSOLE} is its own console"
            )
        found[database] = PoolMode(mode)
    return found


def render_modes(found: Mapping[str, PoolMode]) -> str:
    return ",".join(f"{database}={found[database]}" for database in sorted(found))
