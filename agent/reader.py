"""One read of etcd for everybody in this process, and a count of how etcd answers.

Keeper, sentinel, routers and probes all want to know what etcd holds. As long as the watch stands, the last read and
what the watch has told since are what etcd holds, and are handed out. A real read is made when the watch begins, breaks
or tells something that cannot be understood, when a write of ours has not come back by the watch within some
milliseconds, and every few seconds in any case.

An etcd that answers but has lost the cluster (its data is gone, this node's is not) is to everybody here like one that
does not answer: what runs goes on, and nobody believes that there never was a cluster. Only the sentinel sees it as it
is, to take the cluster up again when an operator says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Never, TypeVar

from cluster.clock import Clock
from cluster.errors import ClusterForgotten, FlypgError, StoreUnavailable
from cluster.etcd_store import EtcdStore
from cluster.model import Event, Leadership, LeaseProof, NodeReport, Promise, Request, Snapshot, Spec, View

REFRESH_S = 3.0
CATCH_UP_S = 0.01
RETRY_S = 0.25  # between two reads while etcd does not answer
FORGOTTEN = "etcd has lost what it knew of this cluster"
T = TypeVar("T")


@dataclass(slots=True)
class CallStats:
    """How one kind of call has gone since the start."""

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0


class SharedStore:
    """EtcdStore with shared reads. Implements the interfaces of keeper, sentinel, operator and lease."""

    def __init__(self, store: EtcdStore, clock: Clock, wake: Callable[[], None]) -> None:
        self._store = store
        self._clock = clock
        self._wake = wake
        self._dirty = True
        self._reading = asyncio.Lock()
        self._heard = asyncio.Event()  # the watch has told something
        self._lost = asyncio.Event()  # the last read failed, and `recover` has not had an answer yet
        self.snapshot: Snapshot | None = None  # the last from which the cluster was not missing
        self.served: Callable[[], bool] = lambda: False  # has this node's data been part of the cluster?
        self._held: Snapshot | None = None  # what etcd holds, as last read or told
        self.read_at = float("-inf")  # boottime at which the last good read was sent
        self.contact_at = float("-inf")
        self.stats: dict[str, CallStats] = {}
        self._log = logging.getLogger("flypg.store")

    def told(self, snap: Snapshot | None) -> None:
        """The watch has told: this is in etcd now; None: something may have changed, the next read is a real one."""
        if snap is None:
            self._dirty = True
        else:
            self._held = snap
            if not self._forgotten(snap):
                self.snapshot = snap
        self._heard.set()
        self._wake()

    def _forgotten(self, snap: Snapshot) -> bool:
        return snap.view is None and ((self.snapshot is not None and self.snapshot.view is not None) or self.served())

    async def read(self) -> Snapshot:
        """What etcd holds. Raises StoreUnavailable when that cannot be known now, ClusterForgotten when it was lost."""
        snap = await self.read_as_it_is()
        if self._forgotten(snap):
            raise ClusterForgotten(FORGOTTEN)
        self.snapshot = snap
        return snap

    async def read_as_it_is(self) -> Snapshot:
        """What etcd holds, be it nothing. Raises StoreUnavailable when that cannot be known now."""
        self._must_answer()
        if self._store.behind and not self._dirty and not self._reading.locked():
            await self._catch_up()
        if self._held is not None and self._still_true() and not self._reading.locked():
            return self._held
        async with self._reading:  # one that is under way was begun after the last event: its answer is ours too
            self._must_answer()
            if self._held is not None and self._still_true():
                return self._held
            self._dirty = False
            sent_at, before = self._clock.boottime(), self._held
            try:
                found = self._held = await self._timed("read", self._store.read())
            except BaseException as error:
                self._dirty = True
                if isinstance(error, StoreUnavailable):
                    self._lost.set()
                raise
            self.read_at = sent_at
            if before is not None and replace(before, revision=found.revision) != found:
                self._wake()  # news that the watch has not told: it breaks, or is just beginning
            return found

    def _still_true(self) -> bool:
        return not self._dirty and not self._store.behind and self._clock.boottime() - self.read_at < REFRESH_S

    async def _catch_up(self) -> None:
        """What we have written comes back by the watch in a moment, as a rule sooner than a read would."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S):
                while self._store.behind and not self._dirty:
                    self._heard.clear()
                    await self._heard.wait()

    def _must_answer(self) -> None:
        """While etcd is known to be silent nobody waits for it: a keeper has its own server to look after."""
        if self._lost.is_set():
            raise StoreUnavailable("etcd does not answer")

    async def recover(self) -> Never:
        """Ask etcd again and again while it is silent, so that nobody else has to wait for that."""
        while True:
            await self._lost.wait()
            try:
                await self._timed("read", self._store.read())
            except FlypgError:
                await asyncio.sleep(RETRY_S)
                continue
            self._lost.clear()
            self.told(None)

    async def _timed(self, name: str, call: Awaitable[T]) -> T:
        stats = self.stats.setdefault(name, CallStats())
        began = self._clock.boottime()
        stats.calls += 1
        try:
            answer = await call
        except FlypgError as error:
            stats.errors += 1
            if not isinstance(error, StoreUnavailable):
                self._dirty = True
            raise
        finally:
            took_s = self._clock.boottime() - began
            stats.seconds += took_s
            self._log.debug("etcd", extra={"call": name, "ms": round(took_s * 1000, 1)})
        self.contact_at = self._clock.boottime()
        return answer

    async def _write(self, name: str, call: Awaitable[T], *, told: bool = False) -> T:
        """`told`: the store knows at which revision it was written, so that the watch can bring it back."""
        try:
            return await self._timed(name, call)
        except BaseException:
            self._dirty = True
            raise
        finally:
            self._dirty = self._dirty or not told

    async def report(self, report: NodeReport) -> None:
        self._must_answer()
        await self._write("report", self._store.report(report), told=True)

    async def promise(self, promise: Promise) -> None:
        await self._write("promise", self._store.promise(promise), told=True)

    async def keep_lease(self) -> LeaseProof:
        return await self._timed("keep_lease", self._store.keep_lease())

    async def withdraw(self) -> None:
        await self._write("withdraw", self._store.withdraw())

    async def put_view(
        self,
        view: View,
        *,
        read_at: int,
        leader: Leadership,
        events: tuple[Event, ...] = (),
        outcomes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        written = self._store.put_view(view, read_at=read_at, leader=leader, events=events, outcomes=outcomes)
        await self._write("put_view", written, told=True)

    async def campaign(self) -> Leadership | None:
        return await self._write("campaign", self._store.campaign())

    async def keep_leadership(self) -> bool:
        return await self._timed("keep_leadership", self._store.keep_leadership())

    async def resign(self, leader: Leadership) -> None:
        await self._write("resign", self._store.resign(leader))

    async def close_request(self, request: str, outcome: str) -> None:
        await self._write("close_request", self._store.close_request(request, outcome))

    async def put_spec(self, spec: Spec, *, read_at: int, events: tuple[Event, ...] = ()) -> None:
        await self._write("put_spec", self._store.put_spec(spec, read_at=read_at, events=events))

    async def add_request(self, request: Request) -> None:
        await self._write("add_request", self._store.add_request(request))

    async def read_request(self, request: str) -> Request | None:
        return await self._timed("read_request", self._store.read_request(request))

    async def read_events(self, last: int) -> list[Event]:
        return await self._timed("read_events", self._store.read_events(last))


class AsItIs:
    """The sentinel's way to a SharedStore: it alone sees an etcd that has lost the cluster."""

    def __init__(self, store: SharedStore) -> None:
        self.read = store.read_as_it_is
        self.put_view = store.put_view
        self.campaign = store.campaign
        self.resign = store.resign
        self.close_request = store.close_request
