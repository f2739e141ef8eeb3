"""The agreed state of the cluster, behind one interface: etcd in life, a model in the simulation.

Every call either succeeds, or raises StoreUnavailable (a read failed), StoreConflict (somebody wrote first) or
OutcomeUnknown (a write may or may not have happened).
"""

from __future__ import annotations

from typing import Protocol

from cluster.model import Event, Leadership, LeaseProof, NodeReport, Promise, Request, Snapshot, Spec, View


class KeeperStore(Protocol):
    """What a keeper needs."""

    async def read(self) -> Snapshot:
        """Everything at one revision, linearizable."""
        ...

    async def report(self, report: NodeReport) -> None:
        """Write what this node says of itself, under this node's lease. The caller writes on change only."""
        ...

    async def promise(self, promise: Promise) -> None:
        """Make a promise known that is already on this node's disk. Never replaces one of a higher term."""
        ...

    async def close_request(self, request: str, outcome: str) -> None:
        """Answer a request. One that is answered already or gone is left as it is."""
        ...


class SentinelStore(Protocol):
    """What a sentinel needs."""

    async def read(self) -> Snapshot: ...

    async def put_view(
        self,
        view: View,
        *,
        read_at: int,
        leader: Leadership,
        events: tuple[Event, ...] = (),
        outcomes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Write the view if its mod revision still is `read_at` and `leader` still leads; else StoreConflict.

        `events` (appended to the history) and `outcomes` ((request id, outcome): requests answered) are written in the
        same transaction, or not at all.
        """
        ...

    async def campaign(self) -> Leadership | None:
        """Become leader if nobody is. None: somebody else leads."""
        ...

    async def resign(self, leader: Leadership) -> None: ...

    async def close_request(self, request: str, outcome: str) -> None: ...


class OperatorStore(Protocol):
    """What a command needs."""

    async def read(self) -> Snapshot: ...

    async def put_spec(self, spec: Spec, *, read_at: int, events: tuple[Event, ...] = ()) -> None:
        """Write the spec if its mod revision still is `read_at` (0: it does not exist); else StoreConflict."""
        ...

    async def add_request(self, request: Request) -> None: ...

    async def read_request(self, request: str) -> Request | None: ...

    async def read_events(self, last: int) -> list[Event]:
        """The newest `last` events, oldest first."""
        ...


class LeaseKeeper(Protocol):
    async def keep_lease(self) -> LeaseProof:
        """Renew this node's lease, or take a new one; the proof counts from before the request was sent."""
        ...
