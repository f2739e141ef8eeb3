"""Carries out one step on this node; what must be durable first is written here, in one place.

The order of writes is the protocol's: a promise, a floor, an office is on this node's own disk before it is acted on or
told to anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import assert_never

from agent.local import RestartUnderWay
from agent.memory import Memory
from agent.steps import (
    ApplyRule,
    ApplySettings,
    Barrier,
    Checkpoint,
    CheckWal,
    CloseGate,
    CloseRequest,
    Copy,
    CopyDone,
    CreateRoles,
    Follow,
    GivePromise,
    HandOver,
    InitDb,
    KeepSlots,
    OpenGate,
    PromiseStopped,
    Promote,
    Publish,
    Restart,
    Rewind,
    StartPrimary,
    StartStandby,
    Step,
    Stop,
)
from cluster.errors import InstanceError
from cluster.model import Disk, NodeId, Position, Promise, RequestKind, Snapshot, Upstream
from cluster.store import KeeperStore
from postgres.instance import Instance, NodeDisk


class Performer:
    def __init__(self, instance: Instance, disk: NodeDisk, store: KeeperStore, me: NodeId, log: logging.Logger) -> None:
        self._instance = instance
        self._disk = disk
        self._store = store
        self._me = me
        self._log = log

    async def perform(
        self,
        step: Step,
        words: Disk,
        memory: Memory,
        snap: Snapshot | None,
        now: float,
        announce: Callable[[], Awaitable[None]],
    ) -> Disk:
        """Do `step`; the answer is what is on disk afterwards. Raises what store and instance raise."""
        match step:
            case InitDb() | Copy() | Rewind() | CopyDone():
                return await self._make_data(step, words, memory, snap)
            case StartStandby() | StartPrimary() | Stop() | HandOver() | Restart():
                return await self._start_or_stop(step, words, memory, now, announce)
            case Follow() | CheckWal() | GivePromise() | PromiseStopped() | Publish() | Promote():
                return await self._stand_by(step, words, memory, now)
            case ApplyRule() | Barrier() | Checkpoint() | CreateRoles():
                await self._lead(step, memory)
            case ApplySettings() | OpenGate() | CloseGate() | KeepSlots() | CloseRequest():
                await self._settle(step, memory)
            case _:
                assert_never(step)
        return words

    async def _make_data(
        self, step: InitDb | Copy | Rewind | CopyDone, words: Disk, memory: Memory, snap: Snapshot | None
    ) -> Disk:
        """What makes the data directory anew, or another one's."""
        match step:
            case InitDb():
                await self._instance.begin_initdb()
            case Copy(source=source, seed=seed):
                words = await self._write_floor(words, source)
                memory.known_end = None
                await self._instance.begin_copy(source, seed=seed)
                await self._answer_reclone(snap)
            case Rewind(source=source):
                words = await self._write_floor(words, source)
                ended, memory.known_end = memory.known_end, None
                await self._instance.begin_rewind(source)
                memory.rewound_from = ended
            case CopyDone():
                words = await self._write(replace(words, copying=False))
            case _:
                assert_never(step)
        return words

    async def _start_or_stop(
        self,
        step: StartStandby | StartPrimary | Stop | HandOver | Restart,
        words: Disk,
        memory: Memory,
        now: float,
        announce: Callable[[], Awaitable[None]],
    ) -> Disk:
        """What starts or stops the server."""
        match step:
            case StartStandby(upstream=upstream):
                if upstream is not None:
                    words = await self._not_below(words, upstream.term)
                memory.last_start = now
                await self._instance.start_standby(upstream)
            case StartPrimary(rule=rule):
                words = await self._write(replace(words, was_primary=max(words.was_primary, rule.term)))
                memory.last_start = now
                memory.forget_server()
                await self._instance.start_primary(rule)
            case Stop(fast=fast):
                await self._instance.stop(fast=fast)
            case HandOver(term=term):
                end = await self._instance.hand_over()
                if end is not None:
                    words = await self._promise(PromiseStopped(term, end), words)
                await self._instance.stop(fast=True)
            case Restart(request=request):
                memory.restart = RestartUnderWay(request)
                await announce()
                await self._instance.stop(fast=True)
            case _:
                assert_never(step)
        return words

    async def _stand_by(
        self,
        step: Follow | CheckWal | GivePromise | PromiseStopped | Publish | Promote,
        words: Disk,
        memory: Memory,
        now: float,
    ) -> Disk:
        """Whom this node follows, to whom it has given its word, and that it takes over."""
        match step:
            case Follow(upstream=upstream):
                words = await self._not_below(words, upstream.term)
                await self._instance.follow(upstream)
            case CheckWal(source=source):
                memory.wal_checked = now
                memory.wal_lost = await self._is_wal_lost(source, memory.known_end)
            case GivePromise() | PromiseStopped() | Publish():
                words = await self._promise(step, words)
            case Promote(term=term, timeline=timeline, rule=rule):
                words = await self._write(replace(words, was_primary=max(words.was_primary, term)))
                memory.forget_server()
                await self._instance.promote(timeline, rule)
                memory.promoting, memory.asked = term, rule
            case _:
                assert_never(step)
        return words

    async def _lead(self, step: ApplyRule | Barrier | Checkpoint | CreateRoles, memory: Memory) -> None:
        """What only a primary does."""
        match step:
            case ApplyRule(rule=rule):
                await self._instance.apply_rule(rule)
                await self._instance.barrier(rule)
                memory.applied, memory.barrier_term = rule, rule.term
            case Barrier(rule=rule):
                await self._instance.barrier(rule)
                memory.applied, memory.barrier_term = rule, rule.term
            case Checkpoint(request=request):
                await (self._instance.prepare_stop() if request else self._instance.checkpoint())
                memory.ready_for = request or memory.ready_for
            case CreateRoles():
                await self._instance.ensure_roles()
                memory.roles_ready = True
            case _:
                assert_never(step)

    async def _settle(
        self, step: ApplySettings | OpenGate | CloseGate | KeepSlots | CloseRequest, memory: Memory
    ) -> None:
        """What a running server is told in either role, and what its operator is."""
        match step:
            case ApplySettings(parameters=parameters, hba=hba):
                await self._instance.set_parameters(parameters, hba)
            case OpenGate():
                await self._instance.set_gate(open=True)
            case CloseGate():
                await self._instance.set_gate(open=False)
            case KeepSlots(nodes=nodes):
                await self._instance.keep_slots(nodes)
            case CloseRequest(request=request, outcome=outcome):
                await self._store.close_request(request, outcome)
                memory.restart = None
            case _:
                assert_never(step)

    async def _is_wal_lost(self, source: Upstream, end: Position | None) -> bool:
        if end is None:  # it has not come up yet: only its log can say
            return await self._instance.lacks_wal()
        return end.lsn < await self._instance.oldest_wal(source)

    async def _write(self, words: Disk) -> Disk:
        await self._disk.write(words)
        return words

    async def _not_below(self, words: Disk, term: int) -> Disk:
        """Following a primary of `term` is a promise, too: never to serve a lower one."""
        return words if words.promised >= term else await self._write(replace(words, promised=term))

    async def _write_floor(self, words: Disk, source: Upstream) -> Disk:
        """A node that is being made from `source` may not be counted before it has all that `source` has now."""
        floor = await self._instance.ask_position(source)
        if words.floor is not None and words.floor > floor:
            floor = words.floor
        return await self._write(replace(words, floor=floor, copying=True, promised=max(words.promised, source.term)))

    async def _promise(self, step: GivePromise | PromiseStopped | Publish, words: Disk) -> Disk:
        match step:
            case GivePromise(term=term):
                position = await self._instance.detach()
                if words.floor is not None and position < words.floor:
                    raise InstanceError(f"stands at {position}, below its floor {words.floor}: no promise")
                promise = Promise(self._me, term, position)
            case PromiseStopped(term=term, position=position):
                promise = Promise(self._me, term, position)
            case Publish():
                assert words.promise is not None, "only what is on disk is published"
                promise = words.promise
        if promise != words.promise:
            assert promise.term >= words.promised, "a promise is never broken"
            words = await self._write(replace(words, promised=promise.term, promise=promise))
        await self._store.promise(promise)
        return words

    async def _answer_reclone(self, snap: Snapshot | None) -> None:
        for request in snap.requests if snap is not None else ():
            if request.kind is RequestKind.RECLONE and request.node == self._me and not request.outcome:
                await self._store.close_request(request.id, f"done: the copy of {self._me} has begun; see flypg status")
