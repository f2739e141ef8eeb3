"""What of an old pg_hba.conf is an operator's and can be kept. Pure.

flypg writes its own lines for its own users and for the socket, so those of the old file are not needed. What is kept
keeps its order: the first line that matches decides. A client that comes through port 5432, 5434 or 6432 has the
address of a node, not its own: `trust` would let in whoever reaches a router, and is never kept.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from cluster.errors import InstanceError
from postgres.config import HBA_LINE, OPERATOR, REPLICATOR
from postgres.role_sql import POOLER

# Clusters that were made before SCRAM keep passwords that only this rule accepts; those of SCRAM it accepts as SCRAM.
EVERYBODY = ("host all all 0.0.0.0/0 md5", "host all all ::/0 md5")
FOR_POOLER = tuple(f"host all {POOLER} {net} scram-sha-256" for net in ("0.0.0.0/0", "::/0"))
TYPES = ("host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")
LOOPBACK = ("127.0.0.1/32", "127.0.0.0/8", "::1/128", "localhost", "samehost")
KEPT = ("scram-sha-256", "md5", "password", "reject", "ldap", "radius", "gss")
FIELD = re.compile(r'(?:"[^"]*"|[^\s"#])+')
WHY_NOT = {
    "trust": "would let in whoever reaches a router of ours, without a password",
    "ident": "asks the client's machine who it is, and clients come from the nodes",
    "peer": "is for the socket only",
    "cert": "needs the authority's certificate, which is a setting now",
}


@dataclass(frozen=True, slots=True)
class Access:
    """The lines for the spec, and what was left out that somebody may miss, each with its reason."""

    lines: tuple[str, ...]
    left_out: tuple[str, ...]


def access(text: str) -> Access:
    """Raises InstanceError for a line that keeps somebody out and cannot be kept: leaving it out would let them in."""
    kept: list[str] = []
    left_out: list[str] = []
    for number, fields in _lines(text):
        if fields[0] == "local" or _is_ours(fields):
            continue
        at = _method_at(fields)
        head = " ".join(fields[: at + 1])  # what follows may hold a secret
        why = _why_not(fields, at)
        if not why:
            kept.append(" ".join(fields))
        elif fields[at : at + 1] == ["reject"]:
            raise InstanceError(
                f"line {number} of the old pg_hba.conf ({head}) cannot be carried over: it {why}. Write it otherwise or"
                " remove it, then start again; nothing was changed"
            )
        else:
            left_out.append(f"{head}: {why}")
    lines = (*FOR_POOLER, *kept) if kept else EVERYBODY
    return Access(lines, tuple(left_out))


def _lines(text: str) -> list[tuple[int, list[str]]]:
    """The fields of each line that has any, with its number; a list of names may go on after a comma."""
    found = []
    began, whole = 1, ""
    for number, line in enumerate(text.splitlines(), 1):
        began = began if whole else number
        whole += line
        if whole.endswith("\\"):
            whole = whole[:-1] + " "
            continue
        fields: list[str] = []
        for field in FIELD.findall(_without_comment(whole)):
            if fields and fields[-1].endswith(","):
                fields[-1] += field
            else:
                fields.append(field)
        if fields:
            found.append((began, fields))
        whole = ""
    return found


def _without_comment(line: str) -> str:
    quoted = False
    for at, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character == "#" and not quoted:
            return line[:at]
    return line


def _is_ours(fields: list[str]) -> bool:
    """For the users that flypg has lines for, or for clients on the machine itself."""
    return fields[2:3] in ([OPERATOR], [REPLICATOR]) or (fields[0] in TYPES and "".join(fields[3:4]) in LOOPBACK)


def _method_at(fields: list[str]) -> int:
    return 5 if len(fields) > 5 and _network(fields[3], fields[4]) is not None else 4


def _network(address: str, mask: str = "") -> object | None:
    try:
        return ipaddress.ip_network(f"{address}/{mask}" if mask else address, strict=False)
    except ValueError:
        return None


def _why_not(fields: list[str], at: int) -> str:
    if fields[0] not in TYPES:
        return "is no line for clients"
    if len(fields) <= at:
        return "is not complete"
    method, options = fields[at], fields[at + 1 :]
    names = [option.partition("=")[0] for option in options]
    if method not in KEPT:
        return WHY_NOT.get(method, f"uses {method}, which needs files of the old machine")
    if any(part.startswith("@") for field in fields[1:3] for part in field.split(",")):
        return "names a file of the old machine"
    if any("secret" in name or "passwd" in name for name in names):
        return "holds a secret, and the spec is no place for one"
    if "map" in names or "clientcert" in names:
        return "needs pg_ident.conf or the authority's certificate of the old machine"
    if "/" in fields[3] and _network(fields[3]) is None:
        return "has an address that is none"
    if not HBA_LINE.match(" ".join(fields)):
        return "has a name with a space, or a form that flypg does not know"
    return ""
