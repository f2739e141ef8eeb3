"""Makes keys and certificates; run as a program of its own, so that what it needs is in memory for a moment only.

It reads one JSON object from standard input and prints one, since a key or a password never belongs into arguments.
The secret is the password that all nodes share: the authority's key lies sealed with it in etcd.

    {"task": "authority", "secret", "cluster", "days", "old": {"certificate", "key"} | null, "private"}
        -> {"certificate", "cross", "key", "private"}: a new authority, and its certificate signed by the old one
    {"task": "certificate", "secret", "authority": {"certificate", "cross", "key"}, "private", "name", "names", "days"}
        -> {"pem", "private"}: key, certificate and chain of a node, in one text
    {"task": "seal", "secret", "authority": {"certificate", "key"}, "private"}
        -> {"key"}: sealed anew; "" when it is sealed with `secret` already

`private` is the authority's key as this node keeps it, "" when it has none; {"error": "sealed"}: neither that nor the
sealed one can be used. This file imports nothing of ours: it is run by its path.
"""

import base64
import contextlib
import datetime
import hashlib
import ipaddress
import json
import os
import secrets
import sys
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED = datetime.timedelta(days=1)  # clocks of nodes and clients differ
SALT, NONCE = 16, 12
SCRYPT = {"n": 1 << 14, "r": 8, "p": 1}  # 16 MB and some 50 ms for each guess at the password


class Sealed(Exception):
    """The authority's key cannot be opened."""


def sealing_key(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, dklen=32, maxmem=64 << 20, **SCRYPT)


def seal(private: str, secret: str, certificate: str) -> str:
    """The key under `secret`, bound to its certificate."""
    salt, nonce = os.urandom(SALT), os.urandom(NONCE)
    body = AESGCM(sealing_key(secret, salt)).encrypt(nonce, private.encode(), certificate.encode())
    return base64.b64encode(salt + nonce + body).decode()


def unseal(sealed: str, secret: str, certificate: str) -> str:
    """Raises Sealed."""
    try:
        raw = base64.b64decode(sealed, validate=True)
        salt, nonce, body = raw[:SALT], raw[SALT : SALT + NONCE], raw[SALT + NONCE :]
        return AESGCM(sealing_key(secret, salt)).decrypt(nonce, body, certificate.encode()).decode()
    except (ValueError, InvalidTag):
        raise Sealed from None


def key_text(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def load_key(text: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(text.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "we made it"
    return key


def load(text: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(text.encode())


def text_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def private_of(authority: dict[str, Any], secret: str, private: str) -> str:
    """The authority's key: this node's copy if it is of this authority, else the sealed one. Raises Sealed."""
    if private:
        with contextlib.suppress(ValueError):
            if load_key(private).public_key() == load(authority["certificate"]).public_key():
                return private
    return unseal(authority["key"], secret, authority["certificate"])


def signed(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    days: float,
    *,
    authority: bool,
    names: tuple[str, ...] = (),
    until: datetime.datetime | None = None,
) -> x509.Certificate:
    """A certificate for `public`. `until`: it ends then at the latest."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    end = now + datetime.timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(end, until) if until is not None else end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not authority:
        usage = x509.ExtendedKeyUsage((ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH))
        made = made.add_extension(usage, critical=False)
        made = made.add_extension(x509.SubjectAlternativeName([general(name) for name in names]), critical=False)
    return made.sign(signer, hashes.SHA256())


def general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def common_name(text: str, organization: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, text)])


def new_authority(asked: dict[str, Any]) -> dict[str, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = common_name(f"flypg authority {secrets.token_hex(4)}", asked["cluster"])
    own = signed(subject, key.public_key(), subject, key, asked["days"], authority=True)
    certificate, cross, old = text_of(own), "", asked.get("old")
    if old:
        with contextlib.suppress(Sealed):  # then clients must be given the new one before they can verify anybody
            former, signer = load(old["certificate"]), load_key(private_of(old, asked["secret"], asked["private"]))
            until = former.not_valid_after_utc
            made = signed(subject, key.public_key(), former.subject, signer, asked["days"], authority=True, until=until)
            cross = text_of(made)
    private = key_text(key)
    sealed = seal(private, asked["secret"], certificate)
    return {"certificate": certificate, "cross": cross, "key": sealed, "private": private}


def new_certificate(asked: dict[str, Any]) -> dict[str, Any]:
    authority = asked["authority"]
    private = private_of(authority, asked["secret"], asked["private"])
    issuer, key = load(authority["certificate"]), ec.generate_private_key(ec.SECP256R1())
    made = signed(
        common_name(asked["name"]),
        key.public_key(),
        issuer.subject,
        load_key(private),
        asked["days"],
        authority=False,
        names=tuple(asked["names"]),
        until=issuer.not_valid_after_utc,
    )
    return {"pem": text_of(made) + authority["cross"] + key_text(key), "private": private}


def seal_again(asked: dict[str, Any]) -> dict[str, Any]:
    authority, secret = asked["authority"], asked["secret"]
    try:
        unseal(authority["key"], secret, authority["certificate"])
    except Sealed:
        private = private_of(authority, secret, asked["private"])
        return {"key": seal(private, secret, authority["certificate"])}
    return {"key": ""}


TASKS = {"authority": new_authority, "certificate": new_certificate, "seal": seal_again}


def main() -> None:
    asked = json.load(sys.stdin)
    try:
        answer = TASKS[asked["task"]](asked)
    except Sealed:
        answer = {"error": "sealed"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
