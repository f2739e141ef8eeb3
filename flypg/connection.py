"""Connection strings, and what to tell the client library that uses them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from cluster.model import Member


class Way(StrEnum):
    """Through which port."""

    POOLED = "pooled"  # PgBouncer, to the primary
    DIRECT = "direct"  # HAProxy, to the primary
    READ = "read"  # HAProxy, to a standby


ADVICE = {
    Way.POOLED: (
        "Keep a client's own pool small, connections for 600 s at most and idle for 300 s at most.",
        "In transaction mode no session state survives a transaction: no SET, LISTEN, advisory locks; prepared"
        " statements need PgBouncer 1.21, else turn them off (psycopg: prepare_threshold=None; Prisma: ?pgbouncer=true;"
        " Ecto: prepare: :unnamed; asyncpg: statement_cache_size=0; node-postgres: no named queries).",
        "Migrations, LISTEN and advisory locks belong on the direct connection.",
    ),
    Way.DIRECT: (
        "Always leads to the primary. Recycle connections after 600 s, drop those idle for 300 s.",
        "A change of primary ends the connection once: reconnect and try the transaction again.",
    ),
    Way.READ: (
        "Leads to standbys, to the primary only when there is none. What was just written may be missing here.",
    ),
}


VERIFYING = ("verify-ca", "verify-full")
TLS_MODES = ("disable", "prefer", "require", *VERIFYING)
VERIFY = "The servers are verified with the certificate that `flypg tls ca` prints; sslrootcert names the file."
KEYS = (
    "As secret as the password: the keys let a client in until the password is changed. libpq 18 and newer takes them"
    " (psycopg[binary] brings it), an older one refuses the string."
)


@dataclass(frozen=True, slots=True)
class Place:
    host: str
    port: int

    def url(self, user: str, password: str | None, database: str, options: Mapping[str, str] | None = None) -> str:
        """`password` None: left out, for the client's own passfile. `options`: libpq's, at the end."""
        who = quote(user, safe="") + (f":{quote(password, safe='')}" if password is not None else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        more = "&".join(f"{name}={quote(value, safe='/')}" for name, value in (options or {}).items() if value)
        return f"postgresql://{who}@{host}:{self.port}/{quote(database, safe='')}{'?' + more if more else ''}"


def place(member: Member, way: Way, host: str = "") -> Place:
    """Where clients of `member` go. `host`: a name for all nodes, e.g. app.internal, instead of this one's."""
    port = {Way.POOLED: member.ports.pooler, Way.DIRECT: member.ports.proxy, Way.READ: member.ports.read}[way]
    return Place(host or member.host, port)
