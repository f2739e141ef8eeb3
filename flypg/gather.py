"""Asks the nodes themselves how they are, all at once and briefly: what `flypg status` shows as live."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from cluster.model import Member, NodeId, Snapshot
from flypg.look import Looks, NodeLook, parse_look

ASK_S = 1.0  # a node that is slower than this shows what it last reported


async def look_at(snapshot: Snapshot) -> Looks:
    """A fresh look at every node that is known; None for one that does not answer."""
    members = {m.node: m for m in (snapshot.view.members if snapshot.view else ())}
    members |= {node: report.member for node, report in snapshot.reports.items()}
    return await ask_all(members.values())


async def ask_all(members: Iterable[Member]) -> Looks:
    everyone = list(members)
    answers = await asyncio.gather(*(ask(member) for member in everyone))
    return dict(zip([NodeId(m.node) for m in everyone], answers, strict=True))


async def ask(member: Member) -> NodeLook | None:
    """`GET /node` of one node, by hand: an HTTP library would take longer to import than the answer takes to come."""
    try:
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_connection(member.host, member.ports.http)
            try:
                host = f"[{member.host}]" if ":" in member.host else member.host
                writer.write(f"GET /node HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                answer = await reader.read(-1)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    return parse_look(body) if b" 200 " in head.split(b"\r\n", 1)[0] + b" " else None
