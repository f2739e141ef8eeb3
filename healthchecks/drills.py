"""What a node offers to drills, as its HTTP server sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from cluster.drill_orders import Order

Note = Callable[[str], Awaitable[None]]


class DrillRefused(Exception):
    """Not this order, or not now; the message says why. `status` is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Drills(Protocol):
    """Faults of one node, for those who may ask for them."""

    def challenge(self) -> str:
        """A nonce for one order."""
        ...

    async def check(self, what: str, nonce: str, text: str, tag: str, who: str) -> None:
        """Raises DrillRefused unless `text` was signed for this nonce, which is used up by that."""
        ...

    async def offer(self) -> Mapping[str, str]:
        """Every fault, and why it cannot be had here; "" when it can. Raises DrillRefused."""
        ...

    async def begin(self, order: Order, nonce: str, note: Note) -> int:
        """Start the process that will break it, once the drill comes to the returned port. `note` is told of the end.

        Raises DrillRefused."""
        ...
