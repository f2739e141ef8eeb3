"""What a certificate says of itself: when it holds and for which names. Read from its PEM text without a library, since
an agent looks at every start and a library for this takes ten megabytes. It verifies nothing. Pure."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")
INTEGER, OID, SEQUENCE, SET, UTC_TIME = 0x02, 0x06, 0x30, 0x31, 0x17
COMMON_NAME = bytes((0x55, 0x04, 0x03))
SUBJECT_ALT_NAME = bytes((0x55, 0x1D, 0x11))
DNS_NAME, IP_ADDRESS = 0x82, 0x87  # the tags of names that clients compare hosts with


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate. Times are seconds since 1970."""

    fingerprint: str  # SHA-256 of all of it
    subject: str  # its common name; "" when it has none
    issuer: str
    not_before: float
    not_after: float
    names: frozenset[str]  # host names and addresses it is for

    @property
    def lifetime_s(self) -> float:
        return self.not_after - self.not_before


def blocks(text: str) -> list[str]:
    """The certificates in a PEM text, one PEM text each."""
    return [found.group(0) + "\n" for found in PEM.finditer(text)]


def parse(text: str) -> Certificate:
    """The first certificate in a PEM text. Raises ValueError when there is none, or when it cannot be read."""
    found = PEM.search(text)
    if found is None:
        raise ValueError("there is no certificate in it")
    try:
        der = base64.b64decode(found.group(1), validate=False)
        outer = _children(der, SEQUENCE)
        fields = [field for field in _elements(outer[0][1]) if field[0] != 0xA0]  # without the version
        issuer, validity, subject = fields[2][1], list(_elements(fields[3][1])), fields[4][1]
        extensions = next((body for tag, body in fields[6:] if tag == 0xA3), b"")
        return Certificate(
            hashlib.sha256(der).hexdigest(),
            _common_name(subject),
            _common_name(issuer),
            _time(*validity[0]),
            _time(*validity[1]),
            frozenset(_names(extensions)),
        )
    except (IndexError, ValueError) as error:
        raise ValueError(f"its certificate cannot be read: {error}") from None


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and body of each DER element in `data`. Raises ValueError or IndexError when it is cut short."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            if not 0 < count <= 4:
                raise ValueError("a length that is no DER")
            length = int.from_bytes(data[at : at + count])
            at += count
        if at + length > len(data):
            raise ValueError("it is cut short")
        yield tag, data[at : at + length]
        at += length


def _children(data: bytes, tag: int) -> list[tuple[int, bytes]]:
    found, body = next(_elements(data), (0, b""))
    if found != tag:
        raise ValueError("it is not what it should be")
    return list(_elements(body))


def _common_name(name: bytes) -> str:
    for _, part in _elements(name):
        for _, pair in _elements(part):
            (_, kind), (_, value) = list(_elements(pair))[:2]
            if kind == COMMON_NAME:
                return value.decode(errors="replace")
    return ""


def _time(tag: int, body: bytes) -> float:
    text = body.decode("ascii")
    if tag == UTC_TIME:  # two digits for the year
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _names(extensions: bytes) -> Iterator[str]:
    if not extensions:
        return
    for _, extension in _children(extensions, SEQUENCE):
        parts = list(_elements(extension))
        if parts[0][1] != SUBJECT_ALT_NAME:
            continue
        for tag, name in _children(parts[-1][1], SEQUENCE):
            if tag == DNS_NAME:
                yield name.decode("ascii", errors="replace")
            elif tag == IP_ADDRESS:
                yield str(ipaddress.ip_address(name))
