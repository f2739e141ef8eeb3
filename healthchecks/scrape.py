"""One scrape: everything /metrics says, as text."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, generate_latest

from cluster.errors import FlypgError
from healthchecks import own_metrics as own
from healthchecks.collector import Collector
from healthchecks.config import HttpConfig
from healthchecks.exposition import Family, render
from healthchecks.history import History
from healthchecks.outlook import outlook
from healthchecks.pg_families import SCRAPE_ERROR, SCRAPE_SECONDS, SCRAPES, UP
from healthchecks.provider import Provider
from healthchecks.role import gather
from healthchecks.suite import Checks
from healthchecks.vm import Disk, Machine

HISTORY_TIMEOUT_S = 0.5
HISTORY_EVERY_S = 60.0
HISTORY_LENGTH = 500
DISK_TIMEOUT_S = 0.2


class Metrics:
    """Everything this node tells Prometheus."""

    def __init__(self, config: HttpConfig, provider: Provider, checks: Checks, version: str) -> None:
        self._provider = provider
        self._checks = checks
        self._version = version
        disable_created_metrics()  # type: ignore[no-untyped-call]  # no gauge beside each histogram
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.history = History(self._registry)
        self._history_at = float("-inf")
        self.collector = Collector(config, provider)
        self._machine = Machine(config.volumes(), config.thresholds)

    def observe(self) -> None:
        """Note what phase the agreed view is in. Cheap; called whenever the agent has read something."""
        provider = self._provider
        self.history.observe(provider.snapshot(), time.monotonic(), provider.cluster(), provider.node())

    async def text(self) -> str:
        """Within about a second, whatever hangs."""
        self.observe()
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.collector.refresh())
            group.create_task(self._read_history())
            disk = group.create_task(self._disk())
        collector = self.collector
        alone = [
            Family(UP, {"": collector.up}),
            Family(SCRAPE_SECONDS, {"": time.monotonic() - begun}),
            Family(SCRAPE_ERROR, {"": collector.last_round_failed or not collector.up}),
            Family(SCRAPES, {"": collector.scrapes_total}),
        ]
        ours = generate_latest(self._registry).decode()
        return render(collector.families()) + render(alone) + render(self._own(disk.result())) + ours

    async def close(self) -> None:
        await self.collector.close()

    async def _disk(self) -> Disk | None:
        try:
            return await self._machine.disk(DISK_TIMEOUT_S)
        except (OSError, TimeoutError):
            return None

    async def _read_history(self) -> None:
        """When the term has changed, and each minute."""
        snapshot = self._provider.snapshot()
        term = snapshot.view.term if snapshot is not None and snapshot.view is not None else -1
        if term == self.history.term_read and time.monotonic() < self._history_at + HISTORY_EVERY_S:
            return
        try:
            async with asyncio.timeout(HISTORY_TIMEOUT_S):
                events = await self._provider.store().read_events(HISTORY_LENGTH)
        except (FlypgError, TimeoutError):
            return  # counted where etcd's errors are; asked again at the next scrape
        self.history.count(events)
        self.history.term_read, self._history_at = term, time.monotonic()

    def _own(self, disk: Disk | None) -> list[Family]:
        provider = self._provider
        out = own.Collected(provider.cluster(), provider.node())
        facts = gather(provider)
        ahead = outlook(facts.snapshot)
        out.put(own.BUILD, 1, version=self._version)
        own.add_node(out, facts, self._checks.claim())
        own.add_cluster(out, facts, ahead.safe, ahead.candidates)
        own.add_store(out, provider.store_stats())
        own.add_fence(out, provider.fence())
        own.add_backups(out, provider.backup_stats())
        own.add_pools(out, provider.pool_stats())
        own.add_certificate(out, provider.certificate())
        own.add_changes(out, self.history.counts, self.history.last_at)
        self._add_checks(out)
        self._add_rows(out)
        if disk is not None:
            out.put(own.DISK_SIZE, disk.total)
            out.put(own.DISK_FREE, disk.available)
        return [out.families[name] for name in own.DEFINITIONS if name in out.families]

    def _add_checks(self, out: own.Collected) -> None:
        role = self._checks.role()
        out.put(own.CHECK, role.passed, check="role")
        for name, last in self._checks.last.items():
            if last is None:
                continue  # nobody has asked yet, which is no failure
            out.put(own.CHECK, last.report.passed, check=name)
            out.put(own.CHECK_WARNS, sum(line.warning for line in last.report.lines), check=name)
            out.put(own.CHECK_SECONDS, last.took_s, check=name)

    def _add_rows(self, out: own.Collected) -> None:
        """What a scrape's own statements know of this node."""
        collector = self.collector
        for family, age in collector.ages().items():
            out.put(own.FAMILY_AGE, age, family=family)
        for family, count in collector.errors.items():
            out.put(own.FAMILY_ERRORS, count, family=family)
        slots = collector.rows("slots")
        for name, _, active, lost, kept in slots.rows if slots is not None else ():
            out.put(own.SLOT_ACTIVE, active, slot=name)
            out.put(own.SLOT_LOST, lost, slot=name)
            out.put(own.SLOT_BYTES, kept, slot=name)
        sizes = collector.rows("sizes")
        for name, _, age in sizes.rows if sizes is not None else ():
            out.put(own.XID_AGE, age, datname=name)
        vitals = self._checks.newest_vitals()
        if vitals is not None and vitals.in_recovery:
            out.put(own.REPLAY_BYTES, vitals.behind_bytes)
            out.put(own.REPLAY_SECONDS, vitals.behind_s)
            out.put(own.UPSTREAM, vitals.contact_age_s)
