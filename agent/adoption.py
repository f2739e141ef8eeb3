"""Before a node starts: whose data it has, under which name it gave its word, and whether it may found a cluster."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from agent.keeper import Keeper
from agent.reader import SharedStore
from cluster.codec import decode, encode
from cluster.errors import FlypgError, InstanceError, StoreConflict
from cluster.model import Disk, Member, Phase
from postgres import adoption
from postgres.adoption import Found
from postgres.config import InstanceConfig
from postgres.files import write_atomically

LOOK_S = 0.5


def take_over(config: InstanceConfig, log: logging.Logger) -> Found | None:
    """Take over what somebody else left in PGDATA. None: nothing was there, or it is ours. Raises InstanceError."""
    found = adoption.inspect(config)
    if found is not None:
        adoption.take_over(config, found)
        log.info("taking over a data directory", extra={"pgdata": str(config.pgdata), "kind": found.kind})
        for line in found.left_out:
            log.warning("not carried over from pg_hba.conf", extra={"line": line})
    return found


def settle_identity(state: Path, cluster: str, node: str, log: logging.Logger) -> None:
    """Words given under another name or to another cluster do not bind this node: its volume is a copy, or a snapshot.

    What says that a copy of the data is unfinished stays. Raises InstanceError, StoredFormatError.
    """
    file = state.with_name("identity.json")
    mine = {"cluster": cluster, "node": node}
    try:
        before = json.loads(file.read_text()) if file.exists() else mine
        if file.exists() and before == mine:
            return
        if before != mine and state.exists():
            words = decode(Disk, state.read_bytes(), str(state))
            same = before.get("cluster") == cluster
            write_atomically(state.with_name("state.before.json"), encode(words).decode(), owner=None, durable=True)
            kept = Disk(copying=words.copying, floor=words.floor if same else None)
            write_atomically(state, encode(kept).decode(), owner=None, durable=True)
            log.warning("this volume was another node's", extra={"was": before, "is": mine})
        write_atomically(file, json.dumps(mine), owner=None, durable=True)
    except (OSError, ValueError, AttributeError) as error:
        raise InstanceError(f"{file} cannot be used: {error}") from error


def held_back(member: Member, restored_from: str, *, has_data: bool) -> Member:
    """A node without data must not found a cluster that is to begin with somebody's data. Pure."""
    return replace(member, nofailover=True) if restored_from and not has_data else member


async def let_go(keeper: Keeper, store: SharedStore, member: Member, ring: Callable[[], None]) -> None:
    """Once the cluster stands, a node that was held back is one like any other."""
    while keeper.member != member:
        view = store.snapshot.view if store.snapshot is not None else None
        if view is not None and view.phase is Phase.OPEN:
            keeper.member = member
            ring()
            return
        await asyncio.sleep(LOOK_S)


async def seed_settings(store: SharedStore, found: Found | None, log: logging.Logger) -> None:
    """What an operator had set in a data directory that was taken over becomes the cluster's wish, if it has none."""
    if found is None:
        return
    while True:
        try:
            snap = await store.read()
            founded = snap.view is not None and snap.view.phase is not Phase.FOUNDING
            if founded or snap.spec.parameters or snap.spec.hba:
                return
            await store.put_spec(
                replace(snap.spec, parameters=found.parameters, hba=found.hba), read_at=snap.spec_revision
            )
            log.info("settings taken over", extra={"names": [name for name, _ in found.parameters]})
            return
        except StoreConflict:
            continue  # somebody wrote at the same moment: look at what
        except FlypgError:
            await asyncio.sleep(LOOK_S)
