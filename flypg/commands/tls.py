"""flypg tls: who signs the nodes' certificates, what each node shows, and how to replace both."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from agent.renewal import bundle_of
from agent.shown import fingerprint, shown_at
from cluster.clock import SystemClock
from cluster.model import Member, NodeId, Snapshot
from cluster.trust import Authorities, Shown, Trust, TrustStore
from cluster.x509 import parse
from flypg.commands.change import confirm
from flypg.reply import Exit, Refused, Reply, done
from flypg.show import columns
from flypg.target import find

DAY_S = 86400.0
LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Seen:
    """A cluster and its certificates, as read now."""

    snapshot: Snapshot
    trust: Trust

    @property
    def members(self) -> tuple[Member, ...]:
        return self.snapshot.view.members if self.snapshot.view is not None else ()


Work = Callable[[TrustStore, Callable[[], Awaitable[Seen]]], Awaitable[Reply]]


def _with_trust(args: argparse.Namespace, work: Work) -> Reply:
    """Do `work` with the chosen cluster's certificates and a function that reads them."""
    from cluster.etcd import Etcd  # gRPC, for those that need it
    from cluster.etcd_store import EtcdStore

    target = find(args)

    async def run() -> Reply:
        etcd = Etcd(target.etcd)
        store = EtcdStore(etcd, target.cluster, NodeId("operator"), clock=SystemClock())
        trust = TrustStore(etcd, target.cluster)

        async def look() -> Seen:
            return Seen(await store.read(), await trust.read())

        try:
            return await work(trust, look)
        finally:
            await etcd.close()

    return asyncio.run(run())


# Looking


def ca(args: argparse.Namespace) -> Reply:
    """flypg tls ca: the authorities, for clients."""

    async def work(_: TrustStore, look: Callable[[], Awaitable[Seen]]) -> Reply:
        seen = await look()
        text = bundle_of(seen.trust, seen.snapshot.view, "")
        if not text:
            raise Refused("this cluster has no authority: no agent has made one yet, or TLS is off (FLYPG_TLS_MODE)")
        return done(text.rstrip("\n"), {"certificates": text})

    return _with_trust(args, work)


def show(args: argparse.Namespace) -> Reply:
    """flypg tls show: what should be, and what the ports show now."""

    async def work(_: TrustStore, look: Callable[[], Awaitable[Seen]]) -> Reply:
        seen = await look()
        asked = [
            (member.host, port) for member in seen.members for port in (member.ports.postgres, member.ports.pooler)
        ]
        found = await asyncio.gather(*(shown_at(host, port) for host, port in asked))
        return _shown(seen, dict(zip(asked, found, strict=True)), time.time())

    return _with_trust(args, work)


def _shown(seen: Seen, ports: Mapping[tuple[str, int], bytes | None], now: float) -> Reply:
    """Pure."""
    lines, authorities = [], []
    for place, authority in enumerate(seen.trust.authorities.trusted):
        certificate = parse(authority.certificate)
        role = "signs" if place == 0 else "trusted until flypg tls retire"
        lines.append(f"authority  {certificate.subject}: {role}; {ends(certificate.not_after, now)}")
        authorities.append(
            {
                "subject": certificate.subject,
                "fingerprint": authority.fingerprint,
                "not_after": certificate.not_after,
                "signs": place == 0,
            }
        )
    rows, nodes = [], []
    for member in seen.members:
        shown = seen.trust.nodes.get(member.node)
        live = [says(shown, ports[member.host, port]) for port in (member.ports.postgres, member.ports.pooler)]
        rows.append([member.node, *_node(shown, now), *live, shown.problem if shown is not None else ""])
        nodes.append(
            {
                "node": member.node,
                "own": shown.own if shown is not None else None,
                "fingerprint": shown.fingerprint if shown is not None else "",
                "not_after": shown.not_after if shown is not None and shown.fingerprint else None,
                "names": list(shown.names) if shown is not None else [],
                "required": shown.required if shown is not None else None,
                "postgres": live[0],
                "pooler": live[1],
                "problem": shown.problem if shown is not None else "",
            }
        )
    head = ["node", "signed by", "ends", "clients", "postgres", "pooler", "problem"]
    text = "\n".join([*(lines or ["authority  none"]), "", columns(head, rows)])
    well = all(node["postgres"] == "shown" and not node["problem"] for node in nodes)
    code = Exit.OK if well else Exit.FAILED
    return Reply(code, text, {"authorities": authorities, "round": seen.trust.authorities.round, "nodes": nodes})


def _node(shown: Shown | None, now: float) -> list[str]:
    if shown is None or not shown.fingerprint:
        return ["", "nothing shown", ""]
    return [
        "an operator's" if shown.own else "the cluster",
        ends(shown.not_after, now),
        "must use TLS" if shown.required else "may use TLS",
    ]


