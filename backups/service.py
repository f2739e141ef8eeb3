"""Backups as part of an agent: snapshots when they are due, WAL while this node is the primary.

An idle agent pays for a timer only. All work is done by processes of their own (`backups.run`), which bring the memory
and the libraries it takes, and give them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from backups import layout
from backups.alarms import ArchiveAlarm, Gap
from backups.archiver import ArchiverProcess, Standing, standing
from backups.children import Children
from backups.config import BackupConfig
from backups.facts import BackupStatus, NodeFacts
from backups.layout import PathName
from backups.notes import LEASE_S, Notes
from backups.policy import Due, RunHistory, due, jitter_s, retry_at, source, succeeded
from backups.schedule import Ticker, next_after
from backups.volume import warnings
from cluster.errors import CommandFailed, CommandTimedOut, FlypgError, OutcomeUnknown, StoreUnavailable
from cluster.model import Event, Snapshot

log = logging.getLogger("flypg.backups")
WATCH_S = 2.0  # how often the archiver is told how things stand
TICK_S = 60.0
NOTE_AGAIN_S = 1.0  # what work has come to is written down again so often, until etcd takes it
UNDONE = {"sweep": "old snapshots are not deleted", "verify": "the restore test could not be made"}
SPREAD_S = 600.0  # clusters with the same schedule begin within so many seconds of each other


class BackupService:
    """One per agent. `cluster`: the last state of the cluster this agent has read; None before the first. `written`:
    where the WAL ends that is flushed here, if that is known."""

    def __init__(
        self,
        config: BackupConfig,
        facts: NodeFacts,
        notes: Notes,
        cluster: Callable[[], Snapshot | None],
        *,
        written: Callable[[], int | None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._facts = facts
        self._notes = notes
        self._cluster = cluster
        self._wall = wall
        self._written = written
        self._whose = "" if config.shared else facts.node  # whose history of snapshots it is
        self._began = time.monotonic()
        self._history = RunHistory()
        self._path: PathName | None = None
        self._running = ""
        self._read = False
        self._warnings: tuple[str, ...] = ()
        self._alarm = ArchiveAlarm()
        self._untold: list[str] = []  # events that etcd has not got yet
        self._gap: Gap | None = None  # likewise
        self._children = Children(config, facts)
        self._archiver = ArchiverProcess(facts.socket, facts.run_dir / "archiver.log", self._children.environment())
        self._wanted = asyncio.Event()
        self._wake = asyncio.Event()
        self._known = asyncio.Event()  # the cluster has been read
        self._told = Standing(0, False)

    def status(self) -> BackupStatus:
        return BackupStatus(
            url=self._config.url or (f"s3://{self._config.s3.bucket}" if self._config.s3 else ""),
            archiving=self._config.archive,
            history=self._history,
            next_at=self._next(),
            running=self._running,
            wal=self._archiver.status,
            warnings=self._warnings,
            shared=self._config.shared,
            retry_at=retry_at(self._history),
            archive_timeout_s=self._config.archive_timeout_s,
            read=self._read,
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
            group.create_task(self._first_look())
            if self._config.archive:
                group.create_task(self._watch_on())

    async def _first_look(self) -> None:
        """The ticker has come too early: what is asked right after the start of an agent is to be answered."""
        await self._known.wait()
        with contextlib.suppress(FlypgError):
            await self.tick()

    async def stop(self) -> None:
        """At the orderly end of this node, after PostgreSQL."""
        await self._archiver.stop()

    # Archiving

    def look(self) -> None:
        """The agreed view may have changed: a switchover that stops PostgreSQL must not wait for our next look."""
        if self._cluster() is not None:
            self._known.set()
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
        if not self._read:  # else an agent that starts while its file system is not mounted would begin a repository
            self._history = await self._notes.read_history(self._whose)
            self._read = True
        arguments = self._children.arguments(path, "--pg-wal", self._facts.pgdata / "pg_wal", *self._begun())
        await self._archiver.tell(now, arguments, self._written())
        before = self._alarm.back_at
        heard = self._alarm.look(self._archiver.status, self._wall(), primary=now.timeline != 0)
        if self._alarm.back_at != before:
            self._wanted.set()  # what failed while the repository was away need not wait any longer
        self._untold += heard.events
        self._gap = heard.gap or self._gap
        await self._tell()

    async def _tell(self) -> None:
        """Write down what is new of the archive. What etcd does not take now is tried again."""
        while self._untold:
            await self._notes.tell(self._event(self._untold[0]))
            del self._untold[0]
        if (gap := self._gap) is not None:
            first = self._history.gap_at is None
            text = f"WAL was let go to keep the disk from filling: the archive has a gap at {gap.name}"
            await self._remember(text if first else "", gap_at=gap.at, gap=gap.name)
            self._gap = None
            self._wanted.set()

    def _event(self, text: str) -> Event:
        cluster = self._cluster()
        term = cluster.view.term if cluster is not None and cluster.view is not None else 0
        return Event(self._wall(), term, "backup", text, self._facts.node, self._facts.node)

    # Snapshots

    async def tick(self) -> None:
        """Ask the policies whether a snapshot is due, here."""
        cluster = self._cluster()
        if self._running or cluster is None:
            return
        self._warnings = await asyncio.to_thread(warnings, self._config.url, self._facts.pgdata)
        self._history = await self._notes.read_history(self._whose)
        self._read = True
        if source(cluster, shared=self._config.shared) == self._facts.node and self.due().now:
            self._wanted.set()

    def due(self) -> Due:
        settled = time.monotonic() - self._began >= self._config.first_after_s
        return due(
            self._history, next_slot=self._next(), now=self._wall(), settled=settled, back_at=self._alarm.back_at
        )

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
                work = group.create_task(self._worked(path))
                keeper = group.create_task(self._keep(lease, work))
                work.add_done_callback(lambda _: keeper.cancel())
            if not work.cancelled() and (error := work.result()) is not None:
                raise error
        finally:
            self._running = ""
            await self._notes.release(lease)

    async def _worked(self, path: PathName) -> FlypgError | None:
        """What was in the way, as a value: a group of tasks would make something else of it."""
        try:
            await self._snapshot_and_more(path)
        except FlypgError as error:
            return error
        return None

    async def _keep(self, lease: Any, work: asyncio.Task[Any]) -> None:
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
        began = self._wall()
        try:
            made = await self._child("snapshot", path, "--id", snapshot, "--conninfo", self._facts.conninfo)
        except (CommandFailed, CommandTimedOut) as error:
            failures = self._history.failures + 1
            log.error("snapshot_failed", extra={"error": str(error), "failures": failures})
            text = "" if failures > 1 else f"a snapshot failed, and is tried again: {error}"
            await self._note(text, failed_at=self._wall(), failures=failures, error=str(error))
            return
        size = int(made["stored_bytes"])
        await self._succeeded(began, str(made["id"]), size)
        log.info("snapshot_taken", extra={"snapshot": made["id"], "stored_bytes": size})
        undone = [why] if (why := made.get("after_error")) else []
        if done := await self._try("sweep", path, undone):
            bad = str(done["unreadable"])
            told = f"a snapshot's record cannot be read, no WAL is deleted: {bad}" if bad else ""
            told = "" if bad == self._history.unreadable else told
            await self._note(told, kept=int(done["kept"]), oldest_at=done["oldest_at"], unreadable=bad)
        if self._config.verify and (done := await self._try("verify", path, undone)) and done["id"]:
            if done["ok"]:
                await self._note(verified_at=done["at"], verified_s=done["restore_s"], doubt="")
            else:
                doubt = f"{done['id']}: {done['text']}"
                await self._note(f"a restore test failed: {doubt}", doubt=doubt)
        if (failed := "; ".join(undone)) != self._history.undone:
            await self._note(failed, undone=failed)

    async def _succeeded(self, began: float, snapshot: str, size: int) -> None:
        def change(history: RunHistory) -> RunHistory:
            now, where = self._wall(), self._config.url
            return succeeded(history, began=began, at=now, snapshot=snapshot, size=size, where=where)

        before = self._history
        text = f"snapshot {snapshot} was taken"
        if before.gap_at is not None:
            text += f": restores begin anew after the gap at {before.gap}"
        worth_it = before.failures or before.gap_at is not None
        await self._noted(change, text if worth_it else "")

    async def _note(self, event: str = "", **facts: Any) -> None:
        await self._noted(lambda h: replace(h, **facts), event)

    async def _noted(self, change: Callable[[RunHistory], RunHistory], event: str) -> None:
        """A moment without etcd does not undo work of hours: it is tried for as long as our lease is not lost."""
        while True:
            try:
                return await self._change(change, event)
            except (StoreUnavailable, OutcomeUnknown) as error:
                log.warning("backup_not_noted", extra={"error": str(error)})
            await asyncio.sleep(NOTE_AGAIN_S)

    async def _remember(self, event: str = "", **facts: Any) -> None:
        await self._change(lambda h: replace(h, **facts), event)

    async def _change(self, change: Callable[[RunHistory], RunHistory], event: str) -> None:
        told = self._event(event) if event else None
        self._history = await self._notes.change_history(change, self._whose, told)

    async def _try(self, work: str, path: PathName, undone: list[str]) -> dict[str, Any] | None:
        """Work that may fail without making the snapshot worse; None: it did, and `undone` says why."""
        try:
            done = await self._child(work, path)
        except (CommandFailed, CommandTimedOut) as error:
            log.warning(f"{work}_failed", extra={"error": str(error)})
            undone.append(f"{UNDONE[work]}: {error}")
            return None
        log.info(f"{work}_done", extra={"result": done})
        return done

    async def _child(self, work: str, path: PathName, *more: str) -> dict[str, Any]:
        """Do some work in a process of its own. Raises CommandFailed with the reason it gives."""
        self._running = work
        try:
            return await self._children.run(work, path, *more, *self._begun())
        finally:
            self._running = ""

    def _begun(self) -> tuple[str, ...]:
        """A shared directory lies on a file system that may not be mounted: no repository is begun there twice."""
        begun = self._config.shared and self._config.url.startswith("file://")
        return ("--begun",) if begun and self._history.where == self._config.url else ()

    async def _own_path(self) -> PathName | None:
        """The path this cluster archives under; None before it has a system."""
        cluster = self._cluster()
        system_id = cluster.view.system_id if cluster and cluster.view else ""
        if system_id and (self._path is None or self._path.system_id != system_id):
            incarnation = await self._notes.incarnation(system_id, secrets.token_hex(4))
            self._path = PathName(self._facts.cluster, system_id, incarnation)
        return self._path if system_id else None
