"""What PostgreSQL and PgBouncer let a role or a database be called, and what is kept for neither. Pure."""

from __future__ import annotations

import unicodedata

from cluster.errors import InstanceError

MOST_BYTES = 63  # PostgreSQL cuts off what is longer (NAMEDATALEN)


def check(name: str) -> None:
    """Raises InstanceError when nothing may be called that."""
    if not name or len(name.encode()) > MOST_BYTES or "\0" in name or name.startswith("pg_"):
        raise InstanceError(f"{name!r} cannot be a name: it must have 1 to {MOST_BYTES} bytes and not begin with pg_")


def check_new(name: str) -> None:
    """Raises InstanceError when nothing new may be called that; what is there may."""
    check(name)
    if not name.strip() or any(unicodedata.category(character) == "Cc" for character in name):
        raise InstanceError(f"{name!r} cannot be a name: it must not be blank or have control characters")
