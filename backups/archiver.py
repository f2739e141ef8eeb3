"""Keeps the archiver process of this node: it runs while this node is the primary, and is told how things stand."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
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

    def __init__(self, socket: FilePath, log_file: FilePath, environment: Mapping[str, str]) -> None:
        self._socket = socket
        self._log_file = log_file
        self._environment = dict(environment)
        self._pid: int | None = None
        self.status: WalStatus | None = None  # as last told; None: it does not run

    async def tell(self, now: Standing, arguments: list[str], written: int | None = None) -> None:
        """Start it if it should run and does not, tell it how things stand, and hear how it does. `written`: where the
        WAL ends that is flushed here."""
        if await self._say(now, written):
            return
        self.status = None
        if now.timeline == 0:
            return
        if self._alive():
            return  # it is starting
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
        return True

    async def stop(self) -> None:
        """End it; what it has not archived is archived later, by whoever is primary then."""
        try:
            await asyncio.to_thread(ask, self._socket, "stop")
        except OSError:
            return
