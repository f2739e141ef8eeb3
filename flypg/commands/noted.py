"""What was done by hand is known to the agents: to `flypg status`, metrics and the schedule."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable

from backups.policy import RunHistory
from cluster.errors import OutcomeUnknown, StoreUnavailable
from cluster.store import OperatorStore
from flypg.reply import BadInput, Reply, done
from flypg.target import Target, with_store


def tell_nodes(
    args: argparse.Namespace, whose: str, system_id: str, change: Callable[[RunHistory], RunHistory]
) -> None:
    """Change what is remembered of backups, if they are of the cluster's own system. `whose`: the node that has the
    repository for itself, "" when it is shared. Without etcd they learn of it with the next snapshot."""
    from backups.notes import Notes
    from cluster.etcd import Etcd

    async def tell(store: OperatorStore, target: Target) -> Reply:
        view = (await store.read()).view
        if view is not None and view.system_id == system_id:
            etcd = Etcd(target.etcd)
            try:
                await Notes(etcd, target.cluster).change_history(change, whose)
            finally:
                await etcd.close()
        return done("")

    with contextlib.suppress(StoreUnavailable, OutcomeUnknown, BadInput):
        with_store(args, tell)
