"""Looking at the local PostgreSQL: one statement on an open connection, and a new connection about once a second.

Three misses of a second each, of the statement or of the new connection, mean that it hangs. Things that only show over
time are remembered here: when a standby's reply was first seen, since when WAL has not reached the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.errors import FlypgError, PostgresUnavailable
from cluster.model import Position, parse_lsn
from postgres import command, queries, server_log
from postgres.connection import NotAccepting, postmaster_answers
from postgres.controldata import HEAD, ControlData, parse, peek
from postgres.detach import furthest, identify
from postgres.files import free_bytes
from postgres.flushing import Flushing
from postgres.instance import Control, Run, Walsender
from postgres.parts import POLL_S, Parts
from postgres.walend import end_of_checkpoint

ANSWER_S = 1.0
PROBE_EVERY_S = 1.0
MISSES = 3
REIDENTIFY_S = 10.0
PENDING_EVERY_S = 30.0
SEGMENT_BYTES = 16 << 20  # without room for one a server that died cannot go on
STALLED = "flush stalled: writes do not reach the disk"
FULL_BYTES = 1 << 20  # less than this and writes fail for lack of space, or are about to


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look brought. `look` is None when there was no answer."""

    run: Run
    look: queries.Look | None = None
    position: Position | None = None
    replayed: int | None = None
    walsenders: tuple[Walsender, ...] = ()
    pending_restart: tuple[str, ...] = ()
    fault: str = ""
    suspect: bool = False


@dataclass(slots=True)
class _Memory:
    """Of one postmaster; forgotten with it."""

    pid: int = 0
    answered: bool = False  # has it ever?
    misses: int = 0
    probe_misses: int = 0
    probed_at: float = 0.0
    asked_at: float = 0.0  # when the last answered look was asked
    version: int = 0
    replies: dict[int, tuple[str, float | None]] = field(default_factory=dict)  # pid -> reply time, seen at
    replay_timeline: int = 0
    replayed: int = 0
    identified_at: float = 0.0
    pending: tuple[str, ...] = ()
    pending_at: float = 0.0
    flushing: Flushing = field(default_factory=Flushing)


