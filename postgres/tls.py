"""How connections are secured: the certificate this node shows, and whose certificates it can verify."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


def built_with_tls(binaries: Path) -> bool:
    """Can this PostgreSQL speak TLS? One that was built without OpenSSL does not start with `ssl = on`."""
    try:
        with (
            (binaries / "postgres").open("rb") as program,
            mmap.mmap(program.fileno(), 0, access=mmap.ACCESS_READ) as code,
        ):
            return code.find(b"libssl") >= 0 or code.find(b"OpenSSL ") >= 0  # linked to it, or with it inside
    except (OSError, ValueError):
        return True  # not for us to say


@dataclass(frozen=True, slots=True)
class Tls:
    """What a server shows. Both may be one file, which is then replaced in one piece."""

    certificate: Path
    key: Path
    fingerprint: str = ""  # of the certificate: what the files hold has changed when this has


@dataclass(slots=True)
class TlsState:
    """TLS of one node. One object for all that connect or listen; its agent changes it while they run."""

    shown: Tls | None = None  # None: clients are offered no TLS (yet)
    required: bool = False  # clients must use it
    bundle: Path | None = None  # the authorities we trust; None: there are none (yet)
    trusts: str = ""  # which they are: the bundle has changed when this has; "" is not known
    verified: frozenset[tuple[str, int]] = frozenset()  # host and port of servers that show what we can verify

    @property
    def mark(self) -> str:
        """What the files hold: another text when a server should read them again."""
        return f"{self.shown.fingerprint[:16] if self.shown is not None else '-'} {self.trusts[:16] or '-'}"

    def verifies(self, host: str, port: int) -> bool:
        """Is the server there known to show a certificate that we can verify?"""
        return self.bundle is not None and (host, port) in self.verified

    def parameters(self, host: str, port: int) -> Mapping[str, str]:
        """libpq's parameters for a connection to this server. Who verifies nothing yet still takes TLS where it is
        offered: a server of an older version, or one that has just been made, must be reached as well."""
        if self.verifies(host, port):
            return {"sslmode": "verify-ca", "sslrootcert": str(self.bundle)}
        return {"sslmode": "prefer"}
