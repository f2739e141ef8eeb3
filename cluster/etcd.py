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
import os
import queue
import ssl
import threading
import warnings
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Never

# Before the first import of protobuf: etcd3's generated messages are too old for the C implementation.
os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # we only ever fork to exec
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # every error reaches us as a status

import grpc

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # for the same age
    from etcd3 import etcdrpc

with suppress(ImportError):
    from grpc import _common

    # Waiting threads look ten times a second whether a signal came, for programs that wait in their main thread. We
    # never do, and a watch waits for ever: that was half of what an idle client cost. Where it is gone, no harm.
    _common.MAXIMUM_WAIT_TIMEOUT = 60.0

from cluster.endpoints import Endpoint, EtcdOptions
from cluster.errors import FlypgError, OutcomeUnknown, SettingsError, StoreUnavailable
from cluster.etcd_values import (
    Changes,
    Comparison,
    Created,
    Delete,
    Found,
    Get,
    KeyValue,
    LeaseGone,
    MemberStatus,
    Modified,
    Operation,
    Outcome,
    Put,
)

CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # we retry ourselves, elsewhere
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A watch on a connection that went dead while nothing is called. etcd hangs up on those that ping more often than
    # every 5 s. Calls notice within their deadline, and take the watch along.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
)

METHODS = {
    "Range": ("KV", etcdrpc.RangeRequest, etcdrpc.RangeResponse),
    "Txn": ("KV", etcdrpc.TxnRequest, etcdrpc.TxnResponse),
    "Compact": ("KV", etcdrpc.CompactionRequest, etcdrpc.CompactionResponse),
    "LeaseGrant": ("Lease", etcdrpc.LeaseGrantRequest, etcdrpc.LeaseGrantResponse),
    "LeaseRevoke": ("Lease", etcdrpc.LeaseRevokeRequest, etcdrpc.LeaseRevokeResponse),
    # A stream in etcd's definition. With one request on it, it is on the wire what a plain call is.
    "LeaseKeepAlive": ("Lease", etcdrpc.LeaseKeepAliveRequest, etcdrpc.LeaseKeepAliveResponse),
    "Authenticate": ("Auth", etcdrpc.AuthenticateRequest, etcdrpc.AuthenticateResponse),
    "Status": ("Maintenance", etcdrpc.StatusRequest, etcdrpc.StatusResponse),
}
WATCH_PATH = "/etcdserverpb.Watch/Watch"
DELETED = 1  # mvccpb.Event.EventType
SHORTEST_PATIENCE_S = 0.3
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 1.0  # between two attempts to watch

# After these, the request is known to have had no effect, and another endpoint would say the same.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}