class Observer:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._memory = _Memory()
        self._probe: asyncio.Task[bool] | None = None
        self._control_at: tuple[int, int] | None = None
        self._control: ControlData | None = None

    async def see(self) -> Seen:
        """Look at the running server. Never raises for one that does not answer."""
        parts = self._parts
        pid = parts.postmaster.find()
        if pid is None:
            self._memory = _Memory()
            return Seen(Run.DOWN)
        if pid != self._memory.pid:
            self._memory = _Memory(pid=pid)
            await parts.session.drop()
        memory, now = self._memory, parts.clock.boottime()
        self._probe_new_connections(now)
        try:
            look = await parts.session.ask(queries.look, ANSWER_S)
        except NotAccepting:
            memory.misses = 0
            return Seen(Run.HUNG if memory.probe_misses >= MISSES else Run.STARTING)
        except FlypgError:
            return self._no_answer()
        memory.misses, memory.answered, memory.version = 0, True, look.version
        try:
            seen = await self._interpret(look, now)
        except PostgresUnavailable:
            return self._no_answer()
        memory.asked_at = now
        return seen

    def _no_answer(self) -> Seen:
        memory = self._memory
        if self._parts.postmaster.find() is None:
            return Seen(Run.DOWN)
        memory.misses += 1
        if not memory.answered and memory.probe_misses < MISSES:
            return Seen(Run.STARTING)  # it has not opened its socket yet
        run = Run.HUNG if max(memory.misses, memory.probe_misses) >= MISSES else Run.UP
        return Seen(run, fault=STALLED if memory.flushing.stalled else "")  # explains the silence

    def _probe_new_connections(self, now: float) -> None:
        """Count how often in a row a new connection got no answer."""
        memory = self._memory
        if self._probe is not None and self._probe.done():
            answered = self._probe.result()
            memory.probe_misses = 0 if answered else memory.probe_misses + 1
            self._probe = None
        if self._probe is None and now - memory.probed_at >= PROBE_EVERY_S:
            memory.probed_at = now
            self._probe = asyncio.ensure_future(postmaster_answers(self._parts.config, ANSWER_S))

    async def _interpret(self, look: queries.Look, now: float) -> Seen:
        memory = self._memory
        if now - memory.pending_at >= PENDING_EVERY_S or not memory.pending_at:
            memory.pending = await self._parts.session.ask(queries.pending_restart)
            memory.pending_at = now
        run = Run.HUNG if memory.probe_misses >= MISSES else Run.UP
        if look.in_recovery:
            position, replayed = await self._standby_position(look, now)
            fault = ""
        else:
            assert look.flushed and look.timeline, "a primary has a position"
            position, replayed = Position(int(look.timeline, 16), parse_lsn(look.flushed)), None
            memory.replay_timeline = 0
            fault = await self._stalled(look, now)
        senders, suspect = self._walsenders(look), bool(memory.flushing.stuck)
        return Seen(run, look, position, replayed, senders, memory.pending, fault or self.full_volume(), suspect)

    async def _standby_position(self, look: queries.Look, now: float) -> tuple[Position | None, int | None]:
        if look.replayed is None:
            return None, None
        memory = self._memory
        replayed = parse_lsn(look.replayed)
        received = parse_lsn(look.received) if look.received else None
        received_timeline = int(look.receiver[1] or 0) if look.receiver else 0
        outdated = (
            memory.replay_timeline == 0
            or (received_timeline not in (0, memory.replay_timeline))
            or now - memory.identified_at >= REIDENTIFY_S
            or (received is None and replayed != memory.replayed)
        )
        memory.replayed = replayed
        if outdated:
            timeline = (await identify(self._parts)).timeline
            if not (await self._parts.session.ask(queries.in_recovery, ANSWER_S)):
                return None, None  # promoted between the two questions: that is the timeline of the primary it is now
            memory.replay_timeline, memory.identified_at = timeline, now
        return furthest(Position(memory.replay_timeline, replayed), received, received_timeline), replayed

    def _walsenders(self, look: queries.Look) -> tuple[Walsender, ...]:
        """A new reply arrived after the look before this one: that moment is what we can vouch for."""
        memory = self._memory
        replies: dict[int, tuple[str, float | None]] = {}
        found = []
        for pid, name, state, sync_state, flushed, lag, reply in look.walsenders or ():
            known = memory.replies.get(pid)
            seen_at: float | None = None
            if known is not None:
                seen_at = known[1] if known[0] == reply else memory.asked_at
            replies[pid] = (reply, seen_at)
            flushed_lsn = parse_lsn(flushed) if flushed else None
            found.append(
                Walsender(name, state, sync_state, flushed_lsn, float(lag) if lag is not None else None, seen_at)
            )
        memory.replies = replies
        return tuple(found)

    async def _stalled(self, look: queries.Look, now: float) -> str:
        """Why writes do not reach the disk; "" while they do, however slowly."""
        assert look.flushed and look.inserted, "a primary has both"
        flushing = self._memory.flushing
        if flushing.asks(parse_lsn(look.flushed), now):
            waiting = await self._parts.session.ask(queries.stuck_in_writing, ANSWER_S)
            flushing.saw(waiting, parse_lsn(look.inserted), now)
        return STALLED if flushing.stalled else ""

    @property
    def replay_timeline(self) -> int:
        """A timeline that replay of the running standby has reached; 0 means unknown."""
        return self._memory.replay_timeline if self._memory.pid == self._parts.postmaster.find() else 0

    def full_volume(self) -> str:
        """Evidence that a running server cannot write for lack of space. Nearly full is not meant."""
        pgdata = self._parts.config.pgdata
        with contextlib.suppress(OSError):
            if free_bytes(pgdata) < FULL_BYTES:
                return "data volume full"
        return ""

    def why_it_died(self, logged: tuple[Path | None, int]) -> str:
        """What its log and its volume say about its death, when that speaks against starting it again; else "".

        `logged`: where the log ended before its start."""
        with contextlib.suppress(OSError):
            words = server_log.since(self._parts.config.log, logged)
            if server_log.NO_SPACE in server_log.reason(words):
                return "WAL volume full"
            if free_bytes(self._parts.config.pgdata / "pg_wal") < SEGMENT_BYTES:
                return "WAL volume full"
            if "could not fsync" in server_log.reason(words):
                return "fsync failing"
        return ""

    def settings_changed(self) -> None:
        """Ask for settings that wait for a restart with the next look."""
        self._memory.pending_at = 0.0

    async def control(self) -> ControlData | None:
        """What pg_controldata says; None without data. Asked again only when the file has changed."""
        path = self._parts.config.pgdata / "global" / "pg_control"
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if self._control is None or self._control_at != (stat.st_mtime_ns, stat.st_ino):
            tool = self._parts.config.binaries / "pg_controldata"
            output = await command.run([tool, "-D", self._parts.config.pgdata], timeout_s=5.0, user=self._parts.owner)
            self._control, self._control_at = self._with_end(parse(output.decode())), (stat.st_mtime_ns, stat.st_ino)
        return self._control

    def _with_end(self, found: ControlData) -> ControlData:
        control = found.control
        if not control.clean_primary:
            return found
        pgdata = self._parts.config.pgdata
        end = end_of_checkpoint(pgdata, control.timeline, control.checkpoint, found.segment_bytes)
        return replace(found, control=replace(control, end=end or 0))

    def running_control(self) -> Control | None:
        """The control file of a running server, cheaply."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._parts.config.pgdata / "global" / "pg_control", os.O_RDONLY)
            try:
                return peek(os.read(descriptor, HEAD.size))
            finally:
                os.close(descriptor)
        return None

    async def final_end(self, within_s: float) -> Position | None:
        """Wait until the control file says that a primary was shut down in order: from then on nothing is added to its
        WAL, though walsenders may still be sending it. The end of it; None when it did not come to that."""
        deadline = self._parts.clock.boottime() + within_s
        while (control := self.running_control()) is None or not control.clean_primary:
            if self._parts.postmaster.find() is None or self._parts.clock.boottime() > deadline:
                break
            await asyncio.sleep(POLL_S)
        if control is not None and control.clean_primary and self._control is not None:  # the size of a segment stays
            pgdata, segment = self._parts.config.pgdata, self._control.segment_bytes
            if end := end_of_checkpoint(pgdata, control.timeline, control.checkpoint, segment):
                return Position(control.timeline, end)
        found = await self.control()
        return found.control.stopped_at if found is not None and found.control.clean_primary else None

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
