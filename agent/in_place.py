"""This node's part of an order to restore the whole cluster in place: done before the node starts.

The node that is named restores beside its old data, then changes the directories; the others wait for that, move theirs
aside, and start empty. Nothing of this node runs meanwhile. Each step may be cut off and is found half done by the next
start; `restored.json`, written last, says which order was carried out here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.wiring import Parts
from backups.children import Children
from backups.layout import parse_path
from backups.orders import Orders, RestoreOrder, Stage
from cluster.clock import SystemClock
from cluster.errors import CommandFailed, CommandTimedOut, FlypgError, InstanceError
from cluster.model import Event
from postgres.command import account
from postgres.files import fsync_directory, read_or_empty, remove, write_atomically
from postgres.instance import Run
from postgres.process import end_leftovers
from postgres.server import LocalInstance
from postgres.server_files import ServerFiles

LOOK_S = 10.0  # a running agent looks for an order
SOON_S = 0.5  # … one that has never heard of etcd, or waits for its turn
ASK_S = 1.5  # for etcd, at the start: it is not waited for
RETRY_S, RETRY_MAX_S = 5.0, 60.0
ENDING_S = 0.2  # for the server of a restore that was broken off, before it is killed
STOP_S = 60.0  # for PostgreSQL to stop in order
STEP_PERCENT = 20  # of the progress that is told: each is a write to etcd


def marker(parts: Parts) -> Path:
    return parts.state_file.with_name("restored.json")


def carried_out(parts: Parts, order: RestoreOrder) -> bool:
    try:
        return bool(json.loads(read_or_empty(marker(parts)) or "{}").get("order") == order.id)
    except ValueError:
        return False


async def open_order(parts: Parts) -> RestoreOrder | None:
    """The order that this node has not carried out. Raises FlypgError."""
    order = await Orders(parts.etcd, parts.cluster).read()
    return None if order is None or carried_out(parts, order) else order


async def notice(parts: Parts, asked: Callable[[], None], log: logging.Logger) -> None:
    """Until there is an order; then `asked` is called."""
    heard = False
    while True:
        try:
            order = await open_order(parts)
            heard = True
            if order is not None:
                log.warning("asked to restore in place", extra={"order": order.id, "by": order.asked_by})
                asked()
                return
        except FlypgError:
            pass  # etcd is silent: everything stays as it is
        await asyncio.sleep(LOOK_S if heard else SOON_S)


async def settle(parts: Parts, log: logging.Logger) -> str:
    """Carry out what was ordered, if anything was. An etcd that is silent is not waited for: see `notice`.

    Returns the id of the last order when another node brings the data of this cluster, else "".
    """
    orders = Orders(parts.etcd, parts.cluster)
    try:
        async with asyncio.timeout(ASK_S):
            order = await open_order(parts)
            last = order or await orders.read()
    except (FlypgError, TimeoutError):
        return ""
    if order is not None:
        await _Part(parts, orders, order, log).carry_out()
    return last.id if last is not None and last.node != parts.member.node else ""


class _Part:
    """One node's part of one order."""

    def __init__(self, parts: Parts, orders: Orders, order: RestoreOrder, log: logging.Logger) -> None:
        self._parts = parts
        self._orders = orders
        self._order = order
        self._log = log
        self._pgdata = parts.instance.pgdata
        self._fresh = self._pgdata.with_name(f"{self._pgdata.name}.restoring")
        self._note = parts.state_file.with_name("restoring.json")
        self._told = ""
        self._telling: set[asyncio.Task[None]] = set()

    async def carry_out(self) -> None:
        """Until it is done, or withdrawn. Failures are told and tried again."""
        pause_s = RETRY_S
        while True:
            try:
                if await self._step():
                    return
                pause_s = RETRY_S
                await asyncio.sleep(SOON_S)
            except (FlypgError, OSError, ValueError) as error:
                self._log.error("restore in place failed", extra={"error": str(error), "again_in_s": pause_s})
                await self._tell(Stage.FAILED, f"{self._parts.member.node}: {error}")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._withdrawn(), pause_s)
                pause_s = min(RETRY_MAX_S, pause_s * 2)

    async def _step(self) -> bool:
        """True: there is nothing left to do here."""
        now = await self._orders.read()
        if now is None or now.id != self._order.id:
            self._log.warning("the order to restore was withdrawn", extra={"order": self._order.id})
            await end_leftovers(self._fresh)  # the server of a restore that was cut off
            await asyncio.to_thread(_clear, self._fresh)
            remove(self._note)
            return True
        await self._stop_postgres()
        if self._order.node == self._parts.member.node:
            await self._restore()
            return True
        if (await self._orders.progress(self._order)).stage is not Stage.DONE:
            return False
        await asyncio.to_thread(self._set_aside)
        await asyncio.to_thread(self._mark)
        return True

    async def _withdrawn(self) -> None:
        """Return when this order is not the one in etcd any more: the cluster is down, nobody should wait for us."""
        while True:
            await asyncio.sleep(SOON_S)
            with contextlib.suppress(FlypgError):
                now = await self._orders.read()
                if now is None or now.id != self._order.id:
                    return

    async def _stop_postgres(self) -> None:
        instance = LocalInstance(self._parts.instance, SystemClock(), self._parts.member.node)
        try:
            until = time.monotonic() + STOP_S
            while (await instance.observe()).run is not Run.DOWN:
                await instance.stop(fast=time.monotonic() < until)
                await asyncio.sleep(0.05)
                if time.monotonic() > until + STOP_S:
                    raise InstanceError("PostgreSQL does not stop")
        finally:
            await instance.close()

    async def _restore(self) -> None:
        noted = self._noted()
        if not noted:
            await self._tell(Stage.RESTORING, f"{self._order.node} restores {self._order.snapshot}")
            await end_leftovers(self._fresh)  # of an attempt whose agent was killed
            await asyncio.to_thread(_clear, self._fresh)
            result = await self._unpacked()
            noted = {"order": self._order.id, "result": result}
            await asyncio.to_thread(write_atomically, self._note, json.dumps(noted), owner=None, durable=True)
        if not await self._orders.begin_change(self._order):
            raise InstanceError("the order changed while it was carried out: looking again")
        if self._fresh.exists():  # else the directories were changed already
            await asyncio.to_thread(self._set_aside)
            self._fresh.rename(self._pgdata)
            fsync_directory(self._pgdata.parent)
        result = noted["result"]
        text = f"restored in place to {self._order.target}: timeline {result['timeline']}, {result['lsn']}"
        node = self._parts.member.node
        event = Event(time.time(), 0, "restore", text, node, self._order.asked_by)
        if not await self._orders.finish(self._order, parse_path(self._order.path).system_id, event):
            raise InstanceError("the order changed while it was carried out: looking again")
        await asyncio.to_thread(self._mark)
        remove(self._note)
        self._log.warning("restored in place", extra={"order": self._order.id, "result": result})

    def _noted(self) -> dict[str, Any]:
        """What an attempt before this one has completed."""
        try:
            found = json.loads(read_or_empty(self._note) or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) and found.get("order") == self._order.id else {}

    async def _unpacked(self) -> dict[str, Any]:
        """Unpack, which may take hours, unless the order is withdrawn meanwhile. Raises InstanceError."""
        unpacking = asyncio.create_task(self._unpack())
        withdrawn = asyncio.create_task(self._withdrawn())
        try:
            await asyncio.wait((unpacking, withdrawn), return_when=asyncio.FIRST_COMPLETED)
            if unpacking.done():
                return unpacking.result()
            raise InstanceError("the order was withdrawn while it was carried out")
        finally:
            for task in (unpacking, withdrawn):
                task.cancel()
            await asyncio.gather(unpacking, withdrawn, return_exceptions=True)
            await end_leftovers(self._fresh, patience_s=ENDING_S)  # broken off: nothing is left, also when we end

    async def _unpack(self) -> dict[str, Any]:
        order, parts = self._order, self._parts
        wished = {"kind": order.kind, "text": order.text, "time": order.time, "lsn": order.lsn}
        more = ["--id", order.snapshot, "--target", json.dumps(wished), "--timeline", str(order.timeline)]
        more += ["--into", str(self._fresh)] + ([] if order.inclusive else ["--exclusive"])
        children = Children(parts.backups, parts.facts)
        try:
            return await children.run("restore", parse_path(order.path), *more, on_stderr=self._heard)
        except (CommandFailed, CommandTimedOut) as error:
            raise InstanceError(str(error).removeprefix("python ")) from error

    def _heard(self, chunk: bytes) -> None:
        for line in chunk.splitlines():
            try:
                found = json.loads(line)
                percent = 100 * found["done_bytes"] // max(1, found["total_bytes"])
            except (ValueError, KeyError, TypeError):
                continue
            text = f"{self._order.node} unpacks: {min(100, percent // STEP_PERCENT * STEP_PERCENT)} %"
            if text != self._told:
                self._told = text
                task = asyncio.ensure_future(self._tell(Stage.RESTORING, text))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)

    async def _tell(self, stage: Stage, text: str) -> None:
        try:
            await self._orders.tell(self._order, stage, text)
        except FlypgError as error:
            self._log.info("etcd was not told of the restore", extra={"error": str(error)})

    def _set_aside(self) -> None:
        """The old data and the old words go out of the way; half done, the rest is done."""
        for path in (self._pgdata, self._parts.state_file):
            aside = path.with_name(f"{path.name}.before-restore-{self._order.id}")
            if path.exists() and not aside.exists():
                path.rename(aside)
            if not self._order.keep:
                _clear(aside)
        for suffix in ("copying", "initdb", "rewinding"):
            _clear(self._pgdata.with_name(f"{self._pgdata.name}.{suffix}"))
        remove(self._parts.instance.conf / "adoption.json")
        fsync_directory(self._pgdata.parent)

    def _mark(self) -> None:
        """Other data lies here now, and nothing that was known of the old is true of it; the order is carried out."""
        instance = self._parts.instance
        files = ServerFiles(instance, self._parts.member.node, account(instance.user))
        files.write_settings(files.parameters, files.hba, generation=files.generation + 1)
        files.set_mark("stopped")
        text = json.dumps({"order": self._order.id})
        write_atomically(marker(self._parts), text, owner=None, durable=True)


def _clear(path: Path) -> None:
    """Remove a file or a directory that is unfinished, or that nobody wants kept."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        remove(path)
