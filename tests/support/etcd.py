"""A real etcd of one to three members for tests: start it, and stop, kill or freeze a member."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.endpoints import Endpoint, EtcdOptions
from cluster.errors import FlypgError
from cluster.etcd import Etcd
from tests.support.ports import free_ports

BIN = shutil.which("etcd")
START_S = 30.0


@dataclass(slots=True)
class TestMember:
    """One member of the etcd under test. Its data survives a stop."""

    __test__ = False

    name: str
    client_port: int
    peer_port: int
    directory: Path
    argv: list[str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self.process is None, f"{self.name} runs already"
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process and wait for it; killed when it does not end in time."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def freeze(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


@dataclass(slots=True)
class TestEtcd:
    """An etcd cluster on loopback. `tls`: clients must show a certificate of the same CA."""

    __test__ = False

    members: list[TestMember]
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(Endpoint("127.0.0.1", member.client_port, self.tls) for member in self.members)

    def options(self, **changes: object) -> EtcdOptions:
        files: dict[str, object] = {"ca_file": self.ca_file, "cert_file": self.cert_file, "key_file": self.key_file}
        return EtcdOptions(self.endpoints, **(files | changes))  # type: ignore[arg-type]

    def member(self, endpoint: Endpoint) -> TestMember:
        return self.members[self.endpoints.index(endpoint)]

    def wait_ready(self) -> None:
        """Until a client gets an answer. Raises AssertionError after half a minute."""
        asyncio.run(self.ready())

    async def ready(self) -> None:
        etcd = Etcd(self.options())
        until = time.monotonic() + START_S
        try:
            while True:
                try:
                    await etcd.get("ready")
                    return
                except FlypgError as error:
                    assert time.monotonic() < until, f"etcd did not start: {error}"
                    await asyncio.sleep(0.05)
        finally:
            await etcd.close()

    def stop(self) -> None:
        for member in self.members:
            member.stop(signal.SIGKILL)


def start_etcd(directory: Path, members: int = 1, *, tls_files: tuple[str, str, str] | None = None) -> TestEtcd:
    """Start an etcd and wait until it answers. `tls_files`: CA, certificate and key."""
    assert BIN is not None, "there is no etcd on this machine"
    ports = free_ports(2 * members)
    names = [f"e{number}" for number in range(1, members + 1)]
    peers = {name: f"http://127.0.0.1:{ports[2 * i + 1]}" for i, name in enumerate(names)}
    scheme = "https" if tls_files else "http"
    found = []
    for i, name in enumerate(names):
        client = f"{scheme}://127.0.0.1:{ports[2 * i]}"
        argv = [BIN, "--name", name, "--data-dir", str(directory / name), "--log-level", "error", "--logger", "zap"]
        argv += ["--listen-client-urls", client, "--advertise-client-urls", client]
        argv += ["--listen-peer-urls", peers[name], "--initial-advertise-peer-urls", peers[name]]
        argv += ["--initial-cluster", ",".join(f"{n}={url}" for n, url in peers.items())]
        argv += ["--initial-cluster-state", "new", "--unsafe-no-fsync"] if _may_skip_fsync() else []
        if tls_files:
            argv += ["--trusted-ca-file", tls_files[0], "--cert-file", tls_files[1], "--key-file", tls_files[2]]
            argv += ["--client-cert-auth"]
        found.append(TestMember(name, ports[2 * i], ports[2 * i + 1], directory, argv))
    ca, cert, key = tls_files or ("", "", "")
    etcd = TestEtcd(found, bool(tls_files), ca, cert, key)
    try:
        for member in found:
            member.start()
        etcd.wait_ready()
    except BaseException:
        etcd.stop()
        raise
    return etcd


def _may_skip_fsync() -> bool:
    """etcd 3.5 can be told not to wait for the disk, which no test here needs."""
    assert BIN is not None
    text = subprocess.run([BIN, "--help"], capture_output=True, text=True, timeout=30, check=False)
    return "--unsafe-no-fsync" in text.stdout + text.stderr
