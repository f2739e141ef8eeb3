"""A certificate for clients: taken as a pair, or refused by the name of its setting."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from agent.routing.program import Owner
from agent.tls import CERTIFICATE, KEY, install
from cluster.errors import SettingsError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def make(directory: Path, name: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=n1"]
    subprocess.run(
        ["openssl", "req", "-x509", *made, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return certificate, key


def test_a_pair_is_installed_for_the_servers_only(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, "a")
    (tmp_path / "conf").mkdir()
    tls = install({CERTIFICATE: str(certificate), KEY: str(key)}, tmp_path / "conf", Owner())
    assert tls is not None
    assert tls.certificate.read_text() == certificate.read_text()
    assert tls.key.stat().st_mode & 0o777 == 0o600


def test_none_is_fine(tmp_path: Path) -> None:
    assert install({}, tmp_path, Owner()) is None


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    certificate, key = make(tmp_path, "a")
    _, other = make(tmp_path, "b")
    for values, named in (
        ({CERTIFICATE: str(certificate)}, KEY),
        ({KEY: str(key)}, CERTIFICATE),
        ({CERTIFICATE: str(certificate), KEY: str(tmp_path / "none")}, KEY),
        ({CERTIFICATE: str(certificate), KEY: str(other)}, KEY),
    ):
        with pytest.raises(SettingsError) as caught:
            install(values, tmp_path, Owner())
        assert caught.value.key == named
