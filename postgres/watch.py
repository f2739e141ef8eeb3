"""How this node finds the current primary: every node watches it, directly, and tells when its verdict changes.

Theory of operation. A trivial statement on one open connection about every 0.4 s; between statements the event loop
waits for that socket, so a primary that dies is noticed at once by the end of the connection. A statement that is late,
or a connection that ended, makes us ask in a new connection too. Only when nothing answers, and no WAL comes either,
for `suspect_after_s` of time in which we were awake, is the primary called silent. One live answer is enough to be OK:
a frozen postmaster whose open connections work is not this watch's affair.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.model import Answer, NodeId, Verdict
from postgres.evidence import Evidence
from postgres.line import Line, Probe, probe

PING_EVERY_S = 0.4
LATE_S = 0.2  # a statement without an answer for so long is worth asking in a new connection
LOOK_S = 0.1  # between two looks while something is unanswered, and between attempts
NEW_ANSWER_S = 1.0  # for a new connection to answer, before another one is tried
LOGIN_S = 2.0
LOGIN_PAUSES_S = (0.2, 1.0, 5.0, 15.0)  # after a login that failed: authentication costs both sides


@dataclass(frozen=True, slots=True)
class Target:
    """The primary to watch."""

    term: int
    node: NodeId
    host: str
    port: int


StreamAge = Callable[[], Awaitable[float | None]]


def _prefer(host: str, port: int) -> Mapping[str, str]:
    """Until it is known whom we can verify."""
    return {"sslmode": "prefer"}


class PrimaryWatch:
    """Watches what `watch` was last told; `run` is its task. `credentials`: libpq parameters of the operator's user."""

    def __init__(
        self,
        credentials: Mapping[str, str],
        *,
        stream_age: StreamAge,
        on_change: Callable[[Verdict], None],
        suspect_after_s: float = 1.0,
    ) -> None:
        """`stream_age`: seconds since this node's WAL receiver last heard, None without one; asked in doubt only."""
        self.suspect_after_s = suspect_after_s
        self.credentials = dict(credentials)
        self.security: Callable[[str, int], Mapping[str, str]] = _prefer  # libpq's parameters for TLS to a server
        self.verdict: Verdict | None = None  # None: nobody is watched
        self.on_contact: Callable[[int, bool], None] = lambda term, there: None  # long before there is a verdict
        self.alarm: Callable[[], int] = lambda: 0  # whom the kernel sends SIGUSR1 when the connection ends; 0: nobody
        self.on_alarm: Callable[[], None] = lambda: None  # it may have done so
        self._stream_age = stream_age
        self._on_change = on_change
        self._target: Target | None = None
        self._changed = asyncio.Event()
        self._log = logging.getLogger("flypg.watch")

    def watch(self, target: Target | None) -> None:
        """Watch this primary from now on; None: nobody (this node is the primary, or there is none)."""
        if target != self._target:
            self._target = target
            self._changed.set()
            self.verdict = Verdict(target.term, target.node, Answer.UNKNOWN) if target is not None else None

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._changed.clear()
            if self._target is None:
                await self._changed.wait()
                continue
            watching = asyncio.create_task(_OneWatch(self, self._target).run())
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({watching, changed}, return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()  # it ends only by a bug, which is not hidden
            finally:
                await _end(watching, changed)

    def conclude(self, target: Target, answer: Answer) -> None:
        """The verdict about `target` is this now; tell when it is news."""
        verdict = Verdict(target.term, target.node, answer)
        if target == self._target and verdict != self.verdict:
            self.verdict = verdict
            self._log.info("verdict", extra={"primary": target.node, "term": target.term, "answer": str(answer)})
            self._on_change(verdict)

    async def stream_age(self) -> float | None:
        """Never waits long: a local PostgreSQL that does not answer vouches for nobody."""
        try:
            async with asyncio.timeout(LOOK_S * 2):
                return await self._stream_age()
        except TimeoutError:
            return None


class _OneWatch:
    """The watch of one primary in one term."""

    def __init__(self, owner: PrimaryWatch, target: Target) -> None:
        self._owner = owner
        self._target = target
        self._evidence = Evidence(owner.suspect_after_s)
        self._ping_every_s = min(PING_EVERY_S, owner.suspect_after_s * 0.4)
        self._clock = asyncio.get_running_loop().time

    async def run(self) -> None:
        failed_logins, next_login = 0, 0.0
        while True:
            match await self._ask_new():
                case Probe.REFUSED:
                    self._conclude(self._evidence.refused())
                    await asyncio.sleep(LOOK_S)
                    continue
                case Probe.NOTHING:
                    await self._look(LOOK_S)
                    continue
                case Probe.ANSWERED:
                    self._conclude(self._evidence.answered())
                    self._owner.on_contact(self._target.term, True)
            line = None
            if self._clock() >= next_login:
                host, port = self._target.host, self._target.port
                credentials = {**self._owner.credentials, **self._owner.security(host, port)}
                line = await Line.open(host, port, credentials, LOGIN_S)
            if line is not None:
                failed_logins = 0
                await self._converse(line)
                if line.ended:
                    self._owner.on_contact(self._target.term, False)
            elif self._clock() >= next_login:
                next_login = self._clock() + LOGIN_PAUSES_S[min(failed_logins, len(LOGIN_PAUSES_S) - 1)]
                failed_logins += 1
            else:
                await asyncio.sleep(self._ping_every_s * min(failed_logins, 3))

    async def _converse(self, line: Line) -> None:
        """Ask again and again on an open connection; returns when it has ended, or when only a new one answers."""
        try:
            while await self._answers(line):
                self._conclude(self._evidence.answered())
                began = self._clock()
                if not await self._idle(line):
                    return
                self._evidence.waited(self._clock() - began)
        finally:
            line.close()

    async def _idle(self, line: Line) -> bool:
        """Pause between questions; False when the open connection is not to be used any more."""
        alarm, quiet = self._owner.alarm(), False
        try:
            quiet = await line.idle(self._ping_every_s, alarm)
            if not quiet:  # the last words of a server arrive before the end of its connection does
                self._owner.on_contact(self._target.term, False)
        finally:
            if alarm and not quiet:
                self._owner.on_alarm()
        return quiet

    async def _answers(self, line: Line) -> bool:
        """Does the open connection answer? False too when only a new one does."""
        line.ask()
        began = self._clock()
        if (answered := await line.answer(LATE_S)) is not None:
            return answered
        self._evidence.waited(self._clock() - began)
        late = asyncio.create_task(line.answer())
        try:
            while not late.done():
                answer = await self._ask_new(late)
                if answer is Probe.ANSWERED:
                    self._conclude(self._evidence.answered())
                    await asyncio.wait({late}, timeout=NEW_ANSWER_S)
                    return late.done() and late.result() is True
                await self._look(LOOK_S, late, refused=answer is Probe.REFUSED)
            return late.result() is True
        finally:
            await _end(late)

    async def _ask_new(self, late: asyncio.Task[bool | None] | None = None) -> Probe:
        """Ask in a new connection; what that takes counts as silence. Given up when `late` comes back meanwhile."""
        asking = asyncio.create_task(probe(self._target.host, self._target.port, NEW_ANSWER_S))
        try:
            while not asking.done() and not (late is not None and late.done()):
                await self._look(LOOK_S, asking, *([late] if late is not None else []))
            return asking.result() if asking.done() else Probe.NOTHING
        finally:
            await _end(asking)

    async def _look(self, pause_s: float, *tasks: asyncio.Task[Any], refused: bool = False) -> None:
        """Wait a little for one of these; what went by without any is silence."""
        began = self._clock()
        if tasks:
            done, _ = await asyncio.wait(tasks, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return
        else:
            await asyncio.sleep(pause_s)
        elapsed_s = self._clock() - began
        age = None
        if self._evidence.silent_s + elapsed_s >= self._evidence.suspect_after_s:
            age = await self._owner.stream_age()
        self._conclude(self._evidence.unanswered(elapsed_s, new_refused=refused, stream_age_s=age))

    def _conclude(self, answer: Answer) -> None:
        self._owner.conclude(self._target, answer)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these tasks, and return when they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
