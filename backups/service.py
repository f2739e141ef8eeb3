"""Backups as part of an agent: snapshots when they are due, WAL while this node is the primary.

An idle agent pays for a timer only. All work is done by processes of their own (`backups.run`), which bring the memory
and the libraries it takes, and give them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from backups import layout
from backups.archiver import ArchiverProcess, Standing, standing
from backups.config import BackupConfig
from backups.layout import PathName
from backups.notes import LEASE_S, Notes
from backups.policy import Due, RunHistory, due, jitter_s, source
from backups.schedule import Ticker, next_after
from backups.wal import WalStatus
from backups.wire import archive_command
from cluster.errors import CommandFailed, CommandTimedOut, FlypgError
from cluster.model import NodeId, Snapshot
from postgres.command import account, run

log = logging.getLogger("flypg.backups")
WATCH_S = 2.0  # how often the archiver is told how things stand
TICK_S = 60.0
RUN_S = 24 * 3600.0  # the longest a snapshot or a restore test may take
SPREAD_S = 600.0  # clusters with the same schedule begin within so many seconds of each other


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """This node, as backups need to know it."""

    node: NodeId
    cluster: str
    data_dir: FilePath
    pgdata: FilePath
    run_dir: FilePath  # sockets
    postgres_port: int
    user: str | None  # whom PostgreSQL runs as when we are root
    programs: str = ""  # directory of PostgreSQL's programs; "" means the usual place

    @property
    def socket(self) -> FilePath:
        return self.run_dir / "wal.sock"

    @property
    def conninfo(self) -> str:
        return f"host={self.run_dir} port={self.postgres_port} user=postgres connect_timeout=10"


@dataclass(frozen=True, slots=True)
class BackupStatus:
    """What checks, metrics and `flypg status` say about backups. Times: seconds since 1970, None means unknown."""

    url: str  # "" means backups are off
    archiving: bool
    history: RunHistory
    next_at: float | None
    running: str  # what this node does now: "snapshot", "restore test", …; "" means nothing
    wal: WalStatus | None  # None: this node does not archive, or nothing is known of it
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArchiveSettings:
    """What PostgreSQL is configured with."""

    command: str  # "" means no archive
    timeout_s: int


def archive_settings(config: BackupConfig, facts: NodeFacts) -> ArchiveSettings:
    """How PostgreSQL is to archive on this node; the client it needs is put into place."""
    if not config.archive:
        return ArchiveSettings("", 0)
    command = archive_command(facts.run_dir, facts.socket, account(facts.user))
    return ArchiveSettings(command, config.archive_timeout_s)


class BackupService:
    """One per agent. `cluster`: the last state of the cluster this agent has read; None before the first."""

    def __init__(
        self,
        config: BackupConfig,
        facts: NodeFacts,
        notes: Notes,
        cluster: Callable[[], Snapshot | None],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._facts = facts
        self._notes = notes
        self._cluster = cluster
        self._wall = wall
        self._whose = "" if config.shared else facts.node  # whose history of snapshots it is
        self._began = time.monotonic()
        self._history = RunHistory()
        self._path: PathName | None = None
        self._running = ""
        self._dropped = 0  # WAL files that were let go when a snapshot last began
        self._archiver = ArchiverProcess(facts.socket, facts.run_dir / "archiver.log", self._environment())
        self._wanted = asyncio.Event()
        self._wake = asyncio.Event()
        self._told = Standing(0, False)

    def status(self) -> BackupStatus:
        return BackupStatus(
            url=self._config.url or (f"s3://{self._config.s3.bucket}" if self._config.s3 else ""),
            archiving=self._config.archive,
            history=self._history,
            next_at=self._next(),
            running=self._running,
            wal=self._archiver.status,
            warnings=self._warnings(),
        )

    async def run(self) -> None:
        """Until cancelled. Work under way is then ended; the archiver goes on for an agent that follows."""
        if not self._config.url and self._config.s3 is None:
            await asyncio.Event().wait()
        ticker = Ticker()
        ticker.every(TICK_S, self.tick, jitter_s=5.0)
        async with asyncio.TaskGroup() as group:
            group.create_task(ticker.run())
            group.create_task(self._work())
            if self._config.archive:
                group.create_task(self._watch_on())

    async def stop(self) -> None:
        """At the orderly end of this node, after PostgreSQL."""
        await self._archiver.stop()

    # Archiving

    def look(self) -> None:
        """The agreed view may have changed: a switchover that stops PostgreSQL must not wait for our next look."""
        if standing(self._cluster(), self._facts.node) != self._told:
            self._wake.set()

    async def _watch_on(self) -> None:
        while True:
            try:
                await self.watch()
            except (FlypgError, OSError) as error:
                log.warning("archiver_not_told", extra={"error": str(error)})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self._wake.wait()
            self._wake.clear()

    async def watch(self) -> None:
        """Tell the archiver how this node stands."""
        now = self._told = standing(self._cluster(), self._facts.node)
        if now.timeline == 0 and self._archiver.status is None:
            return
        path = await self._own_path()
        if path is None:
            return
        before = self._archiver.status.dropped if self._archiver.status else 0
        await self._archiver.tell(now, self._arguments(path, "--pg-wal", self._facts.pgdata / "pg_wal"))
        status = self._archiver.status
        if status is not None and status.dropped > before:
            self._wanted.set()

    # Snapshots

    async def tick(self) -> None:
        """Ask the policies whether a snapshot is due, here."""
        cluster = self._cluster()
        if self._running or cluster is None or source(cluster, shared=self._config.shared) != self._facts.node:
            return
        self._history = await self._notes.read_history(self._whose)
        if self.due().now:
            self._wanted.set()

    def due(self) -> Due:
        status = self._archiver.status
        gap = status is not None and status.dropped > self._dropped
        settled = time.monotonic() - self._began >= self._config.first_after_s
        return due(self._history, next_slot=self._next(), now=self._wall(), gap=gap, settled=settled)

    def _next(self) -> float | None:
        if not self._config.schedule:
            return None
        after = self._history.ok_at if self._history.ok_at is not None else self._wall()
        return next_after(self._config.schedule, after, jitter_s(self._facts.cluster, SPREAD_S))

    async def _work(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._under_lease()
            except FlypgError as error:
                log.warning("backup_not_begun", extra={"error": str(error)})

    async def _under_lease(self) -> None:
        """Take a snapshot, delete old ones, try the new one out; unless another node already does."""
        path = await self._own_path()
        lease = await self._notes.take(self._facts.node) if path is not None else None
        if lease is None or path is None:
            return
        try:
            self._history = await self._notes.read_history(self._whose)
            if not self.due().now:
                return
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._snapshot_and_more(path))
                keeper = group.create_task(self._keep(lease, work))
                work.add_done_callback(lambda _: keeper.cancel())
        finally:
            self._running = ""
            await self._notes.release(lease)

    async def _keep(self, lease: Any, work: asyncio.Task[None]) -> None:
        """Renew the lease; when it is lost, the work is ended: another node does it anew."""
        heard = time.monotonic()
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                if not await self._notes.renew(lease):
                    break
                heard = time.monotonic()
            except FlypgError:
                if time.monotonic() - heard > LEASE_S:
                    break
        log.warning("backup_lease_lost")
        work.cancel()

    async def _snapshot_and_more(self, path: PathName) -> None:
        snapshot = layout.snapshot_id([secrets.randbelow(len(layout.ALPHABET)) for _ in range(16)])
        status = self._archiver.status
        self._dropped = status.dropped if status else 0
        try:
            made = await self._child("snapshot", path, "--id", snapshot, "--conninfo", self._facts.conninfo)
        except (CommandFailed, CommandTimedOut) as error:
            failures = self._history.failures + 1
            log.error("snapshot_failed", extra={"error": str(error), "failures": failures})
            await self._remember(failed_at=self._wall(), failures=failures, error=str(error))
            return
        size = int(made["stored_bytes"])
        await self._remember(
            ok_at=self._wall(), ok_id=str(made["id"]), ok_bytes=size, failures=0, failed_at=None, error=""
        )
        log.info("snapshot_taken", extra={"snapshot": made["id"], "stored_bytes": size})
        if done := await self._try("sweep", path):
            await self._remember(kept=int(done["kept"]), oldest_at=done["oldest_at"])
        if self._config.verify and (done := await self._try("verify", path)) and done["id"]:
            if done["ok"]:
                await self._remember(verified_at=done["at"], verified_s=done["restore_s"], doubt="")
            else:
                await self._remember(doubt=f"{done['id']}: {done['text']}")

    async def _remember(self, **facts: Any) -> None:
        self._history = replace(self._history, **facts)
        await self._notes.write_history(self._history, self._whose)

    async def _try(self, work: str, path: PathName) -> dict[str, Any] | None:
        """Work that may fail without making the snapshot worse; None: it did."""
        try:
            done = await self._child(work, path)
        except (CommandFailed, CommandTimedOut) as error:
            log.warning(f"{work}_failed", extra={"error": str(error)})
            return None
        log.info(f"{work}_done", extra={"result": done})
        return done

    async def _child(self, work: str, path: PathName, *more: str) -> dict[str, Any]:
        """Do some work in a process of its own. Raises CommandFailed with the reason it gives."""
        self._running = work
        argv = [sys.executable, "-m", "backups.run", work, *self._arguments(path, *more)]
        try:
            output = await run(argv, timeout_s=RUN_S, env=self._environment())
        finally:
            self._running = ""
        result: dict[str, Any] = json.loads(output.decode().strip().rpartition("\n")[2])
        return result

    async def _own_path(self) -> PathName | None:
        """The path this cluster archives under; None before it has a system."""
        cluster = self._cluster()
        system_id = cluster.view.system_id if cluster and cluster.view else ""
        if system_id and (self._path is None or self._path.system_id != system_id):
            incarnation = await self._notes.incarnation(system_id, secrets.token_hex(4))
            self._path = PathName(self._facts.cluster, system_id, incarnation)
        return self._path if system_id else None

    def _arguments(self, path: PathName, *more: str | FilePath) -> list[str]:
        facts = self._facts
        own = ["--path", path, "--node", facts.node, "--data-dir", facts.data_dir, "--socket", facts.socket]
        own += ["--user", facts.user or "", "--programs", facts.programs]
        return [str(a) for a in (*own, *more)]

    def _environment(self) -> Mapping[str, str]:
        """What our processes need beyond the plain environment: settings, and how to find this code."""
        here = str(FilePath(__file__).resolve().parent.parent)
        return {**self._config.values, "PYTHONPATH": here}

    def _warnings(self) -> tuple[str, ...]:
        if not self._config.url.startswith("file://"):
            return ()
        place = FilePath(self._config.url.removeprefix("file://"))
        try:
            same = os.stat(place).st_dev == os.stat(self._facts.pgdata).st_dev
        except OSError:
            return ()
        return ("the snapshots lie on the volume of the database: they do not survive its loss",) if same else ()
