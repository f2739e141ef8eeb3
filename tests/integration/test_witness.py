"""A cluster whose nodes have no sentinel of their own: a witness leads it, with TLS as anywhere else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flypg.local_layout import Layout
from flypg.local_processes import running_from
from tests.integration.test_tls import connect, ports
from tests.support.local import NEEDED, PATH, Local, port_base

MISSING = [program for program in (*NEEDED, "pgbouncer") if shutil.which(program, path=PATH) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.timeout(400),
]
NODES = ("n1", "n2")


@contextmanager
def witness(layout: Layout, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`flypg sentinel`, which is told of the cluster and of no password."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FLYPG_", "PG"))}
    given = {
        "FLYPG_CLUSTER": layout.cluster,
        "FLYPG_NODE": "w1",
        "FLYPG_HOST": "127.0.0.1",
        "FLYPG_ETCD_ENDPOINTS": layout.endpoints,
        "FLYPG_DATA_DIR": str(layout.root / "w1"),
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "flypg", "sentinel"], env=clean | given, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


@pytest.fixture
def local() -> Iterator[Local]:
    """A directory for a cluster that is up to the test."""
    root = Path(tempfile.mkdtemp(prefix="fp"))
    root.chmod(0o755)
    local = Local(root / "c")
    try:
        yield local
    finally:
        ended = local("local", "down", "--destroy", "--yes")
        left = [pid for node in NODES for pid in running_from(local.root / node)]
        shutil.rmtree(root, ignore_errors=True)
    assert (ended.code, left) == (0, []), ended.err


def test_a_witness_leads_a_cluster_with_tls(local: Local) -> None:
    base = port_base(len(NODES))
    layout = Layout(local.root, len(NODES), 1, base)
    log, root = local.root.parent / "witness.log", local.root.parent / "root.crt"
    with witness(layout, log) as process:
        up = ("local", "up", "--nodes", str(len(NODES)), "--port-base", str(base), "--wait", "200")
        local.ok(*up, "--set", "FLYPG_SENTINEL=false")
        assert local.status()["leader"] == "w1"
        root.write_text(local.ok("tls", "ca").out)
        verified(local, root)
        local.ok("tls", "rotate", "--ca")
        verified(local, root)
        shown = local.ok("tls", "show").out
        assert "n1" in shown and "n2" in shown and "w1" not in shown, "a witness shows nothing"
        primary = next(n["node"] for n in local.status()["nodes"] if n["role"] == "primary")
        (other,) = set(NODES) - {primary}
        local.ok("local", "node", "kill", primary)
        local.until(lambda s: any(n["node"] == other and n["role"] == "primary" for n in s["nodes"]))
        verified(local, root, other)
        local.ok("local", "node", "start", primary)
        local.healthy()
        verified(local, root)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert local.status()["leader"] != "w1", "it has resigned"
    assert not (local.root / "w1").exists(), "it keeps nothing"
    assert "Traceback" not in log.read_text()


def verified(local: Local, root: Path, *nodes: str) -> None:
    """Every port shows a certificate that this authority vouches for."""
    for port in ports(local, *(nodes or NODES)):
        with connect(local, port, "verify-full", root) as client:
            assert client.pgconn.ssl_in_use
