"""TLS for real, in a local cluster: verified on every port, renewed under open connections, and for those who join."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cluster.x509 import parse
from flypg.local_layout import HOST, Layout
from tests.support.certificates import authority
from tests.support.local import NEEDED, PATH, Local, cluster
from tests.support.ports import free_ports

MISSING = [program for program in (*NEEDED, "pgbouncer") if shutil.which(program, path=PATH) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.timeout(500),
]


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with cluster(2, room_for=3) as found:
        yield found


@pytest.fixture(scope="module")
def root_certificate(local: Local) -> Path:
    """What clients were given in the beginning."""
    file = local.root.parent / "root.crt"
    file.write_text(local.ok("tls", "ca").out)
    return file


def ports(local: Local, *nodes: str) -> list[int]:
    layout = Layout(local.root, 3, 1, first_port(local))
    found = [layout.ports(node) for node in nodes]
    return [port for p in found for port in (p.proxy, p.postgres, p.read, p.pooler)]


@cache
def environment(local: Local) -> dict[str, str]:
    return local.environment("--node", "n1")


def first_port(local: Local) -> int:
    return int(environment(local)["PGPORT"]) - Layout(local.root, 1, 1, 0).ports("n1").proxy


def connect(local: Local, port: int, mode: str, root: Path | None = None) -> psycopg.Connection[Any]:
    found = environment(local)
    more = {"sslrootcert": str(root)} if root is not None else {}
    return psycopg.connect(
        host=HOST,
        port=port,
        user=found["PGUSER"],
        password=found["PGPASSWORD"],
        dbname="postgres",
        sslmode=mode,
        connect_timeout=20,
        autocommit=True,
        **more,
    )


def shown(port: int) -> ssl.SSLSocket:
    """A connection that has begun TLS as PostgreSQL's clients do."""
    plain = socket.create_connection((HOST, port), timeout=20)
    plain.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
    assert plain.recv(1) == b"S"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


def certificate_at(port: int) -> bytes:
    for patience in (True, True, False):
        try:
            with shown(port) as connection:
                return connection.getpeercert(binary_form=True) or b""
        except OSError:  # the route has just changed
            if not patience:
                raise
    raise AssertionError("it was tried")


def test_every_port_is_verified_and_nobody_must(local: Local, root_certificate: Path) -> None:
    for port in ports(local, "n1", "n2"):
        for mode, root in (("verify-full", root_certificate), ("require", None)):
            with connect(local, port, mode, root) as client:
                assert client.pgconn.ssl_in_use, f"{mode} on {port}"
        with connect(local, port, "disable") as client:
            assert not client.pgconn.ssl_in_use


def test_another_authority_is_not_believed(local: Local, tmp_path: Path) -> None:
    stranger = authority(tmp_path)
    for port in ports(local, "n1"):
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            connect(local, port, "verify-ca", stranger.certificate)


def test_nodes_verify_each_other(local: Local) -> None:
    """A standby that began to stream before certificates were known verifies from the next change of primary on."""
    local.healthy()
    local.ok("switchover")
    local.healthy()
    with connect(local, ports(local, "n1")[0], "prefer") as client:
        rows = client.execute("SELECT ssl FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)").fetchall()
    assert rows == [(True,)]
    standby = next(n["node"] for n in local.status()["nodes"] if n["role"] == "standby")
    text = (local.root / standby / "conf" / "flypg.conf").read_text()
    assert "sslmode=verify-ca" in text
    primary = {"n1": "n2", "n2": "n1"}[standby]
    for node, mode in ((standby, "verify-ca"), (primary, "disable")):  # the primary's own never leaves the machine
        ini = local.root / node / "run" / "pooler" / "pgbouncer.ini"
        until = time.monotonic() + 60  # the primary's goes straight some seconds after the change
        while f"server_tls_sslmode = {mode}" not in ini.read_text():
            assert time.monotonic() < until, f"{node}: not {mode}"
            time.sleep(0.1)


