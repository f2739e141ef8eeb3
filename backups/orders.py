"""The order to restore a whole cluster in place: one value in etcd that every agent carries out, each its part.

/flypg/<cluster>/backups/order               what is to be restored; stays as the record of the last restore
/flypg/<cluster>/backups/order-stage         how far it is, written by the node that restores

Theory of operation. Whoever asks writes the order. Each agent that sees an order it has not carried out ends its node,
PostgreSQL first, and starts anew; before a node starts, its part is done (`agent/in_place.py`). The node that is named
restores beside its old data, so that until then nothing is lost and the order can be withdrawn. Then it changes the
directories, and in one transaction the old cluster's view, promises and requests go, the order's stage becomes `done`,
and the next archiving begins a path of its own. The others wait for that stage, move their data aside, and start empty:
they copy from the restored node. All of it may be cut off anywhere and is simply done again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

from backups.catalog import parse_json
from backups.layout import FORMAT_VERSION
from backups.restore_plan import Target, TargetKind
from cluster.codec import encode
from cluster.errors import StoredFormatError
from cluster.etcd import Etcd
from cluster.etcd_values import Delete, Get, KeyValue, Modified, Put
from cluster.keys import Keys
from cluster.model import Event


class Stage(StrEnum):
    ASKED = "asked"
    RESTORING = "restoring"
    FAILED = "failed"  # and tried again, until it works or is withdrawn
    CHANGING = "changing"  # the directories are being changed: it cannot be withdrawn any more
    DONE = "done"


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """What is to be restored. `node` does it; the others then copy from it."""

    id: str
    node: str
    path: str  # of the repository
    snapshot: str
    kind: str  # of the target, as in TargetKind
    text: str
    time: float
    lsn: int
    timeline: int  # the line that is followed
    inclusive: bool
    keep: bool  # move old data directories aside rather than remove them
    asked_by: str
    asked_at: float

    @property
    def target(self) -> Target:
        return Target(TargetKind(self.kind), self.text, self.time, self.lsn)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an order is. `revision`: of etcd, at which that was written; 0 means never."""

    order: str
    stage: Stage
    text: str = ""
    revision: int = 0


class Orders:
    """Calls raise StoreUnavailable, OutcomeUnknown or StoredFormatError."""

    def __init__(self, etcd: Etcd, cluster: str) -> None:
        self._etcd = etcd
        self._keys = Keys(cluster)
        self._order = f"{self._keys.prefix}backups/order"
        self._stage = f"{self._keys.prefix}backups/order-stage"

    async def read(self) -> RestoreOrder | None:
        """The last order; None: there never was one."""
        return _order(await self._etcd.get(self._order))

    async def progress(self, order: RestoreOrder) -> Progress:
        found = await self._etcd.get(self._stage)
        body = parse_json(found.value, found.key) if found is not None else {}
        if found is None or body.get("order") != order.id:
            return Progress(order.id, Stage.ASKED, revision=found.modified if found is not None else 0)
        return Progress(order.id, Stage(body["stage"]), str(body["text"]), found.modified)

    async def give(self, order: RestoreOrder) -> RestoreOrder | None:
        """Give the order. None: given; else the one that is under way, and nothing was changed."""
        before = await self._etcd.get(self._order)
        old = _order(before)
        if old is not None and (await self.progress(old)).stage is not Stage.DONE:
            return old
        body = json.dumps({"format_version": FORMAT_VERSION, **asdict(order)}).encode()
        same = Modified(self._order, before.modified if before is not None else 0)
        done = await self._etcd.transaction((same,), (Put(self._order, body),), (Get(self._order),))
        return None if done.succeeded else _order(done.found[0].first)

    async def withdraw(self, order: RestoreOrder) -> bool:
        """False: its directories are being changed or it is done, or it is another's."""
        at = await self._etcd.get(self._order)
        found, now = _order(at), await self.progress(order)
        if at is None or found is None or found.id != order.id or now.stage in (Stage.CHANGING, Stage.DONE):
            return False
        same = (Modified(self._order, at.modified), Modified(self._stage, now.revision))
        done = await self._etcd.transaction(same, (Delete(self._order), Delete(self._stage)), ())
        return bool(done.succeeded)

    async def tell(self, order: RestoreOrder, stage: Stage, text: str) -> None:
        """How far it is. Written when that changes, never because time goes by."""
        now = await self.progress(order)
        if (now.stage, now.text) != (stage, text) and now.stage not in (Stage.CHANGING, Stage.DONE):
            same = Modified(self._stage, now.revision)
            await self._etcd.transaction((same,), (self._put(order, stage, text),), ())

    async def begin_change(self, order: RestoreOrder) -> bool:
        """The restored data is complete: from here on there is no way back. False: the order was withdrawn."""
        at = await self._etcd.get(self._order)
        found, now = _order(at), await self.progress(order)
        if at is None or found is None or found.id != order.id:
            return False
        if now.stage in (Stage.CHANGING, Stage.DONE):
            return True
        same = (Modified(self._order, at.modified), Modified(self._stage, now.revision))
        put = self._put(order, Stage.CHANGING, f"{order.node} puts the restored data in place")
        return bool((await self._etcd.transaction(same, (put,), ())).succeeded)

    async def finish(self, order: RestoreOrder, system_id: str, event: Event) -> bool:
        """The restored data is in place: the old cluster's state goes, at once. False: the order was withdrawn."""
        at = await self._etcd.get(self._order)
        found, now = _order(at), await self.progress(order)
        if at is None or found is None or found.id != order.id:
            return False
        if now.stage is Stage.DONE:
            return True
        keys, backups = self._keys, f"{self._keys.prefix}backups/"
        done = await self._etcd.transaction(
            (Modified(self._order, at.modified), Modified(self._stage, now.revision)),
            (
                Delete(keys.view),
                Delete(keys.state, f"{keys.prefix}nodes0"),  # promises; reports come anew
                Delete(keys.requests, keys.requests_end),
                Delete(f"{backups}path/{system_id}"),
                Delete(f"{backups}history/", f"{backups}history0"),
                self._put(order, Stage.DONE, event.text),
                Put(keys.event(at.modified, 0, f"{order.node}-restore"), encode(event)),
            ),
            (),
        )
        return bool(done.succeeded)

    def _put(self, order: RestoreOrder, stage: Stage, text: str) -> Put:
        body = {"format_version": FORMAT_VERSION, "order": order.id, "stage": stage, "text": text}
        return Put(self._stage, json.dumps(body).encode())


def _order(found: KeyValue | None) -> RestoreOrder | None:
    if found is None:
        return None
    body = parse_json(found.value, found.key)
    if set(body) != {f.name for f in fields(RestoreOrder)}:
        raise StoredFormatError(f"{found.key}: not an order that this flypg knows: upgrade it on this node")
    return RestoreOrder(**body)
