"""When a node needs a new certificate, for which names, and whose certificates can be verified. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.model import NodeId, View
from cluster.trust import Shown, Trust
from cluster.x509 import Certificate, blocks

LIFETIME_DAYS = 365
AUTHORITY_DAYS = 3650
RENEW_LEFT = 1 / 3  # of its life is left
DAY_S = 86400.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,250}[A-Za-z0-9_])?\Z")
MOST_NAMES = 200
EVERYWHERE = ("*", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Held:
    """The certificate that this node has, signed by the cluster's authority."""

    certificate: Certificate
    authority: str  # fingerprint of who signed it
    round: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the certificate should be."""

    authority: str
    authority_ends: float  # seconds since 1970; nothing it signs outlives it
    round: int
    names: frozenset[str]


def why_new(held: Held | None, wanted: Wanted, now: float) -> str:
    """Why this node needs a new certificate; "" when it needs none. `now`: seconds since 1970."""
    if held is None:
        return "there is none"
    if held.authority != wanted.authority:
        return "it is signed by another authority"
    if held.round < wanted.round:
        return "an operator has asked for new ones"
    certificate = held.certificate
    if now < certificate.not_before:
        return "it does not hold yet: a clock was wrong"
    left_s = certificate.not_after - now
    if left_s <= certificate.lifetime_s * RENEW_LEFT and certificate.not_after < wanted.authority_ends:
        return f"it ends in {left_s / DAY_S:.0f} days" if left_s > 0 else "it has ended"
    if missing := sorted(wanted.names - certificate.names):
        return f"it does not name {', '.join(missing)}"
    return ""


def usable(names: Iterable[str]) -> tuple[str, ...]:
    """Those that can be in a certificate, each once: host names, and addresses that others can reach."""
    found: dict[str, None] = {}
    for name in names:
        plain = name.strip().strip("[]").partition("%")[0]
        try:
            address = ipaddress.ip_address(plain)
        except ValueError:
            if HOST_NAME.match(plain):
                found[plain.lower()] = None
            continue
        if not (address.is_unspecified or address.is_link_local or address.is_multicast):
            found[str(address)] = None
    return tuple(found)[:MOST_NAMES]


def own_names(
    *, hostname: str, host: str, listen: Iterable[str], addresses: Iterable[str], fly: Mapping[str, str], more: str
) -> tuple[str, ...]:
    """Under what clients may reach this node. `addresses`: of its interfaces, for a node that listens on all of them;
    `fly`: the environment; `more`: an operator's, comma-separated."""
    listen = tuple(listen)
    found = [*LOOPBACK, host, hostname, *(at for at in listen if at not in EVERYWHERE)]
    if any(at in EVERYWHERE for at in listen):
        found += sorted(addresses)
    if app := fly.get("FLY_APP_NAME", ""):
        found += [f"{app}.internal", f"*.{app}.internal", f"{app}.flycast", f"{app}.fly.dev"]
        if machine := fly.get("FLY_MACHINE_ID", ""):
            found.append(f"{machine}.vm.{app}.internal")
        found.append(fly.get("FLY_PRIVATE_IP", ""))
    return usable([*found, *more.split(",")])


def all_names(own: Iterable[str], view: View | None, nodes: Mapping[NodeId, Shown]) -> frozenset[str]:
    """A router passes TLS through, so the client of one node sees the certificate of another: each names them all."""
    found = [*own]
    for member in view.members if view is not None else ():
        found.append(member.host)
        if (shown := nodes.get(member.node)) is not None:
            found += shown.names
    return frozenset(usable(found))


def verifiable(trust: Trust, view: View | None, now: float) -> frozenset[tuple[str, int]]:
    """Host and port of the servers whose certificate can be verified now. One that has ended is not: replication that
    is encrypted only is better than none."""
    known = {authority.fingerprint for authority in trust.authorities.trusted}
    found = set()
    for member in view.members if view is not None else ():
        shown = trust.nodes.get(member.node)
        if shown is None or not shown.fingerprint or shown.not_after <= now:
            continue
        if shown.ca if shown.own else shown.authority in known:
            found.add((member.host, member.ports.postgres))
    return frozenset(found)


def bundle_of(trust: Trust, view: View | None, own: str) -> str:
    """PEM of every authority to trust: the cluster's, and those of operators' certificates. `own`: this node's."""
    text = trust.authorities.bundle + own
    for member in view.members if view is not None else ():
        shown = trust.nodes.get(member.node)
        if shown is not None and shown.own:
            text += shown.ca
    return "".join(dict.fromkeys(blocks(text)))
