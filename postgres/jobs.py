"""The steps of minutes: initdb, base backup, rewind. Each runs as one task in the background and is observed as a Job.

Nothing half done is ever taken for a data directory: initdb and pg_basebackup work beside it and are renamed into place
when they are complete; the directory that was there is moved aside first, never deleted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.errors import FlypgError, InstanceError
from cluster.model import Upstream
from postgres import command, queries, seeding
from postgres.config import OPERATOR, REPLICATOR, SUPERUSER, remote_conninfo
from postgres.connection import bounded, connect_remote
from postgres.files import (
    free_bytes,
    fsync_directory,
    holds_files,
    make_directory,
    remove,
    sync_data,
    write_atomically,
)
from postgres.instance import Control, Job
from postgres.parts import Parts
from postgres.process import end_leftovers
from postgres.seeding import Seeder
from postgres.wal_home import keep_wal_home

log = logging.getLogger("flypg.postgres")
INITDB_S = 300.0
COPY_S = 7 * 86400.0  # a copy is watched by its progress, not by its duration
REWIND_S = 6 * 3600.0
RECOVERY_S = 3600.0
ENDING_S = 0.2  # for a server that nobody needs any more, before it is killed
RESERVE_BYTES = 64 << 20  # what must stay free after a copy
PROGRESS = re.compile(rb"(\d+)/(\d+) kB \((\d+)%\)")


def beside(pgdata: Path, suffix: str) -> Path:
    return pgdata.with_name(f"{pgdata.name}.{suffix}")


def old_copies(pgdata: Path) -> list[Path]:
    """Data directories that were moved aside, oldest first."""
    found = [p for p in pgdata.parent.glob(f"{pgdata.name}.old-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


@dataclass(slots=True)
class _State:
    job: Job
    task: asyncio.Task[None]


class Jobs:
    """At most one runs at a time; the last one is remembered until the next begins."""

    def __init__(self, parts: Parts, on_change: Callable[[], None]) -> None:
        self._parts = parts
        self._on_change = on_change
        self._state: _State | None = None
        self.seeder: Seeder | None = None  # None: copies come from the primary

    @property
    def job(self) -> Job | None:
        return self._state.job if self._state else None

    @property
    def running(self) -> bool:
        return self._state is not None and self._state.job.running

    def begin(self, job: Job, work: Coroutine[Any, Any, None]) -> None:
        """Start `work` in the background. Raises InstanceError when another job runs."""
        if self.running:
            work.close()
            assert self._state is not None
            raise InstanceError(f"{self._state.job.kind} is still running")
        self._state = _State(job, asyncio.ensure_future(self._run(work)))

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        error = ""
        try:
            await work
        except FlypgError as failure:
            error = str(failure)
        except OSError as failure:
            error = f"{failure.filename or 'the volume'}: {failure.strerror or failure}"
        finally:
            assert self._state is not None
            self._state.job = replace(self._state.job, running=False, error=error)
            self._on_change()

    def progress(self, text: str) -> None:
        if self._state is not None and self._state.job.progress != text:
            self._state.job = replace(self._state.job, progress=text)

    def _note(self, *, seeded: str = "", note: str = "") -> None:
        assert self._state is not None, "only a job that runs has something to note"
        self._state.job = replace(self._state.job, seeded=seeded, note=note)

    async def close(self) -> None:
        """Break off what runs."""
        if self._state is not None and not self._state.task.done():
            self._state.task.cancel()
            await asyncio.wait({self._state.task})

    # The jobs themselves.

    async def initdb(self) -> None:
        parts, pgdata = self._parts, self._parts.config.pgdata
        if holds_files(pgdata):
            raise InstanceError(f"{pgdata} is not empty: it is not overwritten")
        fresh = beside(pgdata, "initdb")
        await asyncio.to_thread(_empty, fresh, parts.owner)
        await command.run(
            [
                parts.config.binaries / "initdb",
                *("-D", fresh, "-U", SUPERUSER, "--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8"),
                *("--auth-local=peer", "--auth-host=scram-sha-256", "--no-sync"),
            ],
            timeout_s=INITDB_S,
            user=parts.owner,
        )
        await asyncio.to_thread(self._install, fresh)

    async def copy(self, source: Upstream, *, seed: bool = True) -> None:
        parts, pgdata = self._parts, self._parts.config.pgdata
        fresh = beside(pgdata, "copying")
        await end_leftovers(fresh)  # of an attempt whose agent was killed
        await asyncio.to_thread(_empty, fresh, parts.owner)
        parts.files.write_passfile()
        connection = await connect_remote(parts.config, source.host, source.port)
        try:
            there = await bounded(connection, queries.source(connection), 30.0)
        finally:
            await connection.close()
        if there.tablespaces:
            raise InstanceError(f"{source.node} has tablespaces outside its data directory: flypg cannot copy them")
        await asyncio.to_thread(self._make_room, there.size_bytes, source)
        if seed and self.seeder is not None and await self._seed(self.seeder, source, fresh):
            await asyncio.to_thread(self._install, fresh)
            return
        await command.run(
            [
                parts.config.binaries / "pg_basebackup",
                *("-D", fresh, "--wal-method=stream", "--checkpoint=fast", "--progress", "--no-password", "--no-sync"),
                *("-d", remote_conninfo(parts.config, source, user=REPLICATOR, name=f"flypg_copy_{parts.me}")),
            ],
            timeout_s=COPY_S,
            user=parts.owner,
            on_stderr=self._read_progress,
        )
        await asyncio.to_thread(self._install, fresh)

    async def _seed(self, seeder: Seeder, source: Upstream, fresh: Path) -> bool:
        """Fill `fresh` from elsewhere. False: it could not be done, which is noted, and `fresh` is empty again."""
        config, me = self._parts.config, self._parts.me
        try:
            async with seeding.primary(config, source) as holding:
                await seeding.held(holding, me)
                wanted = await seeding.described(holding, source, fresh)
                made = await seeder(wanted, self.progress)
                async with seeding.primary(config, source) as asking:  # the first may have been ended in these hours
                    now = await seeding.described(asking, source, fresh)
            why = seeding.lost(wanted, now, made)
        except asyncio.CancelledError:
            await end_leftovers(fresh, patience_s=ENDING_S)  # the server that replayed: who started it was killed
            raise
        except (FlypgError, OSError) as error:
            why = str(error)
        self.progress("")
        if not why:
            self._note(seeded=made.name)
            log.info("seeded", extra={"from": made.name, "source": source.node})
            return True
        self._note(note=f"copied from {source.node} instead of the repository: {why}")
        log.warning("not seeded, the primary is copied", extra={"source": source.node, "why": why})
        await end_leftovers(fresh)
        await asyncio.to_thread(_empty, fresh, self._parts.owner)
        return False

    def _read_progress(self, chunk: bytes) -> None:
        if found := PROGRESS.findall(chunk):
            done_kb, all_kb, percent = (int(n) for n in found[-1])
            self.progress(f"{percent} % of {max(done_kb, all_kb) / (1 << 20):.1f} GB")

    def _make_room(self, size: int, source: Upstream) -> None:
        """See that the copy fits. Directories moved aside before the present one make way first."""
        pgdata = self._parts.config.pgdata
        needed = int(size * 1.05) + RESERVE_BYTES
        for old in old_copies(pgdata) if (pgdata / "PG_VERSION").exists() else ():
            if free_bytes(pgdata.parent) < needed:
                shutil.rmtree(old)
        free = free_bytes(pgdata.parent)
        if free < needed:
            kept = [str(p) for p in (pgdata, *old_copies(pgdata)) if p.exists()]
            raise InstanceError(
                f"a copy of {source.node} needs {needed >> 20} MB, but only {free >> 20} MB are free on the volume of"
                f" {pgdata.parent}: extend it" + (f", or remove {' or '.join(kept)} if you are sure" if kept else "")
            )

    def _install(self, fresh: Path) -> None:
        """Put a complete data directory in place and move the present one aside."""
        pgdata = self._parts.config.pgdata
        older = old_copies(pgdata)
        for name in ("standby.signal", "recovery.signal", "postmaster.pid", "postmaster.opts"):
            remove(fresh / name)
        keep_wal_home(fresh, pgdata, self._parts.owner)
        sync_data(fresh)
        if pgdata.exists():
            if any(pgdata.iterdir()):
                last = int(older[-1].name.rpartition("-")[2]) if older else 0
                pgdata.rename(beside(pgdata, f"old-{last + 1}"))
            else:
                pgdata.rmdir()
        fresh.rename(pgdata)
        fsync_directory(pgdata.parent)
        remove(beside(pgdata, "rewinding"))
        for old in older:  # the one just moved aside stays
            shutil.rmtree(old)
        files = self._parts.files
        files.write_settings(files.parameters, files.hba, generation=files.generation + 1)
        files.set_mark("stopped")

    async def rewind(self, source: Upstream, control: Control) -> None:
        parts, pgdata = self._parts, self._parts.config.pgdata
        parts.files.write_passfile()
        connection = await connect_remote(parts.config, source.host, source.port)
        try:
            there = await bounded(connection, queries.source(connection), 10.0)
        finally:
            await connection.close()
        if there.in_recovery or there.timeline is None:
            raise InstanceError(f"{source.node} is not a primary (yet): it cannot be rewound to")
        if there.checkpoint_timeline != there.timeline:
            raise InstanceError(
                f"{source.node} writes timeline {there.timeline}, but its control file still shows"
                f" {there.checkpoint_timeline}: rewinding waits for its next checkpoint"
            )
        await end_leftovers(pgdata)
        if not control.clean:
            self.progress("recovering what it wrote last")
            await self._recover()
        self.progress("looking what must be rewound")
        await self._pg_rewind(source, "--dry-run")  # what can be refused is refused before anything is touched
        mark = beside(pgdata, "rewinding")  # a rewind that was cut off leaves nothing that may ever be started
        write_atomically(mark, "", owner=None, durable=True)
        self.progress("rewinding")
        parts.files.remove_signals()
        await self._pg_rewind(source, "--progress", "--no-sync")  # file by file, that takes longer than the rewinding
        await asyncio.to_thread(sync_data, pgdata)
        parts.files.write_signal("standby.signal")
        files = parts.files
        files.write_settings(files.parameters, files.hba, generation=files.generation + 1)
        remove(mark)

    async def _pg_rewind(self, source: Upstream, *options: str) -> None:
        config = self._parts.config
        name = f"flypg_rewind_{self._parts.me}"
        await command.run(
            [
                config.binaries / "pg_rewind",
                *options,
                *("-D", config.pgdata, "--no-ensure-shutdown", "--source-server"),
                remote_conninfo(config, source, user=OPERATOR, name=name, database="postgres"),
            ],
            timeout_s=REWIND_S,
            user=self._parts.owner,
            on_stderr=self._read_progress,
        )

    async def _recover(self) -> None:
        """Crash recovery in single-user mode: nobody can connect, and pg_rewind wants a server that was shut down."""
        parts, config = self._parts, self._parts.config
        parts.files.write_all(parts.files.without_rule(), gate_open=False)
        parts.files.remove_signals()
        remove(config.pgdata / "postmaster.pid")
        try:
            await command.run(
                [
                    config.binaries / "postgres",
                    *("--single", "-F", "-D", config.pgdata, "-c", f"config_file={parts.files.main_path}"),
                    *("-c", "logging_collector=off", "-c", "archive_mode=off", "template1"),
                ],
                timeout_s=RECOVERY_S,
                user=parts.owner,
            )
        finally:
            parts.files.write_signal("standby.signal")


def _empty(directory: Path, owner: command.Account | None) -> None:
    """An empty directory of the server's user; what an earlier attempt left in it goes."""
    if directory.exists():
        shutil.rmtree(directory)
    make_directory(directory, owner=owner)
    os.chmod(directory, 0o700)
