"""What etcd holds of the cluster's state, kept up to date by what a watch tells, and made into snapshots.

Theory of operation. A range read brings everything as of one revision. A watch tells every later change, whole
revisions at a time and in order; together they are what a read now would bring, without one. That holds when the read
was begun after the watch stood, and as long as it stands: what the watch tells before the read has answered is kept and
added to it; when the watch breaks or begins anew (`lost`), everything starts again with a read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from cluster import codec
from cluster.etcd_values import Changes, Found, KeyValue
from cluster.keys import Keys
from cluster.model import Leadership, NodeId, NodeReport, Promise, Request, Snapshot, Spec, View

T = TypeVar("T", View, Spec, NodeReport, Promise, Request)


MOST_KEPT = 1000  # changes that wait for a read; with more a later read is needed


class Mirror:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._items: dict[str, KeyValue] = {}
        self._decoded: dict[str, tuple[bytes, object]] = {}  # by key: what is unchanged is not decoded twice
        self._whole = False  # is everything here that etcd holds, as far as the watch has told?
        self._early: list[Changes] = []  # told before the read that they belong to has answered
        self.watched = 0  # how often a watch has begun or broken; a read belongs to the one at its beginning
        self.revision = 0  # of what is held
        self.requests: dict[str, tuple[Request, int]] = {}  # as last seen, with their revisions

    def lost(self) -> None:
        """The watch begins or breaks: changes may have been missed, only a read that begins now can be added to."""
        self.watched += 1
        self._whole = False
        self._early.clear()

    def take(self, found: Found, watched: int) -> None:
        """Hold what a read of the whole state found. `watched`: as it was when the read began."""
        if self._whole and found.revision <= self.revision:
            return  # the watch was faster
        self._items = {item.key: item for item in found.items}
        self.revision = found.revision
        self._whole = 0 < watched == self.watched
        if self._whole:
            for changes in self._early:
                self._add(changes)
            self._early.clear()

    def follow(self, changes: Changes) -> bool:
        """Hold what the watch has told. False: a read must come first."""
        if self._whole:
            self._add(changes)
        elif len(self._early) < MOST_KEPT:
            self._early.append(changes)
        else:
            self.lost()
        return self._whole

    def _add(self, changes: Changes) -> None:
        if changes.revision <= self.revision:
            return
        for item in changes.items:
            if item.modified > self.revision:
                self._items[item.key] = item
        for key, revision in changes.gone:
            if revision > self.revision:
                self._items.pop(key, None)
        self.revision = changes.revision

    def promise(self, node: NodeId) -> tuple[int, Promise | None]:
        """The promise of `node`, and its revision; 0 and None without one. Raises StoredFormatError."""
        item = self._items.get(self._keys.promise(node))
        return (item.modified, self.decode(Promise, item)) if item else (0, None)

    def snapshot(self) -> Snapshot:
        """Everything but the history, as of one revision. Raises StoredFormatError."""
        items = self._items
        view, spec, leader = items.get(self._keys.view), items.get(self._keys.spec), items.get(self._keys.leader)
        reports: dict[NodeId, NodeReport] = {}
        promises: dict[NodeId, Promise] = {}
        requests: list[tuple[Request, int]] = []
        for key, item in items.items():
            if key.startswith(self._keys.state) and key.endswith("/report"):
                report = self.decode(NodeReport, item)
                reports[report.node] = report
            elif key.startswith(self._keys.state) and key.endswith("/promise"):
                promise = self.decode(Promise, item)
                promises[promise.node] = promise
            elif key.startswith(self._keys.requests):
                requests.append((self.request(item), item.modified))
        self._decoded = {key: kept for key, kept in self._decoded.items() if key in items}
        self.requests = {request.id: (request, revision) for request, revision in requests}
        return Snapshot(
            revision=self.revision,
            view=self.decode(View, view) if view else None,
            view_revision=view.modified if view else 0,
            spec=self.decode(Spec, spec) if spec else Spec(),
            spec_revision=spec.modified if spec else 0,
            reports=reports,
            promises=promises,
            requests=tuple(sorted((r for r, _ in requests), key=lambda r: (r.created_revision, r.id))),
            leader=Leadership(leader.value.decode(), leader.created) if leader else None,
        )

    def decode(self, kind: type[T], item: KeyValue) -> T:
        """The value of a key. Raises StoredFormatError."""
        kept = self._decoded.get(item.key)
        if kept is not None and kept[0] == item.value and isinstance(kept[1], kind):
            return kept[1]
        value = codec.decode(kind, item.value, item.key)
        self._decoded[item.key] = (item.value, value)
        return value

    def request(self, item: KeyValue) -> Request:
        return replace(self.decode(Request, item), created_revision=item.created)
