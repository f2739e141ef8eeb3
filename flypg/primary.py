"""For commands that work inside the database: the cluster's primary, entered directly as flypg's own superuser.

The password is that of the cluster: for a local one from its directory, on a node from its settings or from
secrets.json in its data directory, elsewhere from SU_PASSWORD.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import values as read
from cluster.errors import PostgresUnavailable
from cluster.model import Member, Phase, Snapshot
from cluster.settings import load_values
from cluster.store import OperatorStore
from flypg import local
from flypg.reply import BadInput, Exit, Refused, Reply
from flypg.target import Target, with_store

PASSWORD = "SU_PASSWORD"


@dataclass(frozen=True, slots=True)
class Primary:
    """The primary that a command talks to."""

    target: Target
    store: OperatorStore
    snapshot: Snapshot
    member: Member
    password: str


def serving(snapshot: Snapshot) -> Member:
    """The primary, when it serves clients. Raises Refused."""
    view = snapshot.view
    primary = view.member(view.primary) if view is not None else None
    if view is None or primary is None or view.phase is not Phase.OPEN:
        raise Refused("there is no primary that serves clients at the moment (flypg status says why)")
    return primary


def password_of(args: argparse.Namespace, name: str = PASSWORD) -> str:
    """Of flypg's own superuser, or another of the cluster's. Raises BadInput when it cannot be found."""
    values = load_values(dict(os.environ))
    named = args.etcd or args.cluster or (values.get("FLYPG_ETCD_ENDPOINTS") and not args.dir)
    if not named:
        layout = local.load(local.root_of(args.dir))
        if layout is not None:
            return local.passwords(layout)[name]
    if given := read.secret(values, name):
        return given
    file = Path(values.get("FLYPG_DATA_DIR", "/data")) / "secrets.json"
    try:
        return str(json.loads(file.read_text())[name])
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"the cluster's {name} is needed for this: run it on a node, or set {name} ({file}: {error})"
        ) from None


def with_primary(args: argparse.Namespace, work: Callable[[Primary], Awaitable[Reply]]) -> Reply:
    """Run a command's `work` against the primary of the cluster it addresses."""
    password = password_of(args)

    async def found(store: OperatorStore, target: Target) -> Reply:
        snapshot = await store.read()
        primary = Primary(target, store, snapshot, serving(snapshot), password)
        try:
            return await work(primary)
        except PostgresUnavailable as error:
            return Reply(Exit.UNREACHABLE, f"the primary {primary.member.node}: {error}")

    return with_store(args, found)