def test_the_authoritys_key_is_nowhere_in_clear(local: Local) -> None:
    kept = [node for node in ("n1", "n2") if (local.root / node / "authority.key").exists()]
    assert kept
    for node in kept:
        file = local.root / node / "authority.key"
        assert (file.stat().st_mode & 0o777, file.stat().st_uid) == (0o600, os.geteuid())
        secret = "".join(file.read_text().splitlines()[1:-1])[:40].encode()
        for place in (local.root / "e1", local.root / "log"):
            for found in place.rglob("*") if place.exists() else ():
                assert not found.is_file() or secret not in found.read_bytes(), found


def test_rotation_drops_nobody(local: Local, root_certificate: Path) -> None:
    all_ports = ports(local, "n1", "n2")
    before = {port: certificate_at(port) for port in all_ports}
    clients = [connect(local, port, "verify-full", root_certificate) for port in all_ports]
    temporary = clients[0].execute("CREATE TEMP TABLE kept (n int)")
    assert temporary is not None
    local.ok("tls", "rotate")
    assert all(certificate_at(port) != before[port] for port in all_ports)
    local.ok("tls", "rotate", "--ca")
    both = local.root.parent / "both.crt"
    both.write_text(local.ok("tls", "ca").out)
    newest = local.root.parent / "new.crt"
    newest.write_text(both.read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n")
    assert parse(newest.read_text()).subject != parse(root_certificate.read_text()).subject
    assert local("tls", "rotate", "--ca").code == 3, "one after the other"
    for port in all_ports:
        for root in (root_certificate, newest, both):
            with connect(local, port, "verify-full", root) as client:
                assert client.pgconn.ssl_in_use
    assert local("tls", "retire").code == 3, "nobody was there to confirm"
    local.ok("tls", "retire", "--yes")
    for port in all_ports:
        connect(local, port, "verify-full", newest).close()
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            connect(local, port, "verify-full", root_certificate)
    for client in clients:
        with client:
            assert client.execute("SELECT 1").fetchone() == (1,), "connected through all of it"
    root_certificate.write_text(local.ok("tls", "ca").out)
    assert local.ok("tls", "show").code == 0


def test_who_joins_later_is_verified(local: Local, root_certificate: Path) -> None:
    local.ok("local", "up", "--nodes", "3", "--wait", "240")
    for port in ports(local, "n3"):
        with connect(local, port, "verify-full", root_certificate) as client:
            assert client.pgconn.ssl_in_use
    assert local.ok("tls", "show").code == 0


def test_a_wrong_certificate_of_ones_own_is_refused_before_anything_starts(tmp_path: Path) -> None:
    signer = authority(tmp_path)
    good, other, old = signer.pair("good"), signer.pair("other"), signer.pair("old", days=(-9, -2))
    for certificate, key, fault in (
        (good.certificate, other.key, "is not the key of"),
        (old.certificate, old.key, "has expired"),
        (tmp_path / "nowhere", good.key, "cannot be read"),
    ):
        given = {"FLYPG_TLS_CERT_FILE": str(certificate), "FLYPG_TLS_KEY_FILE": str(key)}
        http, metrics = free_ports(2)
        data = {"FLYPG_DATA_DIR": str(tmp_path / "data"), "FLYPG_ETCD_ENDPOINTS": "http://127.0.0.1:1"}
        data |= {"FLYPG_HTTP_PORT": str(http), "FLYPG_METRICS_PORT": str(metrics)}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FLYPG_")}
        for words in (("config", "check"), ("agent",)):
            argv = [sys.executable, "-m", "flypg", *words]
            ran = subprocess.run(argv, env=clean | given | data, capture_output=True, text=True, timeout=120)
            assert ran.returncode == 2, ran.stderr
            assert fault in ran.stdout + ran.stderr
            assert "FLYPG_TLS_" in ran.stdout + ran.stderr
            assert not (tmp_path / "data").exists(), "nothing was changed"
