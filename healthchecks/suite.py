"""Runs the checks: one run at a time, shared by everyone who asks, remembered for a second, over within five."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from cluster.errors import PostgresUnavailable
from healthchecks import pg
from healthchecks.certificate import judge_certificate
from healthchecks.config import HttpConfig
from healthchecks.lines import Line, NotProcessed, Report, report, timed_out
from healthchecks.provider import Provider
from healthchecks.role import Claim, Role, claim, gather
from healthchecks.vm import Machine
from postgres.check_queries import Upkeep, Vitals, upkeep, vitals
from postgres.monitor import Session, SqlRefused

KEEP_S = 1.0
KEEP_UPKEEP_S = 30.0
PG_TIMEOUT_S = 2.5
UPKEEP_TIMEOUT_S = 1.0
DISK_TIMEOUT_S = 2.0
EVERYTHING_TIMEOUT_S = 4.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check last went."""

    report: Report
    took_s: float
    ended_at: float  # seconds of this process's monotonic clock


class Shared:
    """One check. Whoever asks while it runs gets that run's answer; for `keep_s` after it, the same answer."""

    def __init__(self, name: str, run: Callable[[], Awaitable[Report]], keep_s: float = KEEP_S) -> None:
        self._name = name
        self._run = run
        self._keep_s = keep_s
        self._running: asyncio.Task[Outcome] | None = None
        self.last: Outcome | None = None
        self.runs_total = 0

    async def answer(self) -> Report:
        if self.last is not None and time.monotonic() < self.last.ended_at + self._keep_s:
            return self.last.report
        if self._running is None:
            self._running = asyncio.create_task(self._timed(), name=f"check {self._name}")
        return (await asyncio.shield(self._running)).report

    async def _timed(self) -> Outcome:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(EVERYTHING_TIMEOUT_S):
                result = await self._run()
        except TimeoutError:
            result = report([NotProcessed(self._name)])
        finally:
            self._running = None
        self.runs_total += 1
        self.last = Outcome(result, time.monotonic() - begun, time.monotonic())
        return self.last

    async def stop(self) -> None:
        running = self._running
        if running is not None:
            running.cancel()
            await asyncio.wait({running})


class Checks:
    """The three checks of this node."""

    def __init__(self, config: HttpConfig, provider: Provider) -> None:
        self._limits = config.thresholds
        self._provider = provider
        self._machine = Machine(config.volumes(), config.thresholds)
        self._session = Session(lambda: provider.connect("postgres"), "flypg checks")
        self._vitals: tuple[float, Vitals] | None = None
        self._upkeep: Upkeep | None = None
        self._upkeep_at = float("-inf")
        self.vm = Shared("vm", self._vm)
        self.pg = Shared("pg", self._pg)

    @property
    def last(self) -> Mapping[str, Outcome | None]:
        return {"vm": self.vm.last, "pg": self.pg.last}

    def role(self) -> Report:
        """`leader` or `replica` and nothing else; anything else is a reason and fails. From memory, at once."""
        found = self.claim()
        if found.role is Role.NONE:
            return Report(False, found.why)
        return Report(True, str(found.role))

    def claim(self) -> Claim:
        return claim(gather(self._provider), self._limits.stale_after_s)

    async def vitals(self) -> Vitals | None:
        """How PostgreSQL is, at most a second ago. None: it did not answer."""
        await self.pg.answer()
        if self._vitals is None or time.monotonic() > self._vitals[0] + 2 * KEEP_S:
            return None
        return self._vitals[1]

    def newest_vitals(self) -> Vitals | None:
        """As the last pg check found them; None when that is more than a minute ago."""
        if self._vitals is None or time.monotonic() > self._vitals[0] + 60.0:
            return None
        return self._vitals[1]

    async def _vm(self) -> Report:
        return report(await self._machine.lines(DISK_TIMEOUT_S))

    async def _pg(self) -> Report:
        begun = time.perf_counter()
        try:
            found = await self._session.run(vitals, PG_TIMEOUT_S)
        except (PostgresUnavailable, SqlRefused) as error:
            took = time.perf_counter() - begun
            if took >= PG_TIMEOUT_S * 0.9:
                return report([timed_out("transactions", took), *map(NotProcessed, ("replication", "connections"))])
            reason = " ".join(str(error).split())  # one line, as Fly's set-up errors
            return Report(False, f"failed to connect with local node: {reason}")
        self._vitals = (time.monotonic(), found)
        return report(await self._judged(found, time.perf_counter() - begun))

    async def _judged(self, found: Vitals, took: float) -> list[Line]:
        facts = gather(self._provider)
        lines = pg.judge(found, facts, claim(facts, self._limits.stale_after_s), self._limits, took)
        lines += pg.judge_more(found, self._limits, took)
        begun = time.perf_counter()
        current = await self._current_upkeep()
        if current is None:
            lines.append(Line("wraparound", "not measured: pg_database did not answer", warning=True))
        else:
            lines += pg.judge_upkeep(current, self._limits, time.perf_counter() - begun)
        lines += judge_certificate(self._provider.certificate(), self._limits)
        return lines + pg.judge_snapshots(self._provider.backup_stats(), self._limits)

    async def _current_upkeep(self) -> Upkeep | None:
        """Read every half minute. None: it could not be read, perhaps because somebody locks pg_database."""
        if self._upkeep is None or time.monotonic() > self._upkeep_at + KEEP_UPKEEP_S:
            self._upkeep_at = time.monotonic()
            try:
                self._upkeep = await self._session.run(upkeep, UPKEEP_TIMEOUT_S)
            except (PostgresUnavailable, SqlRefused):
                self._upkeep = None
        return self._upkeep

    async def close(self) -> None:
        await self.vm.stop()
        await self.pg.stop()
        await self._session.close()
