"""What a node begins with: its settings for TLS, an operator's certificate if there is one, else what it had before.

Key, certificate and chain lie in one file, `conf/server.pem`, so that they change in one piece: a server that starts at
any moment finds a key that fits. Everything here runs before anything else of the agent, and needs no library.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.renewal import Held, usable
from agent.routing.program import Owner, write_owned
from cluster import values as read
from cluster.errors import SettingsError
from cluster.x509 import Certificate, blocks, parse
from postgres.tls import Tls, TlsState

CERTIFICATE, KEY, CA = "FLYPG_TLS_CERT_FILE", "FLYPG_TLS_KEY_FILE", "FLYPG_TLS_CA_FILE"
MODE, NAMES = "FLYPG_TLS_MODE", "FLYPG_TLS_NAMES"
KNOWN = (CERTIFICATE, KEY, CA, MODE, NAMES)
CLOCKS_DIFFER_S = 300.0
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What the operator of this node has said about TLS. Files are paths; "" means that none was given."""

    mode: str = "optional"  # for clients: "optional", "required", or "off"
    certificate: str = ""
    key: str = ""
    ca: str = ""
    names: str = ""  # more names for the certificate, comma-separated

    @property
    def own(self) -> bool:
        """Does an operator bring the certificate?"""
        return bool(self.certificate)


@dataclass(frozen=True, slots=True)
class OwnPair:
    """An operator's certificate, looked at and found to be in order."""

    pem: str  # certificate, chain and key
    certificate: Certificate
    ca: str  # PEM; "": none was given


def read_settings(values: Mapping[str, str]) -> TlsSettings:
    """Raises SettingsError."""
    for key in values:
        if key.startswith("FLYPG_TLS_") and key not in KNOWN:
            raise SettingsError(key, values[key], f"is not a setting; did you mean {read.nearest(key, KNOWN)}?")
    found = TlsSettings(
        mode=read.choice(values, MODE, ("optional", "required", "off"), "optional"),
        certificate=read.text(values, CERTIFICATE),
        key=read.text(values, KEY),
        ca=read.text(values, CA),
        names=read.text(values, NAMES),
    )
    given = {CERTIFICATE: found.certificate, KEY: found.key}
    for key, file in given.items():
        if not file and (any(given.values()) or found.ca):
            raise SettingsError(key, file, "is needed with the other files of FLYPG_TLS_…")
    if found.mode == "off" and found.own:
        raise SettingsError(MODE, found.mode, f"shows no certificate, and {CERTIFICATE} names one")
    for name in filter(None, (part.strip() for part in found.names.split(","))):
        if not usable((name,)):
            raise SettingsError(NAMES, found.names, f"{name!r} is neither a host name nor an address")
    return found


def read_own(settings: TlsSettings, now: float, installed: str = "") -> OwnPair:
    """The operator's certificate. Raises SettingsError, which names the file and what is wrong with it.

    `installed`: the certificate that is shown already (a fingerprint). Its end keeps no node from starting."""
    chain, key = _text(CERTIFICATE, settings.certificate), _text(KEY, settings.key)
    try:
        certificate = parse(chain)
    except ValueError as error:
        raise SettingsError(CERTIFICATE, settings.certificate, str(error)) from None
    if "ENCRYPTED" in key:
        raise SettingsError(KEY, settings.key, "is encrypted, and nobody types a password when a server starts")
    try:
        _server(settings.certificate, settings.key)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        if "MISMATCH" in reason:
            raise SettingsError(KEY, settings.key, f"is not the key of {settings.certificate}") from None
        raise SettingsError(KEY, settings.key, f"no private key can be read from it ({reason})") from None
    if now > certificate.not_after and certificate.fingerprint != installed:
        raise SettingsError(CERTIFICATE, settings.certificate, f"has expired, on {_day(certificate.not_after)}")
    if now < certificate.not_before - CLOCKS_DIFFER_S:
        raise SettingsError(
            CERTIFICATE,
            settings.certificate,
            f"does not hold before {_day(certificate.not_before)}: is the clock right?",
        )
    ca = ""
    if settings.ca:
        ca = "".join(blocks(_text(CA, settings.ca)))
        if not ca:
            raise SettingsError(CA, settings.ca, "there is no certificate in it")
        if now <= certificate.not_after and (problem := _problem(settings, ca)):
            raise SettingsError(CA, settings.ca, f"does not verify {settings.certificate}: {problem}")
    return OwnPair("".join(blocks(chain)) + key.strip() + "\n", certificate, ca)