def says(shown: Shown | None, der: bytes | None) -> str:
    """What a port shows, compared with what it should. Pure."""
    if der is None:
        return "no answer"
    if not der:
        return "no TLS"
    return "shown" if shown is not None and fingerprint(der) == shown.fingerprint else "another"


def ends(at: float, now: float) -> str:
    day = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
    left = (at - now) / DAY_S
    return f"ends {day}, in {left:.0f} days" if left > 0 else f"ENDED {day}"


# Replacing


def rotate(args: argparse.Namespace) -> Reply:
    """flypg tls rotate [--ca]"""

    async def work(store: TrustStore, look: Callable[[], Awaitable[Seen]]) -> Reply:
        seen = await look()
        wanted = asked(seen.trust.authorities, ca=args.ca)
        await store.put(wanted)
        before = frozenset(authority.fingerprint for authority in seen.trust.authorities.trusted) if args.ca else None
        return await _wait(args, look, lambda now: missing(now, wanted.round, before))

    return _with_trust(args, work)


def asked(agreed: Authorities, *, ca: bool) -> Authorities:
    """What is written when an operator wants new certificates. Raises Refused. Pure."""
    if not agreed.trusted:
        raise Refused("this cluster has no authority: all certificates are its operator's, or TLS is off")
    if not ca:
        return replace(agreed, round=agreed.round + 1)
    if len(agreed.trusted) > 1:
        raise Refused("an older authority is still trusted: give clients the new one, then flypg tls retire")
    if agreed.wanted > agreed.number:
        raise Refused("a new authority is asked for already, and no node could make it yet: see flypg tls show")
    return replace(agreed, wanted=agreed.number + 1)


def missing(seen: Seen, round: int, before: frozenset[str] | None = None) -> Sequence[str]:
    """Nodes that do not show a certificate of this round yet, signed by today's authority; with `before`, by one that
    is not among these. Pure."""
    signer = seen.trust.authorities.signer
    if signer is None or (before is not None and signer.fingerprint in before):
        return ["the new authority"]
    late = []
    for member in seen.members:
        shown = seen.trust.nodes.get(member.node)
        if shown is None or shown.own or not shown.fingerprint:
            continue  # nothing to wait for
        if shown.round < round or shown.authority != signer.fingerprint:
            late.append(f"{member.node} ({shown.problem})" if shown.problem else str(member.node))
    return late


async def _wait(
    args: argparse.Namespace, look: Callable[[], Awaitable[Seen]], lacking: Callable[[Seen], Sequence[str]]
) -> Reply:
    """Until every node has followed."""
    until = time.monotonic() + args.wait
    if args.no_wait:
        return done("asked for; nodes follow within seconds: flypg tls show", {"done": False})
    while late := lacking(seen := await look()):
        if time.monotonic() > until:
            text = f"asked for, and not followed yet by {', '.join(late)}; flypg tls show tells when it is"
            return Reply(Exit.TIMED_OUT, text)
        await asyncio.sleep(LOOK_EVERY_S)
    own = sorted(node for node, shown in seen.trust.nodes.items() if shown.own)
    lines = ["every node has a new certificate; no connection was dropped"]
    if own:
        lines.append(f"left alone, since their operator brings the certificate: {', '.join(own)}")
    if len(seen.trust.authorities.trusted) > 1:
        lines.append("clients that verify: give them what `flypg tls ca` prints now, then flypg tls retire")
    return done("\n".join(lines), {"done": True, "left_alone": own})


def retire(args: argparse.Namespace) -> Reply:
    """flypg tls retire [--yes]"""

    async def work(store: TrustStore, look: Callable[[], Awaitable[Seen]]) -> Reply:
        seen = await look()
        agreed = seen.trust.authorities
        if len(agreed.trusted) < 2:
            return done("no old authority is trusted; nothing to do", {"done": True})
        if late := missing(seen, 0):
            raise Refused(
                f"certificates of {', '.join(late)} are still signed by the old authority: see flypg tls show"
            )
        if not args.yes:
            warning = "Clients that verify and know only the old authority will fail. Give them `flypg tls ca` before."
            confirm(warning, typed="retire", unless="--yes")
        wanted = retired(agreed)
        await store.put(wanted)
        return await _wait(args, look, lambda now: missing(now, wanted.round))

    return _with_trust(args, work)


def retired(agreed: Authorities) -> Authorities:
    """Only the authority that signs is trusted, and nobody vouches for it any more. Pure."""
    return replace(agreed, trusted=(replace(agreed.trusted[0], cross=""),), round=agreed.round + 1)
