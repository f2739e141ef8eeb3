"""flypg switchover: hand the primary role over without losing a commit, with regard to transactions that are open."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agent.plan_primary import DRAIN_S
from cluster.errors import PostgresUnavailable
from cluster.model import RequestKind, Snapshot
from cluster.store import OperatorStore
from flypg.asking import ask, known_node, new_request, ready
from flypg.primary import password_of, serving
from flypg.progress import Progress
from flypg.reply import BadInput, Exit, Refused, Reply
from flypg.show import columns
from flypg.target import Target, with_store
from postgres.config import OPERATOR
from postgres.doors import remote_doors
from postgres.monitor import SqlRefused
from postgres.transactions import OpenTransaction, open_transactions

END, CALL_OFF = "end", "call-off"
CHOICES = (END, CALL_OFF)
LOOK_EVERY_S = 0.25
LIST_WITHIN_S = 5.0

Listing = Callable[[], Awaitable[list[OpenTransaction]]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is still open when the waiting has ended."""

    transactions: tuple[OpenTransaction, ...]
    waited_s: float
    unknown: str = ""  # why nobody could look; "" when somebody did

    @property
    def data(self) -> dict[str, object]:
        found = [asdict(t) | {"age_s": round(t.age_s, 1)} for t in self.transactions]
        return {
            "transactions": None if self.unknown else found,
            "transactions_unknown": self.unknown or None,
            "waited_s": round(self.waited_s, 1),
        }


def run(args: argparse.Namespace) -> Reply:
    """flypg switchover [--to NODE] [--wait-transactions S] [--then end|call-off]"""
    return with_store(args, lambda store, target: _switchover(args, store, target))


async def _switchover(args: argparse.Namespace, store: OperatorStore, target: Target) -> Reply:
    snapshot = await ready(store)
    node = known_node(snapshot, args.to) if args.to else None
    seen = Seen((), 0.0)
    if snapshot.view is None or node is None or node != snapshot.view.primary:  # else it is refused anyway
        seen = await _look(args, snapshot)
    if args.then == CALL_OFF and (why := objection(seen)):
        return Reply(Exit.REFUSED, why, seen.data | {"called_off": True})
    reply = await ask(store, new_request(RequestKind.SWITCHOVER, node), wait_s=None if args.no_wait else args.wait)
    data: dict[str, Any] = reply.data if isinstance(reply.data, dict) else {}
    return Reply(reply.exit, f"{reply.text}{told(seen)}", data | seen.data)


def objection(seen: Seen) -> str:
    """Why a switchover that may end nobody's transaction is called off; "" when it need not be. Pure."""
    if seen.unknown:
        return f"switchover called off: open transactions cannot be seen ({seen.unknown}); nothing was changed"
    if seen.transactions:
        head = f"switchover called off: {counted(seen.transactions)} still open after {seen.waited_s:.1f} s; "
        return f"{head}nothing was changed\n\n{table(seen.transactions)}"
    return ""


def told(seen: Seen) -> str:
    """What to add to the outcome. Pure."""
    if seen.unknown:
        return f"\nopen transactions could not be listed: {seen.unknown}"
    if seen.transactions:
        return f"\n{counted(seen.transactions)} open when it was asked for, and ended:\n\n{table(seen.transactions)}"
    return ""


def counted(transactions: Sequence[OpenTransaction]) -> str:
    return "1 transaction was" if len(transactions) == 1 else f"{len(transactions)} transactions were"


def table(transactions: Sequence[OpenTransaction]) -> str:
    head = ["pid", "user", "database", "application", "age", "state", "query"]
    body = [
        [str(t.pid), t.user, t.database, t.application or "-", f"{t.age_s:.1f} s", t.state, t.query]
        for t in transactions
    ]
    return columns(head, body)


async def _look(args: argparse.Namespace, snapshot: Snapshot) -> Seen:
    """List what holds a switchover up, and give it time to end by itself."""
    try:
        primary, password = serving(snapshot), password_of(args)
    except (Refused, BadInput) as error:
        return Seen((), 0.0, str(error))
    doors = remote_doors(primary.host, primary.ports.postgres, OPERATOR, password)

    async def listing() -> list[OpenTransaction]:
        async def work() -> list[OpenTransaction]:
            async with doors.open("postgres") as connection:
                return await open_transactions(connection, DRAIN_S)

        return await doors.work(work(), LIST_WITHIN_S)

    return await settle(listing, args.wait_transactions, Progress())


async def settle(listing: Listing, wait_s: float, progress: Progress) -> Seen:
    """Wait for open transactions to end, for `wait_s` at most."""
    began = time.monotonic()
    shown = False
    try:
        while True:
            open_now = tuple(await listing())
            waited_s = time.monotonic() - began
            if not open_now or waited_s >= wait_s:
                return Seen(open_now, waited_s)
            if not shown:
                shown = True
                progress.done(f"waiting {wait_s:g} s for open transactions:\n{table(open_now)}")
            progress.now(f"{len(open_now)} transactions are open")
            await asyncio.sleep(min(LOOK_EVERY_S, wait_s - waited_s))
    except (PostgresUnavailable, SqlRefused) as error:
        return Seen((), time.monotonic() - began, str(error))
    finally:
        progress.clear()