def _text(key: str, file: str) -> str:
    try:
        return Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text (PEM)"
        raise SettingsError(key, file, f"cannot be read: {why}") from error


def _server(certificate: str, key: str | None = None) -> ssl.SSLContext:
    """Raises ssl.SSLError when they do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key, password="")
    return context


def _problem(settings: TlsSettings, ca: str) -> str:
    """Why a client that trusts `ca` would not accept the certificate: asked of a client, in memory. "": it would."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    try:
        client.load_verify_locations(cadata=ca)
    except ssl.SSLError as error:
        return error.reason or str(error)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        _server(settings.certificate, settings.key).wrap_bio(to_server, to_client, server_side=True),
    )
    try:
        for _ in range(3):
            for end in ends:
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return error.reason or str(error)
    return ""


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


class TlsFiles:
    """Where a node keeps what it shows and whom it trusts."""

    def __init__(self, conf: Path, base: Path, owner: Owner) -> None:
        self.server = conf / "server.pem"  # key, certificate and chain
        self.bundle = conf / "ca.crt"  # the authorities we trust
        self.authority = base / "authority.key"  # the authority's key: the agent's own, no server reads it
        self._notes = conf / "tls.json"
        self._owner = owner

    def notes(self) -> dict[str, Any]:
        """What was noted with the last certificate; empty when there is nothing, or nothing that can be read."""
        try:
            found = json.loads(self._notes.read_text())
        except (OSError, ValueError):
            return {}
        known = isinstance(found, dict) and found.get("format_version") == FORMAT_VERSION
        return found if known else {}

    def write_notes(self, notes: Mapping[str, Any]) -> None:
        write_owned(self._notes, json.dumps({"format_version": FORMAT_VERSION, **notes}), self._owner)

    def write_server(self, pem: str) -> None:
        write_owned(self.server, pem, self._owner)

    def write_bundle(self, pem: str) -> None:
        write_owned(self.bundle, pem, self._owner, 0o644)

    def private(self) -> str:
        """The authority's key, PEM; "" when this node has none."""
        try:
            return self.authority.read_text()
        except OSError:
            return ""

    def write_private(self, pem: str) -> None:
        if pem != self.private():
            write_owned(self.authority, pem, Owner())

    def certificate(self) -> Certificate | None:
        """What is in place, if it is whole: its key fits, and it can be read."""
        try:
            found = parse(self.server.read_text())
            _server(str(self.server))
        except (OSError, ValueError, ssl.SSLError):
            return None
        return found

    def held(self) -> Held | None:
        """The certificate in place, if the cluster's authority has signed it."""
        notes, found = self.notes(), self.certificate()
        if found is None or notes.get("own") is not False or notes.get("fingerprint") != found.fingerprint:
            return None
        return Held(found, str(notes.get("authority", "")), int(notes.get("round", 0)))

    def shown(self, certificate: Certificate) -> Tls:
        return Tls(self.server, self.server, certificate.fingerprint)


def refuse_wrong(settings: TlsSettings, files: TlsFiles, now: float) -> None:
    """Raises SettingsError when the operator's certificate is not in order. Changes nothing."""
    if settings.own:
        found = files.certificate()
        read_own(settings, now, found.fingerprint if found is not None else "")


def begin(settings: TlsSettings, files: TlsFiles, now: float) -> TlsState:
    """The state that a node starts with. Raises SettingsError when the operator's certificate is not in order."""
    state = TlsState(required=settings.mode == "required")
    found = files.certificate() if settings.mode != "off" else None
    if settings.own:
        pair = read_own(settings, now, found.fingerprint if found is not None else "")
        if found is None or found.fingerprint != pair.certificate.fingerprint or pair.pem != files.server.read_text():
            files.write_server(pair.pem)
        state.shown = files.shown(pair.certificate)
    elif found is not None and (held := files.held()) is not None:
        state.shown = files.shown(held.certificate)
    if files.bundle.exists():
        state.bundle, state.trusts = files.bundle, hashlib.sha256(files.bundle.read_bytes()).hexdigest()
        with suppress(TypeError, ValueError):
            state.verified = frozenset((str(host), int(port)) for host, port in files.notes().get("verified", ()))
    return state
