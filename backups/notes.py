"""What the nodes of a cluster tell each other about backups, in etcd: one lease to work under, and how it went.

/flypg/<cluster>/backups/path/<system id>    the incarnation that this cluster archives under, chosen once
/flypg/<cluster>/backups/lease               under a lease: the node that takes a snapshot or deletes old ones
/flypg/<cluster>/backups/history/<node>      how snapshots have gone; no node: of the repository that all share
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from backups.catalog import parse_json
from backups.layout import FORMAT_VERSION
from backups.policy import RunHistory
from cluster.codec import encode
from cluster.errors import OutcomeUnknown, StoreUnavailable
from cluster.etcd import Etcd
from cluster.etcd_values import Created, Delete, Get, KeyValue, LeaseGone, Modified, Put
from cluster.keys import Keys
from cluster.model import Event

LEASE_S = 30.0


@dataclass(frozen=True, slots=True)
class WorkLease:
    """The right to work on the repository, for as long as it is renewed."""

    lease: int
    created: int  # revision


class Notes:
    """Calls raise StoreUnavailable or OutcomeUnknown."""

    def __init__(self, etcd: Etcd, cluster: str, seen: Callable[[], int] = lambda: 0) -> None:
        """`seen`: the last revision of etcd that is known, after which events sort."""
        self._etcd = etcd
        self._keys = Keys(cluster)
        self._prefix = f"{self._keys.prefix}backups/"
        self._seen = seen
        self._told = 0

    async def incarnation(self, system_id: str, fresh: str) -> str:
        """The incarnation of this cluster's path; `fresh` (8 hexadecimal digits) becomes it when there is none."""
        key = f"{self._prefix}path/{system_id}"
        found = await self._etcd.get(key)
        if found is None:
            made = await self._etcd.transaction((Created(key, 0),), (Put(key, fresh.encode()),), (Get(key),))
            if made.succeeded:
                return fresh
            found = made.found[0].first
        if found is None:
            raise StoreUnavailable(f"{key} vanished while it was read")
        return found.value.decode()

    async def known_incarnation(self, system_id: str) -> str:
        """The incarnation of this cluster's path; "" when nothing was archived yet."""
        found = await self._etcd.get(f"{self._prefix}path/{system_id}")
        return found.value.decode() if found else ""

    async def take(self, node: str) -> WorkLease | None:
        """The right to work, unless another node has it (None)."""
        key = f"{self._prefix}lease"
        lease = await self._etcd.grant(LEASE_S)
        try:
            made = await self._etcd.transaction((Created(key, 0),), (Put(key, node.encode(), lease),), ())
        except OutcomeUnknown:
            await self._etcd.revoke(lease)
            raise
        if made.succeeded:
            return WorkLease(lease, made.revision)
        await self._etcd.revoke(lease)
        return None

    async def holder(self) -> str:
        """The node that works now; "" when none does."""
        found = await self._etcd.get(f"{self._prefix}lease")
        return found.value.decode() if found else ""

    async def renew(self, work: WorkLease) -> bool:
        """False: the lease has run out, and somebody else may work."""
        try:
            return await self._etcd.keep_alive(work.lease) > 0
        except LeaseGone:
            return False

    async def release(self, work: WorkLease) -> None:
        await self._etcd.revoke(work.lease)

    async def read_history(self, repository: str = "") -> RunHistory:
        """`repository`: the node that a repository belongs to, "" when all nodes share one."""
        return _decoded(await self._etcd.get(f"{self._prefix}history/{repository}"))

    async def change_history(
        self, change: Callable[[RunHistory], RunHistory], repository: str = "", event: Event | None = None
    ) -> RunHistory:
        """Remember how it has gone, and return what is known then; `event` is told to everybody with it.

        Nodes write it at the same time, one of its snapshot and another of its archive: neither undoes the other.
        """
        key = f"{self._prefix}history/{repository}"
        told = [] if event is None else [self._event(event)]
        while True:
            found = await self._etcd.get(key)
            history = change(_decoded(found))
            body = json.dumps({"format_version": FORMAT_VERSION, **asdict(history)}).encode()
            same = Modified(key, found.modified if found else 0)
            if (await self._etcd.transaction((same,), (Put(key, body), *told), ())).succeeded:
                return history

    async def tell(self, event: Event) -> None:
        """Add an event to the cluster's history. The sentinels keep that short."""
        await self._etcd.transaction((), (self._event(event),), ())

    def _event(self, event: Event) -> Put:
        self._told += 1
        key = self._keys.event(self._seen(), self._told, f"{event.node}-backups")
        return Put(key, encode(event))

    async def forget_path(self, system_id: str) -> None:
        """Let the next archiving begin a new path: after a restore in place, the old history must stay as it is."""
        await self._etcd.transaction((), (Delete(f"{self._prefix}path/{system_id}"),), ())


def _decoded(found: KeyValue | None) -> RunHistory:
    if found is None:
        return RunHistory()
    known = {f.name for f in fields(RunHistory)}  # a node of a newer version may know more
    return RunHistory(**{k: v for k, v in parse_json(found.value, found.key).items() if k in known})
