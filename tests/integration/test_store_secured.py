"""The store against an etcd that asks for certificates and for a password."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.clock import SystemClock
from cluster.endpoints import Endpoint
from cluster.errors import SettingsError, StoreUnavailable
from cluster.etcd import Etcd
from cluster.etcd_store import EtcdStore
from cluster.etcd_values import Get, Put
from cluster.keys import Keys
from cluster.model import Member, NodeId, NodeReport, ServerState
from tests.support.etcd import BIN, TestEtcd, start_etcd

OPENSSL, ETCDCTL = shutil.which("openssl"), shutil.which("etcdctl")
pytestmark = pytest.mark.skipif(
    BIN is None or OPENSSL is None or ETCDCTL is None, reason="needs etcd, etcdctl and openssl on this machine"
)
A = NodeId("a")
CLUSTER = "secured"
PASSWORD = "correct horse"


def run(*argv: str, **env: str) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", **env}, check=False
    )
    assert done.returncode == 0, f"{argv[0]}: {done.stdout}{done.stderr}"


def certificates(directory: Path) -> tuple[str, str, str]:
    """A CA, and a certificate for 127.0.0.1 that serves both ends."""
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    cert, key, request = directory / "node.pem", directory / "node.key", directory / "node.csr"
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run(
        "openssl", "req", "-x509", *curve, "-keyout", f"{ca_key}", "-out", f"{ca}", "-subj", "/CN=test CA", "-days", "2"
    )
    # Without a common name: etcd would take it for the user of whoever shows this certificate.
    run("openssl", "req", *curve, "-keyout", f"{key}", "-out", f"{request}", "-subj", "/O=test")
    signing = ("-CA", f"{ca}", "-CAkey", f"{ca_key}", "-CAcreateserial", "-extfile", f"{extensions}")
    run("openssl", "x509", "-req", "-in", f"{request}", *signing, "-out", f"{cert}", "-days", "2")
    return f"{ca}", f"{cert}", f"{key}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEtcd]:
    directory = tmp_path_factory.mktemp("secured")
    etcd = start_etcd(directory, tls_files=certificates(directory))
    try:
        files = ("--cacert", etcd.ca_file, "--cert", etcd.cert_file, "--key", etcd.key_file)
        control = ("etcdctl", "--endpoints", str(etcd.endpoints[0]), *files)
        for command in (
            ("user", "add", f"root:{PASSWORD}"),
            ("user", "grant-role", "root", "root"),
            ("user", "add", f"flypg:{PASSWORD}"),
            ("role", "add", "flypg"),
            ("role", "grant-permission", "flypg", "--prefix=true", "readwrite", Keys(CLUSTER).prefix),
            ("user", "grant-role", "flypg", "flypg"),
            ("auth", "enable"),
        ):
            run(*control, *command, ETCDCTL_API="3")
        yield etcd
    finally:
        etcd.stop()


def store(etcd: Etcd) -> EtcdStore:
    return EtcdStore(etcd, CLUSTER, A, clock=SystemClock())


async def refusal(etcd: Etcd) -> str:
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await store(etcd).read()
        return str(caught.value)
    finally:
        await etcd.close()


def test_reading_writing_and_watching(secured: TestEtcd) -> None:
    async def story() -> None:
        etcd = Etcd(secured.options(user="flypg", password=PASSWORD))
        node, woken = store(etcd), asyncio.Event()
        watch = asyncio.create_task(node.watch(woken.set))
        try:
            async with asyncio.timeout(30):
                await woken.wait()
                woken.clear()
                await node.report(NodeReport(Member(A, "h"), "r1", ServerState.STANDBY))
                await woken.wait()
            assert (await node.keep_lease()).ttl_s > 0
            assert await node.campaign() is not None
            assert set((await node.read()).reports) == {A}
            with pytest.raises(StoreUnavailable, match="permission denied"):
                await etcd.find(Get("/elsewhere"))
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await etcd.close()

    asyncio.run(story())


def test_a_token_that_etcd_has_forgotten_is_replaced(secured: TestEtcd) -> None:
    async def story() -> None:
        etcd = Etcd(secured.options(user="flypg", password=PASSWORD))
        try:
            key = Keys(CLUSTER).spec
            await etcd.transaction([], [Put(key, b"1")])
            member = secured.members[0]
            member.stop()  # tokens live in its memory
            member.start()
            async with asyncio.timeout(60):
                while True:
                    try:
                        found = await etcd.get(key)
                        break
                    except StoreUnavailable as error:
                        assert "refuse" not in str(error).replace("Connection refused", ""), error
                        await asyncio.sleep(0.05)
            assert found is not None and found.value == b"1"
        finally:
            await etcd.close()

    asyncio.run(story())


def test_what_is_refused_says_why(secured: TestEtcd) -> None:
    wrong = secured.options(user="flypg", password="wrong")
    assert "wrong" not in repr(wrong)
    assert "authentication failed" in asyncio.run(refusal_of(wrong))
    assert "etcd refuses" in asyncio.run(refusal_of(secured.options()))


async def refusal_of(options: object) -> str:
    return await refusal(Etcd(options))  # type: ignore[arg-type]


def test_nobody_talks_to_an_etcd_it_cannot_verify(secured: TestEtcd) -> None:
    async def story() -> str:
        return await refusal(Etcd(secured.options(ca_file="", attempt_s=0.5, total_s=1.0)))

    assert "does not answer" in asyncio.run(story())


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, secured: TestEtcd) -> None:
    async def story() -> None:
        Etcd(secured.options(ca_file=str(tmp_path / "none.pem")))

    with pytest.raises(SettingsError, match="FLYPG_ETCD_CA_FILE"):
        asyncio.run(story())


def test_endpoints_are_https(secured: TestEtcd) -> None:
    assert secured.endpoints == (Endpoint("127.0.0.1", secured.members[0].client_port, True),)
