"""Whose words a volume carries: they bind the node that gave them, in the cluster it gave them to, and nobody else.

What a keeper has promised lies in state.json. Its volume may wake elsewhere: as a fork, from a snapshot of another
cluster, under another name, or under the same names in a cluster that begins anew. A promise of term 7 would keep the
node out of term 1 there for ever; forgotten in the cluster that relies on it, it could cost a commit. identity.json
says whose words they are, and only this module decides what becomes of them. The data needs no treatment: the sentinel
founds a cluster with what a node brings, PostgreSQL never starts with an open gate, and passwords are set anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.codec import decode, encode
from cluster.errors import FlypgError, InstanceError
from cluster.model import Disk, NodeId, Snapshot
from postgres.files import read_or_empty, write_atomically

MARKER = "restore.lock"  # of Fly's own app: the name of the cluster that has taken the volume over
LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Identity:
    """Who keeps a volume. `restored_from`: what the cluster says it begins with (FLY_RESTORED_FROM); "": nothing."""

    cluster: str
    node: str
    restored_from: str = ""


def newly_restored(before: Identity | None, mine: Identity) -> bool:
    """Is this the first start with the volume or snapshot that the cluster is to begin with? Pure."""
    return bool(mine.restored_from) and (before is None or before.restored_from != mine.restored_from)


def what_binds(words: Disk, before: Identity | None, mine: Identity, *, known: bool) -> Disk:
    """What of `words` binds `mine`. That a copy of the data was left unfinished always stays. Pure.

    `known`: the cluster counts this node among its members, so these words may have been given to it; only of
    importance when the volume is newly restored. `before` None: the words are from an agent that noted no identity.
    """
    restored = newly_restored(before, mine)
    if restored and not known:
        return Disk(copying=words.copying)
    if before is None or (before.cluster, before.node) == (mine.cluster, mine.node):
        return words
    return Disk(copying=words.copying, floor=words.floor if before.cluster == mine.cluster else None)


def doubtful(state: Path, mine: Identity) -> bool:
    """Do the names leave open whether the words in `state` were given to this cluster? Then ask it: `counted`.

    Raises InstanceError.
    """
    before = _noted(state, mine)
    same = before is not None and before.cluster == mine.cluster
    return same and newly_restored(before, mine) and state.exists()


def settle(state: Path, mine: Identity, log: logging.Logger, *, known: bool = False) -> bool:
    """Make the words in `state` those of `mine`; see `what_binds`. True: some were void.

    May be cut off anywhere, and is simply done again. Raises InstanceError, StoredFormatError.
    """
    file, marker = state.with_name("identity.json"), state.with_name(MARKER)
    before = _noted(state, mine)
    if not mine.restored_from and before is not None and before.cluster == mine.cluster:
        mine = replace(mine, restored_from=before.restored_from)  # the setting may go once it has done its work
    changed = False
    try:
        if before != mine and state.exists():
            words = decode(Disk, state.read_bytes(), str(state))
            kept = what_binds(words, before, mine, known=known)
            if changed := kept != words:
                aside = state.with_name("state.before.json")
                write_atomically(aside, encode(words).decode(), owner=None, durable=True)
                write_atomically(state, encode(kept).decode(), owner=None, durable=True)
                was = None if before is None else asdict(before)
                log.warning("this volume was another node's", extra={"was": was, "is": asdict(mine)})
        if before != mine or not file.exists():
            write_atomically(file, json.dumps(asdict(mine)), owner=None, durable=True)
        if mine.restored_from and read_or_empty(marker).strip() != mine.cluster:  # Fly's app looks at it, we do not
            write_atomically(marker, f"{mine.cluster}\n", owner=None, durable=True, mode=0o644)
    except OSError as error:
        raise InstanceError(f"{error.filename} cannot be used: {error.strerror}") from error
    return changed


def _noted(state: Path, mine: Identity) -> Identity | None:
    """Whose the volume was; None: nobody has noted it. Agents before this one noted a restored volume in the marker."""
    file = state.with_name("identity.json")
    try:
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        marked = read_or_empty(state.with_name(MARKER)).strip()
        done = mine.restored_from if marked == mine.cluster else ""
        if found:
            return Identity(str(found["cluster"]), str(found["node"]), str(found.get("restored_from", done)))
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise InstanceError(f"{file} cannot be used: {error}") from error
    return mine if done else None


async def counted(read: Callable[[], Awaitable[Snapshot]], node: str) -> bool:
    """Does the cluster count `node` among its members? Waits for etcd, without which nothing can be founded either."""
    while True:
        try:
            view = (await read()).view
            return view is not None and view.member(NodeId(node)) is not None
        except FlypgError:
            await asyncio.sleep(LOOK_S)
