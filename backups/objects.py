"""Where objects are kept: one interface, an S3 service or a directory behind it. The only door to boto3.

Every object of a repository is small enough to be held in memory (a part of a snapshot, a WAL segment), is written in
one request and is never changed. That is why nothing here needs S3's multipart uploads, which leave invisible, paid-for
debris behind a crash and on which several services ignore "only if absent".
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from backups.errors import ObjectMissing, RepositoryError, RepositoryRefused, RepositoryUnavailable

log = logging.getLogger("flypg.backups")
T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 8.0
RETRIED = {
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    "ConditionalRequestConflict",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",  # damaged on its way, like BadDigest
}
ABSENT = {"NoSuchKey", "404", "NotFound"}
NOT_KNOWN = {"NotImplemented", "InvalidArgument", "InvalidRequest", "NotSupported"}
PROBE = "probe/conditional-writes"  # stays: another may try at the same time, and not everybody may delete
REDIRECTED = "it sends us elsewhere; is FLYPG_S3_ENDPOINT (http or https?) or FLYPG_S3_REGION another's?"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    size: int  # bytes as stored
    modified: float  # seconds since 1970, by the store's clock


class ObjectStore(Protocol):
    """Bytes under names. Blocks: call from a thread or a process of its own; safe to use from several threads.

    Every call raises RepositoryUnavailable (after retries) or RepositoryRefused (retrying is no help).
    """

    def put(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        """Store durably. False: `if_absent` was asked and there is an object of that name, which is left as it is."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object. Raises ObjectMissing."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, in the order of their keys."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; one that is gone already is fine."""
        ...

    def tidy(self, before: float) -> None:
        """Remove what writes that were interrupted before `before` (seconds since 1970) have left."""
        ...

    def describe(self) -> str:
        """Where this is, for messages; without secrets."""
        ...


class DigestMismatch(RepositoryError):
    """The store answered with the digest of something else than what was sent."""


class NoAnswerOfS3(RepositoryError):
    """It says 200, but not as S3 does: a proxy's own page, say. Nothing is known to be stored."""


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach an S3 service. Credentials "" mean boto3's usual chain (environment, profile, instance role)."""

    bucket: str
    prefix: str = ""  # no slash at either end
    endpoint: str = ""  # "" means AWS
    region: str = ""
    path_style: bool = True
    access_key: str = ""
    secret_key: str = ""
    timeout_s: float = 60.0
    page: int = 1000  # keys in one answer to a listing


