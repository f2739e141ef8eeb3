"""Before a node starts: what data it has, and whether it may found a cluster with it. For its words: identity.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from agent.keeper import Keeper
from agent.reader import SharedStore
from cluster.errors import FlypgError, StoreConflict
from cluster.model import Member, Phase
from postgres import adoption
from postgres.adoption import Found
from postgres.config import InstanceConfig

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
