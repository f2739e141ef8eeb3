"""Every node's own word for the page: GET /node of each, by hand, and only while somebody looks at the page."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from cluster.model import Member, NodeId, Snapshot

ASK_S = 0.8
LIMIT = 1 << 20


async def ask(member: Member) -> dict[str, Any] | None:
    """The answer of `GET /node`; None when there is none in time."""
    try:
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_connection(member.host, member.ports.http, limit=LIMIT)
            try:
                writer.write(b"GET /node HTTP/1.0\r\nHost: node\r\nConnection: close\r\n\r\n")
                await writer.drain()
                answer = await reader.read(-1)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    _, _, body = answer.partition(b"\r\n\r\n")
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("node") == member.node else None


async def ask_all(snapshot: Snapshot | None, me: NodeId) -> dict[NodeId, dict[str, Any] | None]:
    """Every member but `me`."""
    view = snapshot.view if snapshot is not None else None
    others = [member for member in (view.members if view is not None else ()) if member.node != me]
    answers = await asyncio.gather(*(ask(member) for member in others))
    return dict(zip((member.node for member in others), answers, strict=True))
