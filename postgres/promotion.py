"""Becoming primary on exactly the timeline that was allocated to this node.

PostgreSQL takes the number after the newest history file it can see. Two candidates of different terms could so pick
the same one, and their histories would differ silently. So before it promotes, the numbers to be skipped get history
files with nothing but a comment; followers fetch and ignore them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

from cluster.errors import InstanceError, PostgresUnavailable
from cluster.model import Position, Rule
from postgres import queries, slots
from postgres.command import Account
from postgres.config import standby_names
from postgres.detach import identify
from postgres.files import fsync_directory, remove, write_atomically
from postgres.parts import POLL_S, Parts, change, until

READERS_S = 0.1  # after this readers that replay waits for are ended
USUAL_S = 0.3  # what a promotion takes as a rule; one that takes longer is looked after by later turns
STUB = "# skipped by flypg: this timeline was allocated to another primary or never used\n"
HISTORY_NAME = re.compile(r"([0-9A-F]{8})\.history\Z")


def history_name(timeline: int) -> str:
    return f"{timeline:08X}.history"


async def promote(parts: Parts, timeline: int, rule: Rule, at: Position | None = None) -> None:
    """Ask for promotion to `timeline` under `rule`, and wait a moment for it. Raises InstanceError when PostgreSQL
    could not pick that timeline.

    `at`: where it stands for good, detached; None: to be asked.
    """
    look = await parts.session.ask(queries.look)
    if not look.in_recovery:
        now = int(look.timeline or "0", 16)
        if now != timeline:
            raise InstanceError(f"already primary, but on timeline {now} instead of {timeline}")
        return
    names = standby_names(rule)
    if at is None:
        at = await identify(parts)
    if at.timeline >= timeline:
        raise InstanceError(f"cannot be promoted to timeline {timeline}: already on timeline {at.timeline}")
    await slots.add(parts, rule.voters)  # without one a voter could not stream, and nothing would be acknowledged
    await parts.disk.do(partial(reserve, parts.config.pgdata / "pg_wal", at.timeline, timeline, parts.owner))
    files = parts.files
    await change(
        parts, replace(files.dynamic, names=names, upstream=None, standing=files.dynamic.standing and bool(names))
    )
    signal_file = parts.config.pgdata / "promote"
    write_atomically(signal_file, "", owner=parts.owner, durable=False)
    if not parts.postmaster.send(signal.SIGUSR1):
        remove(signal_file)
        raise PostgresUnavailable("PostgreSQL ended before it could be promoted")
    await parts.spare.open(parts.config)  # while it is being promoted: the barrier comes next

    asked_at = parts.clock.boottime()

    async def promoted() -> bool:
        if not await parts.session.ask(queries.in_recovery):
            return True
        if parts.clock.boottime() - asked_at > READERS_S:
            await parts.session.ask(queries.end_readers)  # replay would wait for them, and all clients for replay
        return False

    with contextlib.suppress(InstanceError):
        await until(promoted, USUAL_S, "not promoted", parts.clock)


async def free_replay(parts: Parts) -> None:
    """End the readers that replay waits for, if they do not end by themselves in a moment. A startup process that waits
    looks at nothing, not even for its new primary, whose first commit may have to wait for this standby."""
    patient_until = parts.clock.boottime() + READERS_S
    while await parts.session.ask(queries.replay_waits):
        if parts.clock.boottime() > patient_until:
            await parts.session.ask(queries.end_readers)
            return
        await asyncio.sleep(POLL_S)


def reserve(pg_wal: Path, current: int, timeline: int, owner: Account | None) -> None:
    """Make `timeline` the next that PostgreSQL will pick after `current`."""
    known = {int(m.group(1), 16) for n in os.listdir(pg_wal) if (m := HISTORY_NAME.match(n))}
    for number in sorted(n for n in known if n >= timeline):
        path = pg_wal / history_name(number)
        if _is_real(path.read_text(errors="replace")):
            raise InstanceError(
                f"cannot be promoted to timeline {timeline}: {path.name} is the history of another branch"
            )
        remove(path)
    # All of them, not only those after `current`: a copy brings no older histories, and a follower asks for every one.
    for number in range(2, timeline):
        if number not in known and number != current:
            write_atomically(pg_wal / history_name(number), STUB, owner=owner, durable=True)
    fsync_directory(pg_wal)


def drop_trailing_stubs(pg_wal: Path) -> None:
    """Remove the stubs of a promotion that never came about. PostgreSQL would take the last one for its newest
    timeline, find that it is no child of its own history, and not start."""
    try:
        names = os.listdir(pg_wal)
    except FileNotFoundError:
        return
    for number in sorted((int(m.group(1), 16) for n in names if (m := HISTORY_NAME.match(n))), reverse=True):
        path = pg_wal / history_name(number)
        if _is_real(path.read_text(errors="replace")):
            return
        remove(path)


def _is_real(history: str) -> bool:
    """Does it say where a timeline came from, or is it only a comment?"""
    return any(line.strip() and not line.lstrip().startswith("#") for line in history.splitlines())
