"""Certificates for tests, made as flypg makes its own."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.issue import common_name, general, key_text, load, load_key, signed, text_of


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """Signs what a test asks for."""

    directory: Path
    certificate: Path
    key: str

    def pair(self, name: str, *, names: list[str] | None = None, days: tuple[float, float] = (-1, 30)) -> Pair:
        """`days`: from now, when it begins and when it ends."""
        signer, own = load_key(self.key), ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(common_name(name))
            .issuer_name(load(self.certificate.read_text()).subject)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(
                x509.SubjectAlternativeName([general(n) for n in names or ["localhost", "127.0.0.1"]]), critical=False
            )
            .sign(signer, hashes.SHA256())
        )
        pair = Pair(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        pair.certificate.write_text(text_of(made))
        pair.key.write_text(key_text(own))
        pair.key.chmod(0o600)
        return pair


def authority(directory: Path, name: str = "authority") -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = common_name(name)
    certificate = directory / f"{name}.crt"
    certificate.write_text(text_of(signed(subject, key.public_key(), subject, key, 30, authority=True)))
    return Authority(directory, certificate, key_text(key))
