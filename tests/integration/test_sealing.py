"""The nodes' shared password is changed while the cluster is upgraded node by node: the authority's key follows it.

With a real etcd, and certificates as nodes make them; no PostgreSQL is needed to show them here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent.certificates import Certificates, Node
from agent.routing.program import Owner
from agent.tls import TlsFiles, TlsSettings, begin
from cluster.clock import SystemClock
from cluster.etcd import Etcd
from cluster.model import Member, NodeId, Phase, View
from cluster.trust import TrustStore
from tests.support.etcd import BIN, TestEtcd, start_etcd
from tests.support.ports import free_ports

pytestmark = pytest.mark.skipif(BIN is None, reason="there is no etcd on this machine")
OLD, NEW = "the password of old", "a new password"
VIEW = View(1, Phase.OPEN, NodeId("n1"), 1, (), members=(Member(NodeId("n1"), "10.0.0.1"),))


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[TestEtcd]:
    found = start_etcd(tmp_path)
    yield found
    found.stop()


@contextlib.asynccontextmanager
async def node(etcd: Etcd, base: Path, name: str, secret: str) -> AsyncIterator[Certificates]:
    """A node's certificates, kept as its agent keeps them; another start of the same node has the same directory."""
    directory = base / name
    (directory / "conf").mkdir(parents=True, exist_ok=True)
    files, settings, clock = TlsFiles(directory / "conf", directory, Owner()), TlsSettings(), SystemClock()
    member = Member(NodeId(name), "127.0.0.1")

    async def apply() -> None:
        """There is no server to tell."""

    about = Node(
        "sealing", lambda: member, lambda: VIEW, lambda: (name,), secret, (("127.0.0.1", free_ports(1)[0]),), apply
    )
    state = begin(settings, files, clock.wall())
    made = Certificates(settings, files, state, TrustStore(etcd, "sealing"), about, clock)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_key_is_sealed_anew_by_a_node_that_still_has_it(
    etcd: TestEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.certificates.SOON_S", 0.1)
    client = Etcd(etcd.options())
    trust = TrustStore(client, "sealing")

    async def until(condition: Callable[[], bool]) -> str:
        """Wait for it; the key as it is sealed in etcd then."""
        async with asyncio.timeout(60):
            while True:
                signer = (await trust.read()).authorities.signer
                if condition():
                    assert signer is not None
                    return signer.key
                await asyncio.sleep(0.05)

    try:
        async with node(client, tmp_path, "n1", OLD) as n1, node(client, tmp_path, "n2", OLD) as n2:
            before = await until(lambda: n1.state.shown is not None and n2.state.shown is not None)
            held = n1.state.shown
        assert (tmp_path / "n1" / "authority.key").exists()
        signer = (await trust.read()).authorities.signer
        async with node(client, tmp_path, "n2", NEW) as n2, node(client, tmp_path, "n3", NEW) as n3:
            await until(lambda: "sealed with another SU_PASSWORD" in n3.report().problem)
            assert n3.state.shown is None
            assert n2.state.shown is not None, "who has a certificate goes on with it"
            monkeypatch.setattr("agent.certificates.SEAL_AFTER_S", 0.2)
            async with node(client, tmp_path, "n1", NEW) as n1:
                after = await until(lambda: n3.state.shown is not None)
                assert after != before, "sealed anew"
                assert n1.state.shown == held, "nobody's certificate was made anew for that"
                await until(lambda: not n3.report().problem)
            now = (await trust.read()).authorities.signer
            assert now is not None and signer is not None and now.certificate == signer.certificate
            assert NEW not in repr(now) and OLD not in repr(now)
    finally:
        await client.close()
