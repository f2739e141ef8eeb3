"""Keeps the archiver process of this node: it runs while this node is the primary, and is told how things stand."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any

from backups.wal import WalStatus
from backups.walqueue import Queue
from backups.wire import ask
from cluster.errors import FlypgError
from cluster.model import HandoverStage, NodeId, Phase, Snapshot
from postgres.command import reap, spawn

log = logging.getLogger("flypg.backups")
LONGEST_PAUSE_S = 60.0  # between two starts of an archiver that ends at once
SILENT_S = 10.0  # one that has answered, and does not any more, is worth a word
STARTING_S = 60.0  # one that has never answered for so long never will
FROZEN_S = 30.0  # and is replaced: it is frozen, or its socket is gone


@dataclass(frozen=True, slots=True)
class Standing:
    """What the archiver is told. Timeline 0: not the primary of an open term."""

    timeline: int
    draining: bool


def standing(cluster: Snapshot | None, me: NodeId) -> Standing:
    """How this node stands in the agreed view."""
    view = cluster.view if cluster else None
    if view is None or view.phase is not Phase.OPEN or view.primary != me:
        return Standing(0, False)
    stopping = view.handover is not None and view.handover.stage is HandoverStage.STOP
    return Standing(view.timeline, stopping)


def parse_status(body: dict[str, Any]) -> WalStatus:
    """What an archiver says, also one of another version that an agent before us has started. Pure."""
    known = {f.name for f in fields(WalStatus)} - {"queue"}
    queue = {k: v for k, v in (body.get("queue") or {}).items() if k in {f.name for f in fields(Queue)}}
    return WalStatus(**{k: v for k, v in body.items() if k in known}, queue=Queue(**queue))


class ArchiverProcess:
    """The process behind one socket. It survives an agent that is replaced, and ends without one."""

    def __init__(
        self,
        socket: FilePath,
        log_file: FilePath,
        environment: Mapping[str, str],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._socket = socket
        self._log_file = log_file
        self._environment = dict(environment)
        self._pid: int | None = None
        self._heard = True  # has the one that was started last ever answered
        self._silent_at: float | None = None  # since when the one that runs does not answer, by the monotonic clock
        self._failures = 0  # starts in a row after which none answered
        self._again_at = 0.0  # not before that, on the monotonic clock
        self._why = ""  # the last words of one that ended without an answer
        self.status: WalStatus | None = None  # as last told; None: it does not run

    async def tell(self, now: Standing, arguments: list[str], written: int | None = None) -> None:
        """Start it if it should run and does not, tell it how things stand, and hear how it does. `written`: where the
        WAL ends that is flushed here."""
        if await self._say(now, written):
            return
        self.status = None
        if now.timeline == 0:
            return
        alive = self._alive()
        if alive:
            self._end_if_frozen()
        if not alive and not self._heard:
            self._heard = True
            self._failures += 1
            self._again_at = self._monotonic() + min(LONGEST_PAUSE_S, 2.0**self._failures)
            self._why = await asyncio.to_thread(_last_words, self._log_file)
            log.error("archiver_ended", extra={"error": self._why, "failures": self._failures})
        if self._failures:
            self.status = WalStatus(error=f"the archiver does not start: {self._why}")
        elif self._heard and self._silent_s() >= SILENT_S:
            self.status = WalStatus(error=f"the archiver (process {self._pid}) does not answer at {self._socket}")
        if alive or self._monotonic() < self._again_at:
            return  # it is starting, or had better not be yet
        self._heard, self._silent_at = False, self._monotonic()
        argv = [sys.executable, "-m", "backups.run", "wal", *arguments]
        self._pid = await asyncio.to_thread(spawn, argv, user=None, output=self._log_file, env=self._environment)
        log.info("archiver_started", extra={"pid": self._pid})

    def _alive(self) -> bool:
        if self._pid is None:
            return False
        reap(self._pid)
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            self._pid = None
            return False
        return True

    def _silent_s(self) -> float:
        return 0.0 if self._silent_at is None else self._monotonic() - self._silent_at

    def _end_if_frozen(self) -> None:
        """Kill the one that runs when it has been silent for too long: what it did not finish, the next one does."""
        if self._pid is None:
            return
        if self._silent_at is None:
            self._silent_at = self._monotonic()
        if self._silent_s() >= (FROZEN_S if self._heard else STARTING_S):
            log.error("archiver_frozen", extra={"pid": self._pid, "silent_s": round(self._silent_s())})
            os.kill(self._pid, signal.SIGKILL)

    async def _say(self, now: Standing, written: int | None) -> bool:
        """False: nobody listens."""
        word = "draining" if now.draining else "open"
        try:
            answer = await asyncio.to_thread(ask, self._socket, "stand", str(now.timeline), word, str(written or 0))
        except OSError:
            return False
        kind, _, body = answer.partition(" ")
        if kind != "ok":
            raise FlypgError(f"the archiver answered {answer!r}")
        self.status = parse_status(json.loads(body))
        self._heard, self._failures, self._again_at, self._silent_at = True, 0, 0.0, None
        return True

    async def stop(self) -> None:
        """End it; what it has not archived is archived later, by whoever is primary then."""
        try:
            await asyncio.to_thread(ask, self._socket, "stop")
        except OSError:
            return


def _last_words(file: FilePath) -> str:
    """The last line of a log."""
    try:
        with file.open("rb") as log_file:
            log_file.seek(max(0, log_file.seek(0, os.SEEK_END) - 4096))
            lines = log_file.read().decode(errors="replace").split("\n")
    except OSError as error:
        return str(error)
    return next((line.strip() for line in reversed(lines) if line.strip()), f"it ended without a word; see {file}")
