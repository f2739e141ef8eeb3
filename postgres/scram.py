"""SCRAM-SHA-256 as PostgreSQL keeps it: verifiers, and the keys that a client may keep instead of a password. Pure.

Sources: RFC 5802 and 7677; PostgreSQL's `pg_authid.rolpassword`; libpq 18's `scram_client_key`, `scram_server_key`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import unicodedata
from dataclasses import dataclass, field

METHOD = "SCRAM-SHA-256"
SHORTEST_SALT, MOST_ROUNDS = 1, 10_000_000


@dataclass(frozen=True, slots=True)
class Keys:
    """What a client needs to log in, 32 bytes each: as good as the password, until that is changed."""

    client: bytes = field(repr=False)
    server: bytes = field(repr=False)

    def options(self) -> dict[str, str]:
        """As libpq 18 and newer takes them in a connection string."""
        return {
            "scram_client_key": base64.b64encode(self.client).decode(),
            "scram_server_key": base64.b64encode(self.server).decode(),
        }


def keys(verifier: str, password: str) -> Keys | None:
    """The keys of `password` under the salt and rounds of `verifier` (SCRAM-SHA-256$rounds:salt$stored:server).

    None when it is no such verifier, or that of another password. Takes some milliseconds of CPU.
    """
    try:
        method, rounds_salt, stored_server = verifier.split("$")
        rounds_text, salt_text = rounds_salt.split(":")
        stored_text, server_text = stored_server.split(":")
        rounds, salt = int(rounds_text), base64.b64decode(salt_text, validate=True)
        stored, server = (base64.b64decode(text, validate=True) for text in (stored_text, server_text))
    except ValueError:
        return None
    if method != METHOD or len(salt) < SHORTEST_SALT or not 0 < rounds <= MOST_ROUNDS:
        return None
    text = unicodedata.normalize("NFKC", password)  # SASLprep, as far as passwords that people choose need it
    salted = hashlib.pbkdf2_hmac("sha256", text.encode(), salt, rounds)
    made = Keys(hmac.digest(salted, b"Client Key", "sha256"), hmac.digest(salted, b"Server Key", "sha256"))
    same = hmac.compare_digest(hashlib.sha256(made.client).digest(), stored)
    return made if same and hmac.compare_digest(made.server, server) else None
