"""The operator's side of etcd for commands: changed wishes, requests with their answers, and who asked for what."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from cluster.errors import FlypgError, OutcomeUnknown, StoreConflict
from cluster.model import Event, NodeId, Request, RequestKind, Spec
from healthchecks.commands.route import Call, CommandError

log = logging.getLogger(__name__)

TRIES = 5
POLL_S = 0.1


def event(call: Call, term: int, text: str) -> Event:
    return Event(call.provider.clock.wall(), term, "command", text, node=call.provider.node(), by=call.who)


async def change_spec(call: Call, change: Callable[[Spec], Spec], text: str) -> Spec:
    """Change the operator's wishes and note who asked. Raises CommandError."""
    store = call.provider.store()
    try:
        for _ in range(TRIES):
            snapshot = await store.read()
            spec = change(snapshot.spec)
            term = snapshot.view.term if snapshot.view is not None else 0
            try:
                await store.put_spec(spec, read_at=snapshot.spec_revision, events=(event(call, term, text),))
                return spec
            except StoreConflict:
                continue  # somebody else wrote first: change what they wrote
    except OutcomeUnknown as error:
        raise CommandError(503, f"etcd did not say whether it was done; look before trying again: {error}") from error
    except FlypgError as error:
        raise CommandError(503, f"etcd cannot be asked: {error}") from error
    raise CommandError(409, f"somebody else changed the settings {TRIES} times meanwhile; try again")


async def note(call: Call, text: str) -> None:
    """An event in the cluster's history. It tells of what has happened, so it is only logged when etcd is silent."""
    log.info("command", extra={"text": text, "by": call.who})
    try:
        await change_spec(call, lambda spec: spec, text)
    except CommandError as error:
        log.warning("event_not_written", extra={"text": text, "by": call.who, "error": str(error)})


async def ask(call: Call, kind: RequestKind, node: NodeId | None, wait_s: float) -> str:
    """Leave a request and wait for its answer, "done: …" or "refused: …"; "" when there is none in time.

    Raises CommandError when etcd cannot be asked."""
    store = call.provider.store()
    request = Request(secrets.token_hex(8), kind, node, asked_by=call.who)
    deadline = time.monotonic() + wait_s
    try:
        await store.add_request(request)
        while time.monotonic() < deadline:
            current = await store.read_request(request.id)
            if current is not None and current.outcome:
                return current.outcome
            await asyncio.sleep(POLL_S)
    except FlypgError as error:
        raise CommandError(503, f"etcd cannot be asked: {error}") from error
    return ""
