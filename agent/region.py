"""PRIMARY_REGION of the environment becomes the cluster's, once, when the cluster has no spec yet."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from agent.reader import SharedStore
from cluster.errors import FlypgError, StoreConflict

LOOK_S = 0.5


async def seed_region(store: SharedStore, region: str, log: logging.Logger) -> None:
    """Write the first spec with this primary region; say so when the cluster's is another one."""
    if not region:
        return
    while True:
        try:
            snap = await store.read()
            if snap.spec_revision == 0:
                await store.put_spec(replace(snap.spec, primary_region=region), read_at=0)
        except StoreConflict:
            continue  # another node was first: see what it wrote
        except FlypgError:
            await asyncio.sleep(LOOK_S)
            continue
        if snap.spec_revision and snap.spec.primary_region != region:
            log.warning(
                "PRIMARY_REGION differs from the cluster's: flypg spec set primary_region=… changes it",
                extra={"here": region, "cluster": snap.spec.primary_region or "(every region)"},
            )
        return
