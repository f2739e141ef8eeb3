"""A real S3 service: Ceph's radosgw over one monitor and one OSD that keeps everything in memory. Up in three seconds.

moto answers in Python and believes whatever it is told; this one checks signatures, digests and conditions, and is fast
enough to be measured against. No mgr: a cluster of one needs none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from backups.objects import S3Options, S3Store
from tests.support.ports import free_ports

PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")
PACKAGES = "radosgw ceph-mon ceph-osd ceph-common"
START_S = 120.0
ACCESS, SECRET = "testaccess", "testsecretkey"
CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{monitor}]
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
keyring = {root}/keyring
run_dir = {root}
admin_socket =
pid_file =
log_file = {root}/$name.log
log_to_stderr = false
mon_data = {root}/mon
osd_data = {root}/osd
osd_objectstore = memstore
memstore_device_bytes = {memory}
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
rgw_rados_pool_pg_num_min = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
# a pool takes a second each to make otherwise, and there are ten of them
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
rgw_gc_obj_min_wait = 5
rgw_frontends = beast endpoint=127.0.0.1:{port}{tls}
"""


def missing() -> str:
    """Why there is no radosgw here; "" when there is."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    return f"no {', '.join(absent)} on this machine (Debian: {PACKAGES})" if absent else ""


@dataclass(frozen=True, slots=True)
class Radosgw:
    """A running service. `certificate`: the file that its clients must trust; "" without TLS."""

    endpoint: str
    tls_port: int
    certificate: str
    processes: tuple[subprocess.Popen[bytes], ...]

    def options(self, bucket: str, prefix: str = "p") -> S3Options:
        return S3Options(bucket, prefix, self.endpoint, "us-east-1", access_key=ACCESS, secret_key=SECRET, timeout_s=30)

    def store(self, bucket: str, prefix: str = "p", **changes: object) -> S3Store:
        return S3Store(replace(self.options(bucket, prefix), **changes))  # type: ignore[arg-type]

    def bucket(self, name: str) -> str:
        """Make a bucket."""
        self.store(name)._client.create_bucket(Bucket=name)
        return name


@contextmanager
def radosgw(*, tls: bool = False, memory: int = 4 << 30) -> Iterator[Radosgw]:
    """A service of its own, gone with everything in it at the end. `tls`: listen for TLS as well."""
    root = Path(tempfile.mkdtemp(prefix="rgw", dir="/tmp"))
    root.chmod(0o711)  # other users read the certificate
    monitor, port, tls_port = free_ports(3)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        certificate = _certificate(root) if tls else ""
        also = f" ssl_endpoint=127.0.0.1:{tls_port} ssl_certificate={root}/tls.pem" if tls else ""
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        conf = CONF.format(root=root, fsid=fsid, monitor=monitor, port=port, tls=also, memory=memory)
        (root / "ceph.conf").write_text(conf)
        (root / "keyring").touch()
        for folder in ("mon", "osd"):
            (root / folder).mkdir()
        address = f"[v2:127.0.0.1:{monitor}]"
        _run(root, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(root / "monmap"))
        _run(root, "ceph-mon", "--mkfs", "-i", "a", "--monmap", str(root / "monmap"))
        processes.append(_start(root, "ceph-mon", "-i", "a", "-f"))
        _run(root, "ceph", "osd", "new", osd)
        _run(root, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        processes.append(_start(root, "ceph-osd", "-i", "0", "-f"))
        processes.append(_start(root, "radosgw", "-n", "client.rgw", "-f"))
        _run(
            *(root, "radosgw-admin", "user", "create", "--uid=test", "--display-name=test"),
            *(f"--access-key={ACCESS}", f"--secret-key={SECRET}"),
        )
        endpoint = f"http://127.0.0.1:{port}"
        _until_it_answers(endpoint, processes, root)
        yield Radosgw(endpoint, tls_port, certificate, tuple(processes))
    finally:
        for process in reversed(processes):
            process.kill()  # it keeps nothing that would be worth an orderly end
            process.wait(10)
        shutil.rmtree(root, ignore_errors=True)


def _environment(root: Path) -> dict[str, str]:
    return {"PATH": f"{os.defpath}:/usr/sbin:/sbin", "CEPH_CONF": str(root / "ceph.conf"), "HOME": str(root)}


def _run(root: Path, *argv: str) -> None:
    done = subprocess.run(argv, env=_environment(root), capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0, f"{' '.join(argv[:3])}: {done.stderr[-2000:]}{_logs(root)}"


def _start(root: Path, *argv: str) -> subprocess.Popen[bytes]:
    with (root / f"{argv[0]}.out").open("wb") as output:
        return subprocess.Popen(
            argv, env=_environment(root), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/"
        )


def _until_it_answers(endpoint: str, processes: list[subprocess.Popen[bytes]], root: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with suppress(OSError):
            try:
                urllib.request.urlopen(endpoint, timeout=5).close()
                return
            except urllib.error.HTTPError:
                return
        assert time.monotonic() < deadline, f"radosgw does not answer{_logs(root)}"
        assert all(p.poll() is None for p in processes), f"a daemon of Ceph has ended{_logs(root)}"
        time.sleep(0.05)


def _logs(root: Path) -> str:
    found = [f"\n{f.name}: {f.read_text(errors='replace')[-600:]}" for f in (*root.glob("*.out"), *root.glob("*.log"))]
    return "".join(found)


def _certificate(root: Path) -> str:
    """A key and a certificate of its own for 127.0.0.1."""
    key, certificate = root / "tls.key", root / "tls.crt"
    _run(
        *(root, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=127.0.0.1"),
        *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
    )
    (root / "tls.pem").write_text(key.read_text() + certificate.read_text())
    return str(certificate)