class S3Store:
    """A bucket of any service that speaks S3."""

    def __init__(self, options: S3Options, *, pause: Callable[[float], None] = time.sleep, attempts: int = ATTEMPTS):
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self._options = options
        self._pause = pause
        self._attempts = attempts
        self._conditional: bool | None = None  # does the service honour If-None-Match? None: not tried yet
        self._probing = threading.Lock()
        bundle = os.environ.get("AWS_CA_BUNDLE", "")
        if bundle and not os.path.exists(bundle):  # else the error of every request is a mere "No such file"
            raise RepositoryRefused(f"{self.describe()}: AWS_CA_BUNDLE: {bundle} is not there")
        try:
            session = boto3.session.Session(
                aws_access_key_id=options.access_key or None,
                aws_secret_access_key=options.secret_key or None,
                region_name=options.region or None,
            )
            self._client: Any = session.client(
                "s3",
                endpoint_url=options.endpoint or None,
                config=Config(
                    # the newer trailing checksums are refused by many services that speak S3
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path" if options.path_style else "auto"},
                    retries={"total_max_attempts": 1},  # we retry, and know what for
                    connect_timeout=5,
                    read_timeout=options.timeout_s,
                    max_pool_connections=16,
                ),
            )
            self._client.meta.events.register_last("before-parameter-build.s3", _redirected_once)
        except (BotoCoreError, ValueError, OSError) as error:  # an unknown profile, say
            raise RepositoryRefused(f"{self.describe()}: {error}") from error

    def describe(self) -> str:
        at = f" at {self._options.endpoint}" if self._options.endpoint else ""
        return f"s3://{self._options.bucket}/{self._options.prefix}".rstrip("/") + at

    def _name(self, key: str) -> str:
        return f"{self._options.prefix}/{key}" if self._options.prefix else key

    def put(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        if if_absent and not self._honours_conditions():
            if self._exists(key):  # the next best: two writers of one name are kept apart by the lease in etcd
                return False
            return self._put(key, data, condition=False)
        return self._put(key, data, condition=if_absent)

    def _put(self, key: str, data: bytes, *, condition: bool) -> bool:
        digest = hashlib.md5(data, usedforsecurity=False)
        arguments = {"Bucket": self._options.bucket, "Key": self._name(key), "Body": data}
        arguments["ContentMD5"] = base64.b64encode(digest.digest()).decode()
        if condition:
            arguments["IfNoneMatch"] = "*"

        def once() -> bool:
            answer = self._client.put_object(**arguments)
            etag = str(self._of_s3(key, answer, "ETag")).strip('"')
            plain = answer.get("ServerSideEncryption", "AES256") == "AES256"  # else the ETag is no MD5
            if plain and len(etag) == 32 and "-" not in etag and etag != digest.hexdigest():
                arguments.pop("IfNoneMatch", None)  # what lies there now is ours, and wrong
                raise DigestMismatch(f"{self.describe()}: {key}: the service stored something else (ETag {etag})")
            return True

        return self._retried(key, once, exists=lambda: False)

    def get(self, key: str) -> bytes:
        def once() -> bytes:
            answer = self._client.get_object(Bucket=self._options.bucket, Key=self._name(key))
            try:
                self._of_s3(key, answer, "ETag")
                body = answer["Body"].read()
            except BaseException:
                answer["Body"].close()  # else its connection stays open, and is in nobody's pool
                raise
            if len(body) != answer.get("ContentLength", len(body)):  # a proxy may send it in chunks
                raise DigestMismatch(f"{self.describe()}: {key}: the answer was cut short")
            return bytes(body)

        return self._retried(key, once)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        token: dict[str, str] = {}
        skip = len(self._name(""))
        while True:
            arguments = {
                "Bucket": self._options.bucket,
                "Prefix": self._name(prefix),
                "MaxKeys": self._options.page,
                **token,
            }
            page = self._retried(prefix, lambda a=arguments: self._page(prefix, a))  # type: ignore[misc]
            for found in page.get("Contents", ()):
                yield ObjectInfo(found["Key"][skip:], found["Size"], found["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, prefix: str, arguments: dict[str, Any]) -> dict[str, Any]:
        page: dict[str, Any] = self._client.list_objects_v2(**arguments)
        if self._of_s3(prefix, page, "IsTruncated"):
            self._of_s3(prefix, page, "NextContinuationToken")
        return page

    def _of_s3(self, key: str, answer: dict[str, Any], wanted: str) -> Any:
        """What every answer of this kind has. Raises NoAnswerOfS3."""
        if wanted not in answer:
            raise NoAnswerOfS3(f"what answers at {self._client.meta.endpoint_url} is not S3: no {wanted}")
        return answer[wanted]

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:  # one by one: several services do not know, or want a checksum for, deleting many at once
            self._retried(key, lambda k=key: self._client.delete_object(Bucket=self._options.bucket, Key=self._name(k)))  # type: ignore[misc]

    def tidy(self, before: float) -> None:
        """Nothing: an interrupted request leaves nothing behind."""

    def _exists(self, key: str) -> bool:
        def once() -> bool:
            self._client.head_object(Bucket=self._options.bucket, Key=self._name(key))
            return True

        try:
            return self._retried(key, once)
        except ObjectMissing:
            return False

    def _honours_conditions(self) -> bool:
        """Try it: a second conditional write of one name must be refused."""
        with self._probing:
            if self._conditional is None:
                try:
                    self._conditional = not (
                        self._put(PROBE, b"1", condition=True) and self._put(PROBE, b"1", condition=True)
                    )
                except RepositoryRefused as error:
                    if not isinstance(error.__cause__, Exception) or _code(error.__cause__)[0] not in NOT_KNOWN:
                        raise
                    self._conditional = False
                if not self._conditional:
                    log.warning("s3_no_conditional_writes", extra={"repository": self.describe()})
            return self._conditional

    def _retried(self, key: str, once: Callable[[], T], exists: Callable[[], T] | None = None) -> T:
        """Try `once` until it works, the service says no, or the attempts are used up."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            ParamValidationError,
            PartialCredentialsError,
        )

        for attempt in range(1, self._attempts + 1):
            try:
                return once()
            except ClientError as error:
                code, status = _code(error)
                if code in ABSENT and code != "NoSuchBucket":
                    raise ObjectMissing(f"{self.describe()}: {key} is not there") from error
                if status == 412 and exists is not None:
                    return exists()
                if not (code in RETRIED or status >= 500 or status == 429) or status == 501:
                    hint = f"; {REDIRECTED}" if 300 <= status < 400 else ""
                    raise RepositoryRefused(f"{self.describe()}: {key}: {error}{hint}") from error
                failure: Exception = error
            except (NoCredentialsError, PartialCredentialsError, ParamValidationError) as error:
                raise RepositoryRefused(f"{self.describe()}: {error}") from error
            except (BotoCoreError, DigestMismatch, NoAnswerOfS3, OSError) as error:  # connections, answers cut short
                failure = error
            if attempt < self._attempts:
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
                self._pause(pause * random.uniform(0.5, 1.0))
        raise RepositoryUnavailable(
            f"{self.describe()}: {key}: no success in {self._attempts} attempts: {failure}"
        ) from failure


def _redirected_once(model: Any, context: dict[str, Any], **_: Any) -> None:
    """Asked where a bucket is, a service may redirect again: boto3 would ask about that as well, without end."""
    if model.name == "HeadBucket":
        context["s3_redirect"]["redirected"] = True


def _code(error: BaseException) -> tuple[str, int]:
    """The service's own word for an error, and its HTTP status."""
    response: Any = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(response.get("Error", {}).get("Code", "")), int(status or 0)
