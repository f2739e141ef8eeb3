"""What a node begins with: an operator's certificate in order, or refused by the name of its setting and its fault."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from agent.routing.program import Owner
from agent.tls import CA, CERTIFICATE, KEY, MODE, NAMES, TlsFiles, begin, read_settings
from cluster.errors import SettingsError
from cluster.x509 import parse
from postgres.tls import TlsState
from tests.support.certificates import Authority, authority

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def start(directory: Path, **values: str | Path) -> TlsState:
    """As an agent does. Keys without their prefix."""
    (directory / "conf").mkdir(exist_ok=True)
    given = {f"FLYPG_TLS_{key.upper()}": str(value) for key, value in values.items()}
    return begin(read_settings(given), files(directory), time.time())


def files(directory: Path) -> TlsFiles:
    return TlsFiles(directory / "conf", directory, Owner())


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("signer"))


def test_a_pair_is_shown_in_one_file_for_the_servers_only(tmp_path: Path, signer: Authority) -> None:
    pair = signer.pair("n1", names=["n1.example"])
    state = start(tmp_path, cert_file=pair.certificate, key_file=pair.key, ca_file=signer.certificate)
    assert state.shown is not None
    assert state.shown.certificate == state.shown.key == tmp_path / "conf" / "server.pem"
    assert state.shown.key.stat().st_mode & 0o777 == 0o600
    text = state.shown.key.read_text()
    assert pair.certificate.read_text().strip() in text and pair.key.read_text().strip() in text
    assert state.shown.fingerprint == parse(text).fingerprint


def test_without_any_a_node_begins_without_and_makes_one_later(tmp_path: Path) -> None:
    assert start(tmp_path).shown is None


def test_what_is_wrong_is_named(tmp_path: Path, signer: Authority) -> None:
    good, other = signer.pair("a"), signer.pair("b")
    expired, early = signer.pair("old", days=(-30, -2)), signer.pair("soon", days=(5, 30))
    stranger = authority(tmp_path, "stranger").pair("c")
    words, binary, locked = tmp_path / "words", tmp_path / "binary", tmp_path / "locked.key"
    words.write_text("no certificate")
    binary.write_bytes(b"\xff\xfe\x00")
    locked.write_text(good.key.read_text().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))
    for values, key, fault in (
        ({"cert_file": good.certificate}, KEY, "is needed"),
        ({"key_file": good.key}, CERTIFICATE, "is needed"),
        ({"ca_file": signer.certificate}, CERTIFICATE, "is needed"),
        ({"cert_file": good.certificate, "key_file": tmp_path / "none"}, KEY, "No such file"),
        ({"cert_file": tmp_path / "none", "key_file": good.key}, CERTIFICATE, "No such file"),
        ({"cert_file": binary, "key_file": good.key}, CERTIFICATE, "not text"),
        ({"cert_file": words, "key_file": good.key}, CERTIFICATE, "no certificate in it"),
        ({"cert_file": good.certificate, "key_file": other.key}, KEY, "is not the key of"),
        ({"cert_file": good.certificate, "key_file": words}, KEY, "no private key"),
        ({"cert_file": good.certificate, "key_file": locked}, KEY, "is encrypted"),
        ({"cert_file": expired.certificate, "key_file": expired.key}, CERTIFICATE, "has expired"),
        ({"cert_file": early.certificate, "key_file": early.key}, CERTIFICATE, "does not hold before"),
        ({"cert_file": stranger.certificate, "key_file": stranger.key, "ca_file": signer.certificate}, CA, "verify"),
        ({"cert_file": good.certificate, "key_file": good.key, "ca_file": words}, CA, "no certificate in it"),
        ({"cert_file": good.certificate, "key_file": good.key, "mode": "off"}, MODE, "shows no certificate"),
        ({"mode": "always"}, MODE, "optional"),
        ({"names": "db.example,what is this?"}, NAMES, "neither a host name"),
        ({"cert": good.certificate}, "FLYPG_TLS_CERT", "FLYPG_TLS_CERT_FILE"),
    ):
        with pytest.raises(SettingsError, match=fault) as caught:
            start(tmp_path, **values)
        assert caught.value.key == key, values
        assert not (tmp_path / "conf" / "server.pem").exists(), "a certificate that is refused changes nothing"


def test_one_that_ended_while_it_was_shown_keeps_no_node_from_starting(tmp_path: Path, signer: Authority) -> None:
    old = signer.pair("aged", days=(-30, -2))
    (tmp_path / "conf").mkdir()
    files(tmp_path).write_server(old.certificate.read_text() + old.key.read_text())
    assert start(tmp_path, cert_file=old.certificate, key_file=old.key).shown is not None


def test_half_a_file_is_as_none(tmp_path: Path, signer: Authority) -> None:
    (tmp_path / "conf").mkdir()
    a, b = signer.pair("half"), signer.pair("other")
    for text in (a.certificate.read_text(), a.certificate.read_text() + b.key.read_text(), "", "-----BEGIN"):
        files(tmp_path).write_server(text)
        files(tmp_path).write_notes({"own": False, "fingerprint": parse(a.certificate.read_text()).fingerprint})
        assert start(tmp_path).shown is None


def test_what_was_known_is_known_without_etcd(tmp_path: Path, signer: Authority) -> None:
    (tmp_path / "conf").mkdir()
    found = files(tmp_path)
    pair = signer.pair("kept")
    found.write_server(pair.certificate.read_text() + pair.key.read_text())
    found.write_bundle(signer.certificate.read_text())
    fingerprint = parse(pair.certificate.read_text()).fingerprint
    found.write_notes({"own": False, "fingerprint": fingerprint, "round": 3, "verified": [["h", 5433]]})
    state = start(tmp_path)
    assert state.shown is not None and state.shown.fingerprint == fingerprint
    held = found.held()
    assert held is not None and held.round == 3
    assert state.parameters("h", 5433)["sslmode"] == "verify-ca"
    assert state.parameters("h", 5434)["sslmode"] == "prefer", "another server may be of an older version"
    assert start(tmp_path, mode="off").shown is None


def test_clients_can_be_made_to_use_it(tmp_path: Path) -> None:
    assert start(tmp_path, mode="required").required
    assert not start(tmp_path).required


@needs_openssl
def test_a_certificate_is_read_as_openssl_reads_it(tmp_path: Path) -> None:
    config = ["-subj", "/O=x/CN=db", "-addext", "subjectAltName=DNS:a.example,IP:10.0.0.1,IP:fdaa::3"]
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(tmp_path / "k"), "-out", str(tmp_path / "c")]
    made = ["openssl", "req", "-x509", *key, "-days", "30", *config]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    found = parse((tmp_path / "c").read_text())
    assert (found.subject, found.names) == ("db", {"a.example", "10.0.0.1", "fdaa::3"})
    assert abs(found.not_after - time.time() - 30 * 86400) < 3600


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"])
def test_what_is_no_certificate_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)
