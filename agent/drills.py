"""Drills on this node: who may ask, one at a time, each carried out by a process of its own (drill_helper.py).

There is nothing of this in an agent whose settings do not switch drills on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

from agent import drill_helper
from agent.processes import gone, reap, start_time
from cluster.clock import Clock
from cluster.drill_orders import Order, key_of, order_tag, same, session_key
from cluster.model import Snapshot
from healthchecks.drills import DrillRefused, Note

ROOT = Path(drill_helper.__file__).resolve().parent.parent
NONCE_S = 10.0
NONCES = 32  # given out and not used yet; the oldest make room
START_S = 20.0
MEND_S = 30.0
ENDING_S = 2.0  # a helper that has answered for the last time is gone by then


@dataclass(frozen=True, slots=True)
class DrillSetup:
    """What drills need to know of their node."""

    cluster: str
    node: str
    data_dir: Path
    pgdata: Path
    listen: tuple[str, ...]
    port: int  # of the helper; 0: a free one
    etcd: tuple[tuple[str, int], ...]
    client_ports: tuple[int, ...]
    ports: tuple[int, ...]
    password: str  # of the operator, the user `postgres`

    def __repr__(self) -> str:  # it holds a secret
        return f"DrillSetup({self.node})"


class Helper:
    """A running helper."""

    def __init__(self, order: Mapping[str, object]) -> None:
        """Raises OSError when it cannot be started."""
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", drill_helper.COMMAND.format(root=str(ROOT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )
        self.pid = self._child.pid
        self._child.returncode = 0  # subprocess is to forget it: it may outlive us, and we reap it ourselves
        assert self._child.stdin is not None and self._child.stdout is not None, "they were asked for"
        self._out = self._child.stdout.fileno()
        os.set_blocking(self._out, False)
        self._buffer = b""
        with contextlib.suppress(BrokenPipeError), self._child.stdin as stdin:
            stdin.write(json.dumps(order).encode() + b"\n")

    async def said(self, within_s: float | None) -> dict[str, Any]:
        """Its next words; {} when it has ended without any, or said nothing in time."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within_s):
                while b"\n" not in self._buffer:
                    readable = asyncio.Event()
                    loop.add_reader(self._out, readable.set)
                    try:
                        await readable.wait()
                    finally:
                        loop.remove_reader(self._out)
                    data = os.read(self._out, 65536)
                    if not data:
                        return {}
                    self._buffer += data
        except TimeoutError:
            return {}
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))

    def kill(self) -> None:
        if start_time(self.pid) is not None:
            os.kill(self.pid, 9)

    async def close(self) -> None:
        """Wait for its end."""
        await gone(self.pid)
        reap(self.pid)
        assert self._child.stdout is not None, "it was asked for"
        self._child.stdout.close()


class NodeDrills:
    """Implements healthchecks.drills.Drills."""

    def __init__(self, setup: DrillSetup, clock: Clock, snapshot: Callable[[], Snapshot | None]) -> None:
        self._setup = setup
        self._clock = clock
        self._snapshot = snapshot
        self._state = setup.data_dir / "run" / "drill.json"
        self._key: bytes | None = None
        self._nonces: dict[str, float] = {}
        self._running: tuple[Order, Helper, Note] | None = None
        self._started = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._busy = asyncio.Lock()
        self._log = logging.getLogger("flypg.drills")

    def challenge(self) -> str:
        while len(self._nonces) >= NONCES:
            del self._nonces[next(iter(self._nonces))]
        nonce = secrets.token_hex(16)
        self._nonces[nonce] = self._clock.boottime() + NONCE_S
        return nonce

    async def check(self, what: str, nonce: str, text: str, tag: str, who: str) -> None:
        good_until = self._nonces.pop(nonce, 0.0)
        if self._clock.boottime() >= good_until:
            raise DrillRefused(401, "this challenge was not given out, is used up or too old: ask for a new one")
        if self._key is None:
            self._key = await asyncio.to_thread(key_of, self._setup.password, self._setup.cluster)
        if not same(tag, order_tag(self._key, what, self._setup.node, nonce, text)):
            self._log.warning("drill_refused", extra={"why": "wrong signature", "by": who})
            raise DrillRefused(401, f"the order is not signed with the OPERATOR_PASSWORD of {self._setup.node}")

    async def offer(self) -> Mapping[str, str]:
        said = await self._once({"mode": "offer"})
        if not isinstance(said.get("faults"), dict):
            raise DrillRefused(500, "the helper did not answer")
        return dict(said["faults"])

    async def begin(self, order: Order, nonce: str, note: Note) -> int:
        async with self._busy:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENDING_S):
                    await self._idle.wait()
            if self._running is not None:
                raise DrillRefused(409, f"a drill is under way on {self._setup.node}: {self._running[0]}")
            assert self._key is not None, "the order was checked"
            asked = {"mode": "drill", "fault": order.fault, "for_s": order.for_s}
            try:
                helper = Helper(self._words(asked | {"key": session_key(self._key, nonce)}))
            except OSError as error:
                raise DrillRefused(500, f"the helper cannot be started: {error}") from None
            said = await helper.said(START_S)
            if not isinstance(said.get("port"), int):
                helper.kill()
                await helper.close()
                raise DrillRefused(409, str(said.get("error", "the helper did not start")))
            self._running = order, helper, note
            self._idle.clear()
            self._started.set()
            self._log.warning("drill", extra={"fault": order.fault, "for_s": order.for_s, "by": order.asked_by})
            return int(said["port"])

    async def run(self) -> Never:
        """Mend what an earlier drill has left behind, then follow each drill to its end."""
        await self._mend()
        while True:
            await self._started.wait()
            self._started.clear()
            assert self._running is not None, "it was started"
            _, helper, note = self._running
            said = await helper.said(None)
            await helper.close()
            why = str(said.get("ended", ""))
            if not why:  # killed, and nothing was undone
                await self._mend()
                why = "its helper was killed"
            self._running = None
            self._idle.set()
            self._log.info("drill_ended", extra={"why": why})
            await note(why)

    async def _mend(self) -> None:
        if not self._state.exists():
            return
        said = await self._once({"mode": "mend"})
        if said.get("ended"):
            self._log.warning("drill_mended", extra={"why": "an earlier drill was killed before it was undone"})

    async def _once(self, asked: dict[str, object]) -> dict[str, Any]:
        """Let a helper do one thing."""
        try:
            helper = Helper(self._words(asked))
        except OSError as error:
            self._log.warning("drill_helper_failed", extra={"error": str(error)})
            return {}
        try:
            return await helper.said(MEND_S)
        finally:
            helper.kill()
            await helper.close()

    def _words(self, asked: Mapping[str, object]) -> dict[str, object]:
        setup, snapshot = self._setup, self._snapshot()
        view = snapshot.view if snapshot is not None else None
        return {
            "agent": [os.getpid(), start_time(os.getpid())],
            "data_dir": str(setup.data_dir),
            "pgdata": str(setup.pgdata),
            "state": str(self._state),
            "peers": [m.host for m in view.members if m.node != setup.node] if view is not None else [],
            "etcd": [list(endpoint) for endpoint in setup.etcd],
            "client_ports": list(setup.client_ports),
            "ports": list(setup.ports),
            "listen": list(setup.listen),
            "port": setup.port,
            **asked,
        }
