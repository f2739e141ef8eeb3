"""The only door to etcd: calls with deadlines, over several endpoints, errors in our own words.

Theory of operation. There is one gRPC channel per endpoint, made when it is first needed, and one *current* endpoint.
A call goes to the current endpoint under a deadline of its own; when it fails there, the next endpoint becomes current,
watches move along, and the call is tried again. That is safe because every write here either carries a comparison that
its own success makes false, or may be repeated: when an attempt stayed without an answer and a later one finds the
comparison false, the outcome is unknown and said to be so.

Calls are started without blocking and answered from gRPC's own thread into the event loop; so a frozen endpoint holds
up no thread of ours. Only a watch has a thread, which sleeps in gRPC until something happens.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Never

from cluster.endpoints import Endpoint, EtcdOptions
from cluster.errors import FlypgError, OutcomeUnknown, StoreUnavailable
from cluster.etcd_grpc import (
    REFUSALS,
    RpcError,
    StatusCode,
    answer_of,
    credentials,
    details,
    etcdrpc,
    listen,
    never_sent,
    open_channel,
    settle,
    start_watch,
    starter,
    told,
    wants_login,
)
from cluster.etcd_messages import changes_in, comparison, found_in, operation, range_request
from cluster.etcd_values import (
    Changes,
    Comparison,
    Found,
    Get,
    KeyValue,
    LeaseGone,
    MemberStatus,
    Operation,
    Outcome,
)

SHORTEST_PATIENCE_S = 0.3
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 1.0  # between two attempts to watch


class Etcd:
    """A client of etcd. Belongs to one event loop; `close` it at the end.

    Raises StoreUnavailable when nothing was changed, OutcomeUnknown when a write may have been.
    """

    def __init__(self, options: EtcdOptions, *, first: int = 0) -> None:
        """`first`: the endpoint to begin with, modulo their number, so that nodes spread over the members."""
        self._options = options
        self._current = first % len(options.endpoints)
        self._credentials = credentials(options)
        self._channels: dict[int, Any] = {}
        self._calls: dict[tuple[int, str], Any] = {}
        self._token: str | None = None
        self._closed = False
        self._usual_s: dict[int, float] = {}  # by endpoint: how long answers take, smoothed
        self._login = asyncio.Lock()
        self.revision = 0  # the newest of which an answer has told: whatever was read at it still holds
        self._watches: set[Any] = set()  # streams that move along when the endpoint changes

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint in use."""
        return self._options.endpoints[self._current]

    async def close(self) -> None:
        """Hang up, for good. What is under way fails."""
        self._closed = True
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        self._calls.clear()

    async def get(self, key: str) -> KeyValue | None:
        """One key as it is now (linearizable); None when it does not exist."""
        return (await self.find(Get(key))).first

    async def find(self, wanted: Get) -> Found:
        """Read keys as they are now (linearizable), all at one revision."""
        response, _ = await self._call("Range", range_request(wanted), wanted.key, writes=False)
        return found_in(response, response.header.revision)

    async def transaction(
        self, compare: Iterable[Comparison], success: Iterable[Operation], failure: Iterable[Operation] = ()
    ) -> Outcome:
        """Do `success` if every comparison is true, else `failure`, as one step.

        The success of what is written must make a comparison false, or it must be harmless to write it twice.
        """
        compare, success = tuple(compare), tuple(success)
        request = etcdrpc.TxnRequest(
            compare=[comparison(c) for c in compare],
            success=[operation(o) for o in success],
            failure=[operation(o) for o in failure],
        )
        response, unsure = await self._call("Txn", request, _subject(compare, success), writes=True)
        if unsure and not response.succeeded:
            raise OutcomeUnknown(
                f"{_subject(compare, success)}: a first attempt was not answered, a second found it changed"
            )
        found = tuple(
            found_in(part.response_range, response.header.revision)
            for part in response.responses
            if part.WhichOneof("response") == "response_range"
        )
        return Outcome(response.succeeded, response.header.revision, found)

    async def grant(self, ttl_s: float) -> int:
        """A new lease that runs out `ttl_s` (whole seconds) after its last renewal."""
        response, _ = await self._call("LeaseGrant", etcdrpc.LeaseGrantRequest(TTL=int(ttl_s)), "lease", writes=False)
        return int(response.ID)

    async def keep_alive(self, lease: int) -> float:
        """Renew a lease: seconds it now has. Raises LeaseGone."""
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)
        response, _ = await self._call("LeaseKeepAlive", request, "lease renewal", writes=False)
        if response.TTL <= 0:
            raise LeaseGone(f"lease {lease:x} has run out")
        return float(response.TTL)

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys. One that is gone already is fine."""
        with suppress(LeaseGone):
            await self._call("LeaseRevoke", etcdrpc.LeaseRevokeRequest(ID=lease), "lease", writes=True)

    async def compact(self, revision: int) -> None:
        """Forget what keys were before `revision`."""
        await self._call("Compact", etcdrpc.CompactionRequest(revision=revision), "compaction", writes=True)

    async def status(self, endpoint: Endpoint) -> MemberStatus:
        """What the member behind `endpoint` says of itself, asked nowhere else."""
        try:
            response = await self._once(
                self._options.endpoints.index(endpoint), "Status", etcdrpc.StatusRequest(), self._options.attempt_s
            )
        except RpcError as error:
            raise StoreUnavailable(f"etcd at {endpoint} does not answer: {told(error)}") from error
        return MemberStatus(
            response.version, response.header.member_id, response.leader, response.raftIndex, response.dbSize
        )

    # Calls

    async def _call(self, method: str, request: Any, subject: str, *, writes: bool) -> tuple[Any, bool]:
        """The answer, and whether an earlier attempt stayed without one and may have been carried out."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._options.total_s
        unsure, logins, last = False, 0, ""
        for attempt in range(max(2, len(self._options.endpoints)) + 1):
            index = self._current
            left = until - loop.time()
            if left <= 0:
                break
            try:
                sent_at = loop.time()
                answer = await self._once(index, method, request, min(left, self._patience(index, attempt)))
                took_s = loop.time() - sent_at
                self.revision = max(self.revision, answer.header.revision)
                self._usual_s[index] = 0.8 * self._usual_s.get(index, took_s) + 0.2 * took_s
                return answer, unsure
            except RpcError as error:
                code, last = error.code(), f"{self._options.endpoints[index]}: {told(error)}"
                if wants_login(error) and self._options.user and logins == 0:
                    logins += 1
                    self._token = None
                    continue
                if code in REFUSALS or code is StatusCode.UNAUTHENTICATED:
                    raise self._refused(code, f"{subject}: etcd refuses: {told(error)}") from error
                unsure = unsure or not never_sent(error)
                self._move_from(index)
        if writes and unsure:
            raise OutcomeUnknown(f"{subject}: etcd did not answer ({last}); it may have been written")
        raise StoreUnavailable(f"{subject}: etcd does not answer ({last})")

    def _patience(self, index: int, attempt: int) -> float:
        """How long to wait for an answer. Short at first where answers are usually fast: another may have it sooner."""
        usual_s = self._usual_s.get(index)
        if attempt or usual_s is None or len(self._options.endpoints) == 1:
            return self._options.attempt_s
        return min(self._options.attempt_s, max(SHORTEST_PATIENCE_S, 10 * usual_s))

    async def _once(self, index: int, method: str, request: Any, timeout_s: float) -> Any:
        """One attempt at one endpoint. Raises RpcError."""
        metadata = () if method == "Authenticate" else await self._metadata(index, timeout_s)
        start = self._calls.get((index, method))
        if start is None:
            start = self._calls[index, method] = starter(self._channel(index), method)
        return await answer_of(start.future(request, timeout=timeout_s, metadata=metadata))

    async def _metadata(self, index: int, timeout_s: float) -> tuple[tuple[str, str], ...]:
        """What proves who we are. Raises RpcError when logging in fails."""
        if not self._options.user:
            return ()
        async with self._login:
            if self._token is None:
                request = etcdrpc.AuthenticateRequest(name=self._options.user, password=self._options.password)
                try:
                    self._token = (await self._once(index, "Authenticate", request, timeout_s)).token
                except RpcError as error:
                    if "authentication is not enabled" not in details(error):
                        raise
                    self._token = ""  # a user is set, but this etcd asks nobody
            token = self._token
        return (("token", token),) if token else ()

    def _channel(self, index: int) -> Any:
        channel = self._channels.get(index)
        if channel is None:
            if self._closed:
                raise StoreUnavailable("the connection to etcd was closed")
            channel = open_channel(self._options.endpoints[index], self._credentials)
            self._channels[index] = channel
        return channel

    def _move_from(self, index: int) -> None:
        """Give up the endpoint `index` for the next one, unless somebody did already."""
        self._usual_s.pop(index, None)
        if index != self._current or len(self._options.endpoints) == 1:
            return
        self._current = (index + 1) % len(self._options.endpoints)
        for stream in tuple(self._watches):
            stream.cancel()

    def _refused(self, code: StatusCode, text: str) -> FlypgError:
        return LeaseGone(text) if code is StatusCode.NOT_FOUND else StoreUnavailable(text)

    # Watches

    async def watch(self, start: str, end: str, tell: Callable[[Changes | None], object]) -> Never:
        """Call `tell` with every change of a key from `start` up to before `end`. Runs until it is cancelled.

        It is called with None when the watch begins, breaks and begins anew, since changes are missed meanwhile. Late
        and doubled calls are possible.
        """
        pause_s = PAUSE_MIN_S
        while True:
            index = self._current
            try:
                async with self._stream(index, start, end, tell) as (began, ended):
                    await asyncio.wait((began, ended), timeout=self._options.attempt_s, return_when=FIRST_COMPLETED)
                    if began.done():
                        pause_s = PAUSE_MIN_S
                        await ended
                        tell(None)
            except RpcError:
                pass  # could not log in
            if index == self._current:  # it broke by itself, nobody moved us
                self._move_from(index)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, PAUSE_MAX_S)

    @asynccontextmanager
    async def _stream(
        self, index: int, start: str, end: str, tell: Callable[[Changes | None], object]
    ) -> AsyncIterator[tuple[asyncio.Future[None], asyncio.Future[None]]]:
        """One watch at one endpoint: futures that complete when it has begun and when it has ended."""
        loop = asyncio.get_running_loop()
        began: asyncio.Future[None] = loop.create_future()
        ended: asyncio.Future[None] = loop.create_future()

        def heard(response: Any) -> None:
            if response is None or response.canceled:
                self._token = None  # should it be refused for its token
                stream.cancel()
                settle(ended)
                return
            settle(began)
            tell(None if response.created else changes_in(response))

        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        create = etcdrpc.WatchCreateRequest(key=start.encode(), range_end=end.encode())
        requests.put(etcdrpc.WatchRequest(create_request=create))
        metadata = (("hasleader", "true"), *await self._metadata(index, self._options.attempt_s))
        stream = start_watch(self._channel(index), iter(requests.get, None), metadata)
        self._watches.add(stream)
        threading.Thread(target=listen, args=(stream, loop, heard), name="etcd-watch", daemon=True).start()
        try:
            yield began, ended
        finally:
            self._watches.discard(stream)
            stream.cancel()
            requests.put(None)


def _subject(compare: tuple[Comparison, ...], success: tuple[Operation, ...]) -> str:
    return success[0].key if success else compare[0].key if compare else "transaction"
