"""The certificates of a running node: what the agent's parts are to them."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.certificates import Certificates, Node
from agent.renewal import own_names
from agent.wiring import Parts
from cluster.clock import Clock
from cluster.model import Snapshot
from cluster.trust import TrustStore
from healthchecks.certificate import CertificateStats

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
ADDRESSES_EVERY_S = 600.0
GLOBAL, TEMPORARY = "00", 0x01  # scope and flag in /proc/net/if_inet6


def certificates_of(
    parts: Parts, clock: Clock, snapshot: Callable[[], Snapshot | None], apply: Callable[[], Awaitable[None]]
) -> Certificates:
    """`apply`: have PostgreSQL and PgBouncer read what has changed."""
    listen = parts.haproxy.listen
    at = LOOPBACK.get(listen[0], listen[0])
    ports = [parts.member.ports.postgres, *([parts.pooler.port] if parts.pooler is not None else [])]
    node = Node(
        cluster=parts.cluster,
        member=lambda: parts.member,
        view=lambda: found.view if (found := snapshot()) is not None else None,
        names=_names(parts, listen, clock),
        secret=parts.instance.passwords.operator,
        look_at=tuple((at, port) for port in ports),
        apply=apply,
    )
    store = TrustStore(parts.etcd, parts.cluster)
    return Certificates(parts.tls, parts.tls_files, parts.instance.tls, store, node, clock)


def _names(parts: Parts, listen: tuple[str, ...], clock: Clock) -> Callable[[], tuple[str, ...]]:
    """This node's names; its interfaces are looked at now and then only."""
    kept: tuple[str, ...] = ()
    looked_at = float("-inf")

    def names() -> tuple[str, ...]:
        nonlocal kept, looked_at
        if clock.boottime() - looked_at > ADDRESSES_EVERY_S:
            looked_at = clock.boottime()
            kept = own_names(
                hostname=socket.gethostname(),
                host=parts.member.host,
                listen=listen,
                addresses=interface_addresses(),
                fly=os.environ,
                more=parts.tls.names,
            )
        return kept

    return names


def interface_addresses(proc: Path = Path("/proc/net")) -> tuple[str, ...]:
    """Of this machine: those that stay. Empty where the kernel does not tell."""
    found: dict[str, None] = {}
    address = ""
    for line in _lines(proc / "fib_trie"):
        words = line.split()
        if "--" in words[0:1] or words[0:1] == ["|--"]:
            address = words[-1]
        elif words[:3] == ["/32", "host", "LOCAL"] and address:
            found[address] = None
    for line in _lines(proc / "if_inet6"):
        words = line.split()
        if len(words) == 6 and words[3] == GLOBAL and not int(words[4], 16) & TEMPORARY:
            found[str(ipaddress.IPv6Address(bytes.fromhex(words[0])))] = None
    return tuple(found)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def stats_of(certificates: Certificates, clock: Clock) -> Callable[[], CertificateStats]:
    """How the certificate is, in seconds from now."""

    def stats() -> CertificateStats:
        found, now = certificates.report(), clock.wall()
        return CertificateStats(
            shown=found.shown,
            own=found.own,
            left_s=found.not_after - now if found.not_after is not None else None,
            authority_left_s=found.authority_not_after - now if found.authority_not_after is not None else None,
            problem=found.problem,
            wanted=found.wanted,
        )

    return stats
