"""An S3 service for tests: moto in this process, behind a proxy that injects what goes wrong with real ones."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from backups.objects import S3Options, S3Store
from tests.support.ports import free_ports

StartResponse = Callable[..., Any]
App = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


@dataclass
class Faults:
    """What the next requests meet. Each entry is used once, by the first request of its method."""

    plan: list[tuple[str, str]] = field(default_factory=list)  # (method, fault)
    seen: list[str] = field(default_factory=list)  # "PUT /bucket/key", every request
    ignore_conditions: bool = False  # a service that does not know If-None-Match
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str) -> str:
        with self.lock:
            for i, (wanted, fault) in enumerate(self.plan):
                if wanted == method:
                    del self.plan[i]
                    return fault
        return ""


SLOW_S = 4.0  # how long an answer takes that is slow
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} was injected</Message></Error>"
STATUS = {
    "InternalError": "500 Internal Server Error",
    "SlowDown": "503 Slow Down",
    "ExpiredToken": "400 Bad Request",
    "AccessDenied": "403 Forbidden",
    "NotImplemented": "501 Not Implemented",
    "PermanentRedirect": "301 Moved Permanently",
}


class Faulty:
    """A WSGI application in front of another."""

    def __init__(self, inner: App, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        self._faults.seen.append(f"{method} {environ['PATH_INFO']}")
        fault = self._faults.take(method)
        if fault in STATUS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(STATUS[fault], [("Content-Type", "application/xml")])
            return [ERROR.format(code=fault).encode()]
        if fault == "page":  # of a proxy that wants a login
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("200 OK", [("Content-Type", "text/html")])
            return [b"<html><body>Please log in</body></html>"]
        if self._faults.ignore_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if fault == "half":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError("injected: half of it has arrived")
        if fault == "slow":
            time.sleep(SLOW_S)
        if not fault or fault == "slow":
            return self._inner(environ, start_response)
        return self._spoilt(environ, start_response, fault)

    def _spoilt(self, environ: dict[str, Any], start_response: StartResponse, fault: str) -> Iterable[bytes]:
        """Done by the service, but its answer is lost, cut short, or wrong."""
        answer: list[Any] = []

        def keep(status: str, headers: list[tuple[str, str]], *_: Any) -> None:
            answer.extend((status, headers))

        body = b"".join(self._inner(environ, keep))
        status, headers = answer
        if fault == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError("injected: the answer is lost")
        if fault == "etag":
            headers = [(k, '"' + "0" * 32 + '"' if k.lower() == "etag" else v) for k, v in headers]
        if fault == "short":
            start_response(status, headers)
            return [body[: len(body) // 2]]
        start_response(status, headers)
        return [body]


@dataclass
class S3Service:
    endpoint: str
    bucket: str
    faults: Faults

    def options(self, prefix: str = "p") -> S3Options:
        return S3Options(
            self.bucket, prefix, self.endpoint, "us-east-1", access_key="key", secret_key="secret", timeout_s=60
        )

    def store(self, prefix: str = "p", *, attempts: int = 6, timeout_s: float = 60) -> S3Store:
        """A store that does not wait between attempts."""
        options = replace(self.options(prefix), timeout_s=timeout_s)
        return S3Store(options, pause=lambda _: None, attempts=attempts)


@contextmanager
def s3_service() -> Iterator[S3Service]:
    """A running service with one empty bucket."""
    faults = Faults()
    port = free_ports(1)[0]
    inner = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", port, Faulty(inner, faults), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        service = S3Service(f"http://127.0.0.1:{port}", "bucket", faults)
        service.store()._client.create_bucket(Bucket=service.bucket)
        faults.seen.clear()
        yield service
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
