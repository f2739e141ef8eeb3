"""The agreed state of the cluster in etcd: what cluster/store.py promises, kept by a real etcd.

Theory of operation. What must not be overwritten is written by comparison with the revision it was read at; what only
this node writes (its report, its promise) is repeated until it is known to be there. A report lives under the node's
lease: when the lease is lost, through silence or through an outage of etcd, the next renewal takes a new one and puts
the last report under it, before it says that the lease is held. Reading never writes: an idle cluster costs etcd no
raft entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Never, TypeVar

from cluster import codec
from cluster.clock import Clock
from cluster.errors import OutcomeUnknown, StoreConflict, StoredFormatError
from cluster.etcd import Etcd
from cluster.etcd_values import Changes, Comparison, Created, Delete, Get, LeaseGone, Modified, Operation, Put
from cluster.keys import Keys
from cluster.mirror import Mirror
from cluster.model import (
    Event,
    Leadership,
    LeaseProof,
    NodeId,
    NodeReport,
    Promise,
    Request,
    Snapshot,
    Spec,
    View,
)

HISTORY = 500  # events that are kept
ANSWERED = 50  # answered requests that are kept, for whoever asked
TRIM_EVERY = 64  # written events between two looks at how long the history is
TRIES = 3

T = TypeVar("T", View, Spec, NodeReport, Promise, Request)


class EtcdStore:
    """KeeperStore, SentinelStore, OperatorStore and LeaseKeeper of one process: an agent, a witness or a command."""

    def __init__(
        self,
        etcd: Etcd,
        cluster: str,
        me: NodeId,
        *,
        clock: Clock,
        ttl_s: float = 10.0,
        sentinel_ttl_s: float = 5.0,
    ) -> None:
        """`me`: the node's name, which is its sentinel's too; for a command, who runs it."""
        self._etcd = etcd
        self._keys = Keys(cluster)
        self._me = me
        self._clock = clock
        self._ttl_s = ttl_s
        self._sentinel_ttl_s = sentinel_ttl_s
        self._mirror = Mirror(self._keys)
        self._seen = 0  # the newest revision of etcd we know of
        self._reporting = asyncio.Lock()  # at most one of us puts the report
        self._lease = 0  # 0: none
        self._attached = False  # is our report known to be under our lease?
        self._last_report: NodeReport | None = None
        self._promised: tuple[int, Promise | None] = (0, None)  # our promise in etcd and its revision, as last seen
        self._sentinel_lease = 0
        self._first_campaign = True
        self._untrimmed = TRIM_EVERY  # events written since the history was last looked at

    # Everybody

    async def read(self) -> Snapshot:
        """Everything but the history, in one range read, so at one revision, and never stale."""
        watched = self._mirror.watched
        seen = self._seen
        found = await self._etcd.find(Get(self._keys.state, self._keys.end))
        if found.revision < seen:  # a read is never older than what was written before it: this etcd began anew
            self._mirror.lost()
            self._seen = self._etcd.revision = found.revision
        self._seen = max(self._seen, found.revision)
        self._mirror.take(found, watched)
        return self._mirrored()

    def _mirrored(self) -> Snapshot:
        snap = self._mirror.snapshot()
        self._promised = self._mirror.promise(self._me)
        return snap

    @property
    def behind(self) -> bool:
        """Has something been written from here that the last snapshot does not have yet?"""
        return self._seen > self._mirror.revision

    async def follow(self, tell: Callable[[Snapshot | None], object]) -> Never:
        """Call `tell` in the event loop with what etcd holds after each change of anything but the history; with None
        when something may have changed and only a read can know. Runs until cancelled."""

        def told(changes: Changes | None) -> None:
            snap = None
            if changes is None:
                self._mirror.lost()
            elif self._mirror.follow(changes):
                self._seen = max(self._seen, changes.revision)
                with suppress(StoredFormatError):  # the read says it to somebody
                    snap = self._mirrored()
            tell(snap)

        await self._etcd.watch(self._keys.state, self._keys.end, told)

    async def watch(self, wake: Callable[[], object]) -> Never:
        """Call `wake` in the event loop whenever anything but the history may have changed. Runs until cancelled."""
        await self._etcd.watch(self._keys.state, self._keys.end, lambda _: wake())

    async def close_request(self, request: str, outcome: str) -> None:
        for _ in range(TRIES):
            item = await self._etcd.get(self._keys.request(request))
            if item is None:
                return
            body = self._mirror.request(item)
            if body.outcome:
                return
            put = Put(item.key, codec.encode(_answered(body, outcome)))
            with suppress(OutcomeUnknown):  # reading again tells
                if (await self._etcd.transaction([Modified(item.key, item.modified)], [put])).succeeded:
                    return
        raise StoreConflict(f"request {request} was changed again and again while it was answered")

    # Keeper

    async def report(self, report: NodeReport) -> None:
        """Write what this node says of itself, under its lease; a lost lease is replaced."""
        assert report.node == self._me, f"{self._me} does not speak for {report.node}"
        async with self._reporting:
            self._last_report = report
            await self._put_report()

    async def keep_lease(self) -> LeaseProof:
        """Renew this node's lease, or take a new one with the last report under it.

        The proof counts from before the request was sent. Its ttl is 0, so that it proves nothing, as long as no report
        is known to be under the lease: the others could not see that we hold it.
        """
        asked_at = self._clock.boottime()
        lease = self._lease
        if lease:
            try:
                left_s = await self._etcd.keep_alive(lease)
            except LeaseGone:
                self._forget(lease)
            else:
                if self._attached and lease == self._lease:
                    return LeaseProof(asked_at, left_s)
        async with self._reporting:
            asked_at = self._clock.boottime()
            if self._last_report is not None:
                await self._put_report()
            elif not self._lease:
                self._lease = await self._etcd.grant(self._ttl_s)
            if not self._attached:
                return LeaseProof(asked_at, 0.0)
            lease = self._lease
            try:
                return LeaseProof(asked_at, await self._etcd.keep_alive(lease))
            except LeaseGone:
                self._forget(lease)
                return LeaseProof(asked_at, 0.0)

    async def promise(self, promise: Promise) -> None:
        assert promise.node == self._me, f"{self._me} does not promise for {promise.node}"
        key = self._keys.promise(self._me)
        for _ in range(TRIES):
            revision, known = self._promised
            if known is not None and (known == promise or known.term > promise.term):
                return
            put = Put(key, codec.encode(promise))
            try:
                done = await self._etcd.transaction([Modified(key, revision)], [put], [Get(key)])
            except OutcomeUnknown:
                item = await self._etcd.get(key)
            else:
                self._seen = max(self._seen, done.revision)
                if done.succeeded:
                    self._promised = (done.revision, promise)
                    return
                item = done.found[0].first
            self._promised = (item.modified, self._mirror.decode(Promise, item)) if item else (0, None)
        raise StoreConflict(f"{key} was changed again and again while it was written")

    async def withdraw(self) -> None:
        """Give the lease back: the report is gone at once instead of after the ttl. For an orderly end."""
        async with self._reporting:
            lease, self._last_report = self._lease, None
            self._forget(lease)
            if lease:
                await self._etcd.revoke(lease)

    def _forget(self, lease: int) -> None:
        if self._lease == lease:
            self._lease, self._attached = 0, False

    async def _put_report(self) -> None:
        """Put the last report under our lease. The caller holds `_reporting`."""
        assert self._last_report is not None
        body = codec.encode(self._last_report)
        for _ in range(TRIES):
            if not self._lease:
                self._lease = await self._etcd.grant(self._ttl_s)
            lease = self._lease
            self._attached = False
            try:
                done = await self._etcd.transaction([], [Put(self._keys.report(self._me), body, lease)])
            except LeaseGone:
                self._forget(lease)
                continue
            self._attached = lease == self._lease
            self._seen = max(self._seen, done.revision)
            return
        raise StoreConflict("this node's lease ran out again and again while its report was written")

    # Sentinel

    async def put_view(
        self,
        view: View,
        *,
        read_at: int,
        leader: Leadership,
        events: tuple[Event, ...] = (),
        outcomes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        key = self._keys.view
        compare: list[Comparison] = [Modified(key, read_at), Created(self._keys.leader, leader.created_revision)]
        write: list[Operation] = [Put(key, codec.encode(view)), *self._history(events)]
        for request, outcome in outcomes:
            body, revision = self._mirror.requests.get(request) or await self._reread(request)
            if body is not None and not body.outcome:
                compare.append(Modified(self._keys.request(request), revision))
                write.append(Put(self._keys.request(request), codec.encode(_answered(body, outcome))))
        write += await self._trimming(len(events), {self._keys.request(request) for request, _ in outcomes})
        done = await self._etcd.transaction(compare, write)
        self._seen = max(self._seen, done.revision)
        if not done.succeeded:
            raise StoreConflict(f"{key} changed after revision {read_at}, or {leader.sentinel} no longer leads")

    async def campaign(self) -> Leadership | None:
        """Become leader if nobody is; None: somebody else leads. Writes nothing while somebody does."""
        key = self._keys.leader
        holder = await self._etcd.get(key)
        first, self._first_campaign = self._first_campaign, False
        if holder is not None:
            if self._sentinel_lease and holder.lease == self._sentinel_lease:
                return Leadership(self._me, holder.created)
            if holder.value.decode() != self._me or not first:
                return None
            # An earlier run of this very sentinel, whose lease has not run out yet. It must not write any more either:
            # so the key is not taken over but made anew.
            await self._etcd.transaction([Created(key, holder.created)], [Delete(key)])
        if not self._sentinel_lease:
            self._sentinel_lease = await self._etcd.grant(self._sentinel_ttl_s)
        lease = self._sentinel_lease
        try:
            done = await self._etcd.transaction([Created(key, 0)], [Put(key, self._me.encode(), lease)])
            if done.succeeded:
                return Leadership(self._me, done.revision)
        except LeaseGone:
            pass  # it lay unused for too long: the next campaign takes a new one
        except OutcomeUnknown:
            holder = await self._etcd.get(key)
            if holder is not None and holder.lease == lease:
                return Leadership(self._me, holder.created)
        self._sentinel_lease = 0  # unused: it ends by itself
        return None

    async def keep_leadership(self) -> bool:
        """Renew the leader's lease. False: it is lost, and with it the leadership; campaign again."""
        lease = self._sentinel_lease
        if not lease:
            return False
        try:
            await self._etcd.keep_alive(lease)
        except LeaseGone:
            if self._sentinel_lease == lease:
                self._sentinel_lease = 0
            return False
        return True

    async def resign(self, leader: Leadership) -> None:
        """Stop leading: somebody else may at once."""
        lease, self._sentinel_lease = self._sentinel_lease, 0
        if lease:
            await self._etcd.revoke(lease)

    async def _reread(self, request: str) -> tuple[Request | None, int]:
        item = await self._etcd.get(self._keys.request(request))
        return (self._mirror.request(item), item.modified) if item else (None, 0)

    async def _trimming(self, written: int, kept: set[str]) -> list[Operation]:
        """What to delete so that the history and the answered requests stay bounded. Looks only now and then."""
        self._untrimmed += written
        if not written or self._untrimmed < TRIM_EVERY:
            return []
        newest = await self._etcd.find(
            Get(self._keys.events, self._keys.events_end, limit=HISTORY, descending=True, keys_only=True)
        )
        self._untrimmed = 0
        old: list[Operation] = []
        if len(newest.items) == HISTORY:
            old.append(Delete(self._keys.events, newest.items[-1].key))
        answered = sorted((at, r.id) for r, at in self._mirror.requests.values() if r.outcome)
        keys = [self._keys.request(request) for _, request in answered[:-ANSWERED][:TRIM_EVERY]]
        return old + [Delete(key) for key in keys if key not in kept]

    # Operator

    async def put_spec(self, spec: Spec, *, read_at: int, events: tuple[Event, ...] = ()) -> None:
        key = self._keys.spec
        done = await self._etcd.transaction(
            [Modified(key, read_at)], [Put(key, codec.encode(spec)), *self._history(events)]
        )
        self._seen = max(self._seen, done.revision)
        if not done.succeeded:
            raise StoreConflict(f"{key} changed after revision {read_at}")

    async def add_request(self, request: Request) -> None:
        key = self._keys.request(request.id)
        try:
            done = await self._etcd.transaction([Created(key, 0)], [Put(key, codec.encode(request))])
        except OutcomeUnknown:
            found = await self.read_request(request.id)
            if found is None or replace(found, created_revision=0, outcome="") != request:
                raise
            return
        self._seen = max(self._seen, done.revision)
        if not done.succeeded:
            raise StoreConflict(f"there is a request {request.id} already")

    async def read_request(self, request: str) -> Request | None:
        body, _ = await self._reread(request)
        return body

    async def read_events(self, last: int) -> list[Event]:
        if last <= 0:
            return []
        found = await self._etcd.find(Get(self._keys.events, self._keys.events_end, limit=last, descending=True))
        return [codec.decode(Event, item.value, item.key) for item in reversed(found.items)]

    def _history(self, events: Iterable[Event]) -> list[Operation]:
        return [
            Put(self._keys.event(self._seen, number, self._me), codec.encode(event))
            for number, event in enumerate(events)
        ]


def _answered(request: Request, outcome: str) -> Request:
    return replace(request, outcome=outcome, created_revision=0)
