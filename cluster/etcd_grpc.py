"""gRPC to etcd, raw: the only imports of `grpc` and `etcd3`, how channels are opened, and what errors of gRPC mean.

For cluster/etcd.py alone, which is the door; deadlines, endpoints and retries are there.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# Before the first import of protobuf: etcd3's generated messages are too old for the C implementation.
os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # we only ever fork to exec
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # every error reaches us as a status

import grpc

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # for the same age
    from etcd3 import etcdrpc as etcdrpc

with suppress(ImportError):
    from grpc import _common

    # Waiting threads look ten times a second whether a signal came, for programs that wait in their main thread. We
    # never do, and a watch waits for ever: that was half of what an idle client cost. Where it is gone, no harm.
    _common.MAXIMUM_WAIT_TIMEOUT = 60.0

from cluster.endpoints import Endpoint, EtcdOptions
from cluster.errors import SettingsError

RpcError = grpc.RpcError
StatusCode = grpc.StatusCode

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


def open_channel(endpoint: Endpoint, credentials_: Any) -> Any:
    """A channel to one endpoint; it connects with its first call. `credentials_`: of `credentials`."""
    if endpoint.tls:
        return grpc.secure_channel(endpoint.target, credentials_, options=CHANNEL_OPTIONS)
    return grpc.insecure_channel(endpoint.target, options=CHANNEL_OPTIONS)


def starter(channel: Any, method: str) -> Any:
    """What starts calls of this method on this channel."""
    service, sent, answered = METHODS[method]
    return channel.unary_unary(
        f"/etcdserverpb.{service}/{method}",
        request_serializer=sent.SerializeToString,
        response_deserializer=answered.FromString,
    )


def start_watch(channel: Any, requests: Iterator[Any], metadata: Any) -> Any:
    """The stream of answers to these requests to watch."""
    return channel.stream_stream(
        WATCH_PATH,
        request_serializer=etcdrpc.WatchRequest.SerializeToString,
        response_deserializer=etcdrpc.WatchResponse.FromString,
    )(requests, metadata=metadata)


async def answer_of(call: Any) -> Any:
    """Wait for a call without blocking. Raises grpc.RpcError. Cancelling the wait cancels the call."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(_: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, done)

    call.add_done_callback(tell)
    try:
        await done
    finally:
        if not call.done():
            call.cancel()
    return call.result()


def listen(stream: Iterator[Any], loop: asyncio.AbstractEventLoop, heard: Callable[[Any], None]) -> None:
    """Hand everything that is heard on a watch to the event loop; None at its end. Runs in a thread of its own."""
    with suppress(RuntimeError):  # the loop is closed: nobody listens any more
        with suppress(grpc.RpcError):
            for response in stream:
                loop.call_soon_threadsafe(heard, response)
        loop.call_soon_threadsafe(heard, None)


def settle(future: asyncio.Future[None]) -> None:
    """Complete it, if nobody has yet."""
    if not future.done():
        future.set_result(None)


def details(error: Any) -> str:
    """What the other side says of an error; "" when it says nothing."""
    return error.details() or ""


def told(error: Any) -> str:
    """An error in words: its code, and what the other side says."""
    return f"{error.code().name.lower()}: {details(error)}"


def never_sent(error: Any) -> bool:
    """Did the request surely not reach etcd?"""
    return error.code() is grpc.StatusCode.UNAVAILABLE and "failed to connect" in details(error)


def wants_login(error: Any) -> bool:
    """Is our token too old, or unknown to a member that was restarted?"""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or (
        error.code() is grpc.StatusCode.INVALID_ARGUMENT
        and any(text in details(error) for text in ("user name is empty", "revision of auth store is old"))
    )


def credentials(options: EtcdOptions) -> Any:
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
