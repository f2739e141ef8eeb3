"""Replication slots: one for every other member on every node, so that a failover costs no standby its WAL."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.model import NodeId, format_lsn, slot_name
from postgres import queries
from postgres.connection import Connection, bounded, helper
from postgres.parts import Parts

OURS = "flypg_"


async def keep(parts: Parts, nodes: frozenset[NodeId]) -> None:
    """A slot for each of `nodes` but ourselves; slots of ours for anybody else go, unless they are in use."""
    wanted = {slot_name(n) for n in nodes if n != parts.me}

    async def change(connection: Connection) -> None:
        present = {s.name: s for s in await queries.slots(connection)}
        for name in sorted(wanted - present.keys()):
            await queries.create_slot(connection, name)
        for name in sorted(present.keys() - wanted):
            if not present[name].active:
                await queries.drop_slot(connection, name)

    await parts.session.ask(change, 5.0)


async def add(parts: Parts, nodes: frozenset[NodeId]) -> None:
    """A slot for each of `nodes`; others stay as they are."""

    async def change(connection: Connection) -> None:
        present = {s.name for s in await queries.slots(connection)}
        for name in sorted({slot_name(n) for n in nodes if n != parts.me} - present):
            await queries.create_slot(connection, name)

    await parts.session.ask(change, 5.0)


async def advance(parts: Parts, restart_lsns: Mapping[NodeId, int]) -> None:
    """Move the slots of a standby up to where those of the primary are, as far as it has replayed."""
    by_name = {slot_name(node): lsn for node, lsn in restart_lsns.items()}

    async def change(connection: Connection) -> None:
        replayed = (await queries.standby(connection)).replayed or 0
        for slot in await queries.slots(connection):
            target = min(by_name.get(slot.name, 0), replayed)
            if not slot.active and slot.restart is not None and target > slot.restart:
                await queries.advance_slot(connection, slot.name, format_lsn(target))

    async with helper(parts.config, "flypg_slots") as connection:  # it runs beside the keeper's turns
        await bounded(connection, change(connection), 5.0)
