"""Where etcd is and how to reach it, as an operator writes it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit
from zlib import crc32

DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One member of etcd, for clients."""

    host: str  # a name, or an address (IPv6 without brackets)
    port: int
    tls: bool

    @property
    def target(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.target}"


def parse_endpoint(text: str) -> Endpoint:
    """The endpoint behind `http://etcd1:2379`, `https://…`, `etcd1:2379`, `[fdaa::3]:2379`, `etcd1` or `fdaa::3`.

    Raises ValueError, saying what is wrong with `text`.
    """
    text = text.strip()
    scheme, sep, rest = text.partition("://")
    if not sep:
        scheme, rest = "http", text
    if scheme not in ("http", "https"):
        raise ValueError(f"{text!r}: must begin with http:// or https://")
    rest = rest.rstrip("/")
    if rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"  # a bare IPv6 address
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if not host or parts.path or parts.query or parts.username is not None:
        raise ValueError(f"{text!r}: expected host:port")
    return Endpoint(host, DEFAULT_PORT if port is None else port, scheme == "https")


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """Everything a client of etcd must know. The password never appears in a repr."""

    endpoints: tuple[Endpoint, ...]
    ca_file: str = ""  # "": the system's authorities
    cert_file: str = ""  # "": no client certificate
    key_file: str = ""
    user: str = ""  # "": no authentication
    password: str = field(default="", repr=False)
    attempt_s: float = 1.0  # one attempt at one endpoint
    total_s: float = 3.0  # all attempts of one call

    def __post_init__(self) -> None:
        assert self.endpoints, "etcd needs at least one endpoint"


def nearest(options: EtcdOptions, host: str, name: str) -> int:
    """The endpoint for the client `name` on `host` to begin with: that of its own machine, else spread by name.

    So the loss of a machine is the loss of an etcd endpoint for few others.
    """
    own = [number for number, endpoint in enumerate(options.endpoints) if endpoint.host == host]
    return own[0] if len(own) == 1 else crc32(name.encode()) % len(options.endpoints)
