"""Making PostgreSQL demonstrably wait for the right standbys, and proving that it did.

Theory of operation. `synchronous_standby_names` is read by every walsender on its own, and the shared flag that makes
backends wait at all is set by the checkpointer, possibly late. So a reload proves nothing:

- every walsender must show the sync state that the new list gives it; where only the count changed nothing would be
  seen, so the list goes over one that nobody satisfies; so it does where more than one confirmation is asked for, or
  while some walsenders have read the new list, an old voter and a new one would add up to an acknowledgement that
  neither rule allows;
- when the list was empty, that unsatisfiable list comes first, and one of our own transactions must be seen waiting
  under it (the flag is up) before the real names are written, which then must release it.

While nobody satisfies the list commits wait; that takes some milliseconds. Our own transactions are never cancelled,
only terminated: a cancelled wait is answered with success.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from cluster.errors import FlypgError, InstanceError
from cluster.model import Rule, stamped, unstamped
from postgres import queries
from postgres.config import NOBODY_NAMES, standby_names
from postgres.connection import Connection, bounded, helper
from postgres.parts import POLL_S, Parts, change_names, until

SETTLE_S = 5.0  # for walsenders and checkpointer to follow
NUDGE_S = 0.03  # between small writes that make voters confirm again, while a barrier waits
BARRIER_S = 5.0
WAITING = "SyncRep"
COUNT = re.compile(r"ANY (\d+) ")


def count_of(names: str) -> int:
    """How many confirmations a list asks for; 0 when it is empty."""
    found = COUNT.match(names)
    return int(found.group(1)) if found else 0


async def apply_rule(parts: Parts, rule: Rule) -> None:
    """Run `rule`. Returns when PostgreSQL demonstrably does. Raises InstanceError otherwise, with nothing less safe
    than before: at worst commits wait."""
    look = await parts.session.ask(queries.look)
    if look.in_recovery:
        raise InstanceError("only a primary can be given a rule to run")
    names = standby_names(rule)
    dynamic = parts.files.dynamic
    if not names:
        if look.names or dynamic.names:
            await change_names(parts, "", standing=False)
        async with helper(parts.config, "flypg_rule") as connection:
            await bounded(connection, queries.emit(connection, "lone"), SETTLE_S)
        return
    if not dynamic.standing or not dynamic.names or not await _checkpointer_settled(parts):
        await _wake_waiting(parts, rule, names)
    else:
        mixed = count_of(names) != count_of(look.names) or count_of(names) > 1  # old and new voters must not add up
        if look.names != dynamic.names or (names != look.names and mixed):
            await change_names(parts, NOBODY_NAMES, standing=True)
            await _walsenders_follow(parts, frozenset())
        await change_names(parts, names, standing=True)
        await _walsenders_follow(parts, _names_of(rule))
        await parts.session.ask(queries.nudge)


def _names_of(rule: Rule) -> frozenset[str]:
    return frozenset(stamped(node, rule.term) for node in rule.voters)


async def _checkpointer_settled(parts: Parts) -> bool:
    """Has the checkpointer come past its start, where it reads the list for the first time?"""
    return await parts.session.ask(queries.checkpointer_waits_for) == "CheckpointerMain"


async def _wake_waiting(parts: Parts, rule: Rule, names: str) -> None:
    """From a list that may have been empty: see a commit wait before the real names are written, and go on after."""
    await change_names(parts, NOBODY_NAMES, standing=False)
    deadline = parts.clock.boottime() + SETTLE_S
    async with helper(parts.config, "flypg_rule") as connection:
        while True:
            waiting = asyncio.ensure_future(bounded(connection, queries.emit(connection, "rule"), 3 * SETTLE_S))
            try:
                if await _seen_waiting(parts, connection, waiting):
                    await _walsenders_follow(parts, frozenset())
                    await change_names(parts, names, standing=True)
                    await _walsenders_follow(parts, _names_of(rule))
                    await _released(parts, waiting, names)
                    return
                await waiting
            finally:
                await _end(parts, connection, waiting)
            if parts.clock.boottime() > deadline:
                raise InstanceError(
                    f"commits do not wait {SETTLE_S:g} s after the rule was written: checkpointer stuck?"
                )
            await asyncio.sleep(POLL_S)


async def _seen_waiting(parts: Parts, connection: Connection, waiting: asyncio.Future[list[str]]) -> bool:
    while not waiting.done():
        if await parts.session.ask(lambda c: queries.wait_event(c, connection.info.backend_pid)) == WAITING:
            return True
        await asyncio.sleep(POLL_S)
    return False


async def _released(parts: Parts, waiting: asyncio.Future[list[str]], names: str) -> None:
    await parts.session.ask(queries.nudge)
    done, _ = await asyncio.wait({waiting}, timeout=SETTLE_S)
    if not done:
        raise InstanceError(f"no standby confirmed a commit under {names} within {SETTLE_S:g} s")
    if warnings := waiting.result():
        raise InstanceError(f"the wait for a standby ended with a warning: {warnings[0]}")


async def _end(parts: Parts, connection: Connection, waiting: asyncio.Future[list[str]]) -> None:
    """Leave no commit of ours waiting: terminate it."""
    if waiting.done():
        return
    with contextlib.suppress(FlypgError):
        await parts.session.ask(lambda c: queries.terminate(c, connection.info.backend_pid))
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError, FlypgError):
        await waiting


async def _walsenders_follow(parts: Parts, members: frozenset[str]) -> None:
    """Wait until every walsender has read the new list: members count, nobody else does."""

    async def all_do() -> bool:
        senders = await parts.session.ask(queries.walsenders)
        return all((s.sync_state in ("quorum", "potential")) == (s.name in members) for s in senders if s.flushed)

    await until(all_do, SETTLE_S, "a walsender has not followed the change of the rule", parts.clock)


async def barrier(parts: Parts, rule: Rule) -> None:
    """Commit something under `rule` and check that its voters have it. Raises InstanceError or PostgresUnavailable when
    that is not so after 5 s; a warning instead of an acknowledgement is a failure too."""
    names = standby_names(rule)
    look = await parts.session.ask(queries.look)
    if look.in_recovery:
        raise InstanceError("this server is no primary (yet)")
    if look.names != names:
        raise InstanceError(f"PostgreSQL runs {look.names!r}, not {names!r}: apply the rule first")
    deadline = parts.clock.boottime() + BARRIER_S
    async with parts.spare.helper(parts.config, "flypg_barrier") as connection:
        committing = asyncio.ensure_future(bounded(connection, queries.emit(connection, "barrier"), BARRIER_S + 1))
        try:
            while not committing.done():
                left_s = deadline - parts.clock.boottime()
                if left_s <= 0:
                    raise InstanceError(f"a write was not acknowledged under {rule} within {BARRIER_S:g} s")
                done, _ = await asyncio.wait({committing}, timeout=min(NUDGE_S, left_s))
                if not done:
                    # What a voter confirmed while it was still catching up released nobody, and it is silent until
                    # something new comes, or for a second.
                    await parts.session.ask(queries.nudge)
            if warnings := committing.result():
                raise InstanceError(f"a write was not acknowledged under {rule}: {warnings[0]}")
        finally:
            await _end(parts, connection, committing)
    end = await parts.session.ask(queries.flushed)

    async def on_voters() -> bool:
        senders = await parts.session.ask(queries.walsenders)
        return len(confirmed(senders, rule, end)) >= rule.k

    left_s = max(deadline - parts.clock.boottime(), 0.05)
    await until(on_voters, left_s, f"{rule.k} voters do not have what was committed under {rule}", parts.clock)


def confirmed(senders: list[queries.Sender], rule: Rule, lsn: int) -> set[str]:
    """The voters of `rule`, under the names of its term, that have flushed up to `lsn`."""
    return {
        known[0]
        for s in senders
        if (known := unstamped(s.name)) is not None
        and known[1] == rule.term
        and known[0] in rule.voters
        and s.flushed is not None
        and s.flushed >= lsn
    }
