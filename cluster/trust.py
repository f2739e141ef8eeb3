"""Whom the nodes of a cluster trust, and which certificate each shows: kept in etcd, beside the agreed state.

    /flypg/<cluster>/certificates/authorities     who signs, who is trusted, what an operator has asked for
    /flypg/<cluster>/certificates/nodes/<node>    what a node says of its certificate; written on change only

They sort before the nodes, so that the range that everybody watches does not contain them. An authority's key is sealed
with a password that all nodes share and etcd does not know: whoever reads etcd, or a copy of it, can sign nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.errors import StoreConflict, StoredFormatError
from cluster.etcd import Etcd
from cluster.etcd_values import Get, Modified, Put
from cluster.keys import Keys
from cluster.model import NodeId

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs the nodes' certificates. Texts are PEM."""

    certificate: str
    fingerprint: str
    cross: str = ""  # the same authority, signed by the one before: who trusts only that one can verify as well
    key: str = field(default="", repr=False)  # sealed; "": it signs no more


@dataclass(frozen=True, slots=True)
class Authorities:
    """The agreed part. The first authority signs; all are trusted."""

    trusted: tuple[Authority, ...] = ()
    number: int = 0  # how many authorities there have been
    round: int = 0  # certificates of an older round are replaced
    wanted: int = 1  # an operator wants the authority of this number
    modified: int = 0  # revision of etcd; 0: there is nothing yet

    @property
    def signer(self) -> Authority | None:
        return self.trusted[0] if self.trusted else None

    @property
    def bundle(self) -> str:
        return "".join(authority.certificate for authority in self.trusted)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a node says of the certificate it shows."""

    node: NodeId
    own: bool = False  # an operator's; else signed by the cluster's authority
    fingerprint: str = ""  # "": it shows none
    authority: str = ""  # fingerprint of the cluster's authority that signed it
    round: int = 0
    not_after: float = 0.0  # seconds since 1970
    names: tuple[str, ...] = ()  # under which this node is reached: every certificate has those of all nodes
    ca: str = ""  # PEM: the authorities of an operator's certificate, to be trusted by all; "" is given for none
    required: bool = False  # its clients must use TLS
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
    """All of it, as read at one revision."""

    authorities: Authorities
    nodes: Mapping[NodeId, Shown]


class TrustStore:
    """Reads and writes it. Calls raise StoreUnavailable, StoreConflict or OutcomeUnknown."""

    def __init__(self, etcd: Etcd, cluster: str) -> None:
        self._etcd = etcd
        prefix = f"{Keys(cluster).prefix}certificates"
        self._start, self._end = f"{prefix}/", f"{prefix}0"
        self._authorities = f"{prefix}/authorities"
        self._nodes = f"{prefix}/nodes/"
        self._kept: tuple[int, Trust] | None = None  # what was last read, and at which revision

    async def follow(self) -> Trust:
        """What was last read, as long as nothing at all was written to etcd as far as its answers tell; else `read`.
        For those whose process asks etcd other things all the time."""
        if self._kept is not None and self._kept[0] == self._etcd.revision:
            return self._kept[1]
        return await self.read()

    async def read(self) -> Trust:
        """As it is now."""
        found = await self._etcd.find(Get(self._start, self._end))
        authorities, nodes = Authorities(), {}
        for item in found.items:
            if item.key == self._authorities:
                authorities = replace(decode_authorities(item.value, item.key), modified=item.modified)
            elif item.key.startswith(self._nodes):
                with suppress(StoredFormatError):  # of a newer version: that node is as one that has said nothing
                    shown = decode_shown(item.value, item.key)
                    nodes[shown.node] = shown
        trust = Trust(authorities, nodes)
        self._kept = (found.revision, trust)
        return trust

    async def put(self, authorities: Authorities) -> None:
        """Write them if nobody has since `authorities.modified`; else StoreConflict."""
        compare = Modified(self._authorities, authorities.modified)
        done = await self._etcd.transaction((compare,), (Put(self._authorities, encode_authorities(authorities)),))
        if not done.succeeded:
            raise StoreConflict(f"{self._authorities} changed after revision {authorities.modified}")

    async def tell(self, shown: Shown) -> None:
        """Write what this node shows."""
        await self._etcd.transaction((), (Put(f"{self._nodes}{shown.node}", encode_shown(shown)),))


def encode_authorities(authorities: Authorities) -> bytes:
    body = asdict(authorities)
    del body["modified"]
    return json.dumps({"format_version": FORMAT_VERSION, **body}).encode()


def decode_authorities(value: bytes, key: str) -> Authorities:
    body = _body(value, key)
    try:
        trusted = tuple(
            Authority(str(a["certificate"]), str(a["fingerprint"]), str(a.get("cross", "")), str(a.get("key", "")))
            for a in body["trusted"]
        )
        return Authorities(trusted, int(body["number"]), int(body["round"]), int(body["wanted"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoredFormatError(f"{key}: {error!r}") from error


def encode_shown(shown: Shown) -> bytes:
    return json.dumps({"format_version": FORMAT_VERSION, **asdict(shown)}).encode()


def decode_shown(value: bytes, key: str) -> Shown:
    """Fields that a newer version has added are left alone."""
    body = _body(value, key)
    try:
        return Shown(
            node=NodeId(body["node"]),
            own=bool(body.get("own")),
            fingerprint=str(body.get("fingerprint", "")),
            authority=str(body.get("authority", "")),
            round=int(body.get("round", 0)),
            not_after=float(body.get("not_after", 0.0)),
            names=tuple(str(name) for name in body.get("names", ())),
            ca=str(body.get("ca", "")),
            required=bool(body.get("required")),
            problem=str(body.get("problem", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoredFormatError(f"{key}: {error!r}") from error


def _body(value: bytes, key: str) -> Mapping[str, Any]:
    try:
        body = json.loads(value)
    except ValueError as error:
        raise StoredFormatError(f"{key} is not JSON: {error}") from error
    if not isinstance(body, dict) or body.get("format_version") != FORMAT_VERSION:
        raise StoredFormatError(f"{key} has a format that this version does not know")
    return body