class Etcd:
    """A client of etcd. Belongs to one event loop; `close` it at the end.

    Raises StoreUnavailable when nothing was changed, OutcomeUnknown when a write may have been.
    """

    def __init__(self, options: EtcdOptions, *, first: int = 0) -> None:
        """`first`: the endpoint to begin with, modulo their number, so that nodes spread over the members."""
        self._options = options
        self._current = first % len(options.endpoints)
        self._credentials = _credentials(options)
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
        response, _ = await self._call("Range", _range(wanted), wanted.key, writes=False)
        return _found(response, response.header.revision)

    async def transaction(
        self, compare: Iterable[Comparison], success: Iterable[Operation], failure: Iterable[Operation] = ()
    ) -> Outcome:
        """Do `success` if every comparison is true, else `failure`, as one step.

        The success of what is written must make a comparison false, or it must be harmless to write it twice.
        """
        compare, success = tuple(compare), tuple(success)
        request = etcdrpc.TxnRequest(
            compare=[_comparison(c) for c in compare],
            success=[_operation(o) for o in success],
            failure=[_operation(o) for o in failure],
        )
        response, unsure = await self._call("Txn", request, _subject(compare, success), writes=True)
        if unsure and not response.succeeded:
            raise OutcomeUnknown(
                f"{_subject(compare, success)}: a first attempt was not answered, a second found it changed"
            )
        found = tuple(
            _found(part.response_range, response.header.revision)
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
        except grpc.RpcError as error:
            raise StoreUnavailable(f"etcd at {endpoint} does not answer: {_told(error)}") from error
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
            except grpc.RpcError as error:
                code, last = error.code(), f"{self._options.endpoints[index]}: {_told(error)}"
                if _wants_login(error) and self._options.user and logins == 0:
                    logins += 1
                    self._token = None
                    continue
                if code in REFUSALS or code is grpc.StatusCode.UNAUTHENTICATED:
                    raise self._refused(code, f"{subject}: etcd refuses: {_told(error)}") from error
                unsure = unsure or not _never_sent(error)
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
        """One attempt at one endpoint. Raises grpc.RpcError."""
        metadata = () if method == "Authenticate" else await self._metadata(index, timeout_s)
        start = self._calls.get((index, method))
        if start is None:
            service, sent, answered = METHODS[method]
            start = self._channel(index).unary_unary(
                f"/etcdserverpb.{service}/{method}",
                request_serializer=sent.SerializeToString,
                response_deserializer=answered.FromString,
            )
            self._calls[index, method] = start
        return await _answer(start.future(request, timeout=timeout_s, metadata=metadata))

    async def _metadata(self, index: int, timeout_s: float) -> tuple[tuple[str, str], ...]:
        """What proves who we are. Raises grpc.RpcError when logging in fails."""
        if not self._options.user:
            return ()
        async with self._login:
            if self._token is None:
                request = etcdrpc.AuthenticateRequest(name=self._options.user, password=self._options.password)
                try:
                    self._token = (await self._once(index, "Authenticate", request, timeout_s)).token
                except grpc.RpcError as error:
                    if "authentication is not enabled" not in _details(error):
                        raise
                    self._token = ""  # a user is set, but this etcd asks nobody
            token = self._token
        return (("token", token),) if token else ()

    def _channel(self, index: int) -> Any:
        channel = self._channels.get(index)
        if channel is None:
            if self._closed:
                raise StoreUnavailable("the connection to etcd was closed")
            endpoint = self._options.endpoints[index]
            if endpoint.tls:
                channel = grpc.secure_channel(endpoint.target, self._credentials, options=CHANNEL_OPTIONS)
            else:
                channel = grpc.insecure_channel(endpoint.target, options=CHANNEL_OPTIONS)
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

    def _refused(self, code: grpc.StatusCode, text: str) -> FlypgError:
        return LeaseGone(text) if code is grpc.StatusCode.NOT_FOUND else StoreUnavailable(text)

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
            except grpc.RpcError:
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
                _settle(ended)
                return
            _settle(began)
            tell(None if response.created else _changes(response))

        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        create = etcdrpc.WatchCreateRequest(key=start.encode(), range_end=end.encode())
        requests.put(etcdrpc.WatchRequest(create_request=create))
        metadata = (("hasleader", "true"), *await self._metadata(index, self._options.attempt_s))
        stream = self._channel(index).stream_stream(
            WATCH_PATH,
            request_serializer=etcdrpc.WatchRequest.SerializeToString,
            response_deserializer=etcdrpc.WatchResponse.FromString,
        )(iter(requests.get, None), metadata=metadata)
        self._watches.add(stream)
        threading.Thread(target=_listen, args=(stream, loop, heard), name="etcd-watch", daemon=True).start()
        try:
            yield began, ended
        finally:
            self._watches.discard(stream)
            stream.cancel()
            requests.put(None)


def _listen(stream: Iterator[Any], loop: asyncio.AbstractEventLoop, heard: Callable[[Any], None]) -> None:
    """Hand everything that is heard on a watch to the event loop; None at its end. Runs in a thread of its own."""
    with suppress(RuntimeError):  # the loop is closed: nobody listens any more
        with suppress(grpc.RpcError):
            for response in stream:
                loop.call_soon_threadsafe(heard, response)
        loop.call_soon_threadsafe(heard, None)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _answer(call: Any) -> Any:
    """Wait for a call without blocking. Raises grpc.RpcError. Cancelling the wait cancels the call."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(_: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, done)

    call.add_done_callback(tell)
    try:
        await done
    finally:
        if not call.done():
            call.cancel()
    return call.result()


def _details(error: Any) -> str:
    return error.details() or ""


def _told(error: Any) -> str:
    return f"{error.code().name.lower()}: {_details(error)}"


def _never_sent(error: Any) -> bool:
    """Did the request surely not reach etcd?"""
    return error.code() is grpc.StatusCode.UNAVAILABLE and "failed to connect" in _details(error)


def _wants_login(error: Any) -> bool:
    """Is our token too old, or unknown to a member that was restarted?"""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or (
        error.code() is grpc.StatusCode.INVALID_ARGUMENT
        and any(text in _details(error) for text in ("user name is empty", "revision of auth store is old"))
    )


def _credentials(options: EtcdOptions) -> Any:
    """TLS credentials; None when no endpoint uses TLS. Raises SettingsError when a file cannot be read."""
    if not any(endpoint.tls for endpoint in options.endpoints):
        return None

    def content(key: str, path: str) -> bytes | None:
        try:
            return Path(path).read_bytes() if path else None
        except OSError as error:
            raise SettingsError(key, path, f"cannot be read: {error.strerror}") from error

    return grpc.ssl_channel_credentials(
        content("FLYPG_ETCD_CA_FILE", options.ca_file or _system_authorities()),
        content("FLYPG_ETCD_KEY_FILE", options.key_file),
        content("FLYPG_ETCD_CERT_FILE", options.cert_file),
    )


def _system_authorities() -> str:
    """The file of the authorities this system trusts; "" leaves it to those that gRPC brings along."""
    candidates = (ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/cert.pem")
    return next((path for path in candidates if path and Path(path).is_file()), "")


# Messages


def _subject(compare: tuple[Comparison, ...], success: tuple[Operation, ...]) -> str:
    return success[0].key if success else compare[0].key if compare else "transaction"


def _range(wanted: Get) -> Any:
    return etcdrpc.RangeRequest(
        key=wanted.key.encode(),
        range_end=wanted.end.encode(),
        limit=wanted.limit,
        sort_order=etcdrpc.RangeRequest.DESCEND if wanted.descending else etcdrpc.RangeRequest.NONE,
        keys_only=wanted.keys_only,
    )


def _operation(operation: Operation) -> Any:
    match operation:
        case Get():
            return etcdrpc.RequestOp(request_range=_range(operation))
        case Put(key=key, value=value, lease=lease):
            return etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key.encode(), value=value, lease=lease))
        case Delete(key=key, end=end):
            request = etcdrpc.DeleteRangeRequest(key=key.encode(), range_end=end.encode())
            return etcdrpc.RequestOp(request_delete_range=request)


def _comparison(comparison: Comparison) -> Any:
    key = comparison.key.encode()
    match comparison:
        case Modified(revision=revision):
            return etcdrpc.Compare(key=key, result=0, target=etcdrpc.Compare.MOD, mod_revision=revision)
        case Created(revision=revision):
            return etcdrpc.Compare(key=key, result=0, target=etcdrpc.Compare.CREATE, create_revision=revision)


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _found(response: Any, revision: int) -> Found:
    return Found(revision, tuple(_key_value(kv) for kv in response.kvs))


def _changes(response: Any) -> Changes:
    """What an answer of a watch tells; of a key that was written twice the last counts."""
    put: dict[str, KeyValue] = {}
    gone: dict[str, int] = {}
    revision = 0
    for event in response.events:
        item = _key_value(event.kv)
        revision = max(revision, item.modified)
        put.pop(item.key, None)
        gone.pop(item.key, None)
        if event.type == DELETED:
            gone[item.key] = item.modified
        else:
            put[item.key] = item
    return Changes(revision, tuple(put.values()), tuple(gone.items()))
