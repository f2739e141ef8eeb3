"""The clockwork: APScheduler wakes us, pure policies decide what is due."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from backups.cron import Cron, read_cron
from cluster.errors import FlypgError, SettingsError

log = logging.getLogger("flypg.backups")
LOOK_S = 10.0  # how often we look whether the wall clock has jumped
JUMP_S = 5.0


def next_after(schedule: str, at: float, jitter_s: float = 0.0) -> float | None:
    """The first scheduled time after `at` (seconds since 1970), moved by `jitter_s`; None: it never comes.

    Raises SettingsError when `schedule` is no cron line.
    """
    try:
        cron = read_cron(schedule)
    except ValueError as error:
        raise SettingsError("FLYPG_SNAPSHOT_SCHEDULE", schedule, str(error)) from None
    after = datetime.fromtimestamp(at - jitter_s, UTC) + timedelta(microseconds=1)
    both = bool(cron.days and cron.weekdays)  # then either kind of day is enough
    lines = (replace(cron, days=()), replace(cron, weekdays=())) if both else (cron,)
    fire = min((found for line in lines if (found := _next(line, after)) is not None), default=None)
    return None if fire is None else fire.timestamp() + jitter_s


def _next(cron: Cron, after: datetime) -> datetime | None:
    from apscheduler.triggers.cron import CronTrigger

    def field(numbers: Iterable[int]) -> str:
        return ",".join(map(str, numbers)) or "*"

    trigger = CronTrigger(
        minute=field(cron.minutes),
        hour=field(cron.hours),
        day=field(cron.days),
        month=field(cron.months),
        day_of_week=field((n - 1) % 7 for n in cron.weekdays),  # there 0 is Monday
        timezone=UTC,
    )
    found: datetime | None = trigger.get_next_fire_time(None, after)
    return found


class Ticker:
    """Calls functions now and then. A FlypgError of one is logged; anything else is a bug and ends `run`."""

    def __init__(self) -> None:
        from apscheduler.events import EVENT_JOB_ERROR
        from apscheduler.schedulers.asyncio import AsyncIOScheduler

        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # what matters we say ourselves
        self._scheduler: Any = AsyncIOScheduler(timezone=UTC)
        self._scheduler.add_listener(self._failed, EVENT_JOB_ERROR)
        self._bug: asyncio.Future[None] | None = None

    def every(self, seconds: float, function: Callable[[], Awaitable[None]], *, jitter_s: float = 0.0) -> None:
        """`function` must be quick; while it still runs, its next turn is left out."""
        from apscheduler.triggers.interval import IntervalTrigger

        trigger = IntervalTrigger(seconds=seconds, jitter=jitter_s or None, timezone=UTC)
        # without a grace time a busy second would silently leave out a turn; missed turns become one
        self._scheduler.add_job(
            function, trigger, coalesce=True, max_instances=1, misfire_grace_time=None, next_run_time=datetime.now(UTC)
        )

    async def run(self) -> None:
        """Tick until cancelled; raises what a function should not have raised."""
        self._bug = asyncio.get_running_loop().create_future()
        self._scheduler.start()
        try:
            while not self._bug.done():
                before = self._offset_s()
                await asyncio.wait({self._bug}, timeout=LOOK_S)
                if abs(self._offset_s() - before) > JUMP_S:
                    self._everything_now()
            self._bug.result()
        finally:
            self._scheduler.shutdown(wait=False)

    def _offset_s(self) -> float:
        return time.time() - time.monotonic()

    def _everything_now(self) -> None:
        """The wall clock has jumped. The scheduler goes by it: after a jump back of a day it would sleep for a day."""
        log.warning("clock_jumped")
        for job in self._scheduler.get_jobs():
            job.modify(next_run_time=datetime.now(UTC))

    def _failed(self, event: Any) -> None:
        if isinstance(event.exception, (FlypgError, OSError, TimeoutError)):
            log.warning("backup_tick_failed", extra={"error": str(event.exception)})
        elif self._bug is not None and not self._bug.done():
            self._bug.set_exception(event.exception)
