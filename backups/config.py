"""Settings of snapshots and WAL archiving: FLYPG_SNAPSHOT_*, FLYPG_WAL_*, FLYPG_S3_*; and the repository they name."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from backups.base import SnapshotOptions
from backups.codec import Codec, read_keys
from backups.cron import read_cron
from backups.directory import DirectoryStore
from backups.hooks import Hooks
from backups.objects import ObjectStore, S3Options, S3Store
from backups.repository import Repository
from backups.retention import Keep
from backups.wal import WalOptions
from cluster import values as read
from cluster.errors import SettingsError
from cluster.settings import Settings
from postgres.defaults import SMALL_MB
from postgres.files import size_bytes
from postgres.server_files import machine_memory_mb

FLEX_KEY = "S3_ARCHIVE_CONFIG"  # what Fly's newer image calls it: https://key:secret@endpoint/bucket/directory
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
FORWARDED = ("FLYPG_SNAPSHOT_", "FLYPG_WAL_", "FLYPG_S3_", "AWS_", FLEX_KEY, *PROXIES)
ENDPOINT = re.compile(r"https?://[^/\s@?#]+/?\Z")
BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}\Z")
REGION = re.compile(r"[A-Za-z0-9-]{1,63}\Z")
SLOWEST_RATE = 32 << 10  # bytes per second; PostgreSQL takes none that is lower


@dataclass(frozen=True, slots=True)
class BackupConfig:
    """Where backups go, when they are taken, how long they are kept."""

    url: str  # "" means backups are off
    shared: bool  # every node sees the same repository
    s3: S3Options | None
    first_after_s: float  # a new cluster's first snapshot is taken so long after an agent's start
    schedule: str  # cron, five fields, UTC; "" means never by itself
    keep: Keep
    options: SnapshotOptions
    level: int  # zstd
    verify: bool  # restore each snapshot after it was taken
    scratch: Path  # where that is done
    min_free_percent: float  # of the volume, left free by a repository in a directory
    archive: bool
    archive_timeout_s: int  # the longest that a change waits for the archive in an idle cluster; 0 means no limit
    wal: WalOptions
    seed: bool  # a node that has no data takes it from here, if it can
    hooks: Hooks  # the operator's commands before and after each snapshot
    stream_every_s: float  # WAL of the open segment is archived so often; 0: when the segment is full
    key_text: str = field(default="", repr=False)
    key_file: str = ""
    values: Mapping[str, str] = field(default_factory=dict, repr=False)  # to hand on to a process of ours

    def codec(self) -> Codec:
        keys = read_keys(self.key_text, self.key_file)
        return Codec(level=self.level, key=next(iter(keys), None), older=keys[1:])

    def store(self) -> ObjectStore:
        if self.s3 is not None:
            return S3Store(self.s3)
        root = directory(self.url)
        volume = next(p for p in (root, *root.parents) if p.exists())
        return DirectoryStore(root, min_free_bytes=int(size_bytes(volume) * self.min_free_percent / 100))

    def repository(self, *, create: bool = True) -> Repository:
        """Raises RepositoryError, StoredFormatError, SettingsError."""
        repository = Repository(self.store(), self.codec())
        repository.open(create=create)
        return repository


def directory(url: str) -> Path:
    """Where a repository is that `url` (file:///DIRECTORY) names."""
    return Path(unquote(url.removeprefix("file://")))  # not as a URL is read: there ? and # end the path


def read_config(values: Mapping[str, str], data_dir: Path, memory_mb: int | None = None) -> BackupConfig:
    """The settings in `values` (environment over file). Raises SettingsError, which names the key.

    `memory_mb`: what the node has, None: what this machine or its cgroup has. A small node does less at once.
    """
    small = (memory_mb if memory_mb is not None else machine_memory_mb()) < SMALL_MB
    url = values.get("FLYPG_SNAPSHOT_URL", "")
    given = bool(url or values.get(FLEX_KEY))
    s3 = _s3(values, url)
    if s3 is None and not url:
        url = f"file://{data_dir}/snapshots"
    if url == "off":
        url = ""
    elif s3 is None and (not url.startswith("file:///") or len(url) < len("file:///x")):
        raise SettingsError("FLYPG_SNAPSHOT_URL", url, "must be file:///DIRECTORY, s3://BUCKET/PREFIX or off")
    schedule = values.get("FLYPG_SNAPSHOT_SCHEDULE", "0 3 * * *").strip()
    if schedule == "off":
        schedule = ""
    else:
        try:
            read_cron(schedule)
        except ValueError as error:
            raise SettingsError("FLYPG_SNAPSHOT_SCHEDULE", schedule, str(error)) from None
    shared = read.flag(values, "FLYPG_SNAPSHOT_SHARED", s3 is not None)
    full = read.choice(values, "FLYPG_WAL_QUEUE_FULL", ("keep", "drop"), "keep")
    return BackupConfig(
        url=url,
        shared=shared,
        s3=s3,
        first_after_s=read.seconds(values, "FLYPG_SNAPSHOT_FIRST_AFTER_S", 300.0, at_least=0),
        schedule=schedule,
        keep=Keep(
            days=read.number(values, "FLYPG_SNAPSHOT_KEEP_DAYS", 5.0, at_least=0.01, at_most=36500),
            at_least=read.integer(values, "FLYPG_SNAPSHOT_KEEP_MIN", 2, at_least=1, at_most=1000),
        ),
        options=SnapshotOptions(
            part_bytes=read.size(
                values, "FLYPG_SNAPSHOT_PART_SIZE", (2 if small else 8) << 20, at_least=1 << 20, at_most=1 << 30
            ),
            uploaders=read.integer(values, "FLYPG_SNAPSHOT_UPLOADS", 1 if small else 2, at_least=1, at_most=64),
            max_rate_kib=_rate(values) >> 10,
        ),
        level=read.integer(values, "FLYPG_SNAPSHOT_LEVEL", 1, at_least=1, at_most=19),
        verify=read.flag(values, "FLYPG_SNAPSHOT_VERIFY", True),
        scratch=Path(values.get("FLYPG_SNAPSHOT_SCRATCH") or data_dir / "restore-test"),
        min_free_percent=read.number(values, "FLYPG_SNAPSHOT_MIN_FREE_PERCENT", 15.0, at_least=0, at_most=90),
        archive=bool(url or s3) and read.flag(values, "FLYPG_WAL_ARCHIVE", given),
        archive_timeout_s=math.ceil(read.seconds(values, "FLYPG_WAL_TIMEOUT_S", 60, at_least=0, at_most=86400)),
        wal=WalOptions(
            workers=read.integer(values, "FLYPG_WAL_WORKERS", 1 if small else 4, at_least=1, at_most=64),
            queue_limit_bytes=read.size(values, "FLYPG_WAL_QUEUE_LIMIT", 1 << 30, at_least=0),
            drop_past_limit=full == "drop",
        ),
        seed=_seed(values, shared=shared and bool(url or s3)),
        hooks=Hooks(
            before=values.get("FLYPG_SNAPSHOT_BEFORE", ""),
            after=values.get("FLYPG_SNAPSHOT_AFTER", ""),
            timeout_s=read.seconds(values, "FLYPG_SNAPSHOT_HOOK_TIMEOUT_S", 300.0, at_least=1, at_most=86400),
        ),
        stream_every_s=read.seconds(values, "FLYPG_WAL_STREAM_S", 0.0, at_least=0, at_most=3600),
        key_text=values.get("FLYPG_SNAPSHOT_KEY", ""),
        key_file=values.get("FLYPG_SNAPSHOT_KEY_FILE", ""),
        values={k: v for k, v in values.items() if k.startswith(FORWARDED)},
    )


def _rate(values: Mapping[str, str]) -> int:
    """0: no limit."""
    rate = read.size(values, "FLYPG_SNAPSHOT_MAX_RATE", 0, at_least=0, at_most=1 << 30)
    if 0 < rate < SLOWEST_RATE:
        raise SettingsError(
            "FLYPG_SNAPSHOT_MAX_RATE", values["FLYPG_SNAPSHOT_MAX_RATE"], "must be 0 (no limit) or at least 32KB"
        )
    return rate


def _seed(values: Mapping[str, str], *, shared: bool) -> bool:
    wished = read.choice(values, "FLYPG_SEED_FROM", ("primary", "repository"), "primary")
    if wished == "repository" and not shared:
        raise SettingsError(
            "FLYPG_SEED_FROM", wished, "needs a repository that every node sees; see FLYPG_SNAPSHOT_URL and _SHARED"
        )
    return wished == "repository"


def values_of(settings: Settings) -> dict[str, str]:
    """What an agent reads its backup settings from: its own, and those of the tools of others."""
    foreign = {k: v for k, v in os.environ.items() if k.startswith("AWS_") or k in (FLEX_KEY, *PROXIES)}
    return foreign | dict(settings.values)


def _endpoint(values: Mapping[str, str]) -> str:
    """ "" means AWS."""
    key = "FLYPG_S3_ENDPOINT" if values.get("FLYPG_S3_ENDPOINT") else "AWS_ENDPOINT_URL_S3"
    found = values.get(key, "")
    if found and not ENDPOINT.match(found):
        shown = "…" if "@" in found or "?" in found else found  # what is not to be there may be a secret
        raise SettingsError(key, shown, "must be http://HOST or https://HOST, with :PORT if need be")
    return found


def _s3(values: Mapping[str, str], url: str) -> S3Options | None:
    """None: the repository is not in S3."""
    key = "FLYPG_S3_REGION" if values.get("FLYPG_S3_REGION") else "AWS_REGION"
    region = values.get(key) or "us-east-1"
    if not REGION.match(region):
        raise SettingsError(key, region, "is no name of a region, like us-east-1")
    common = {
        "region": region,
        "path_style": read.flag(values, "FLYPG_S3_PATH_STYLE", True),
        "timeout_s": read.seconds(values, "FLYPG_S3_TIMEOUT_S", 60.0, at_least=1, at_most=3600),
    }
    make: Callable[..., S3Options] = S3Options
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise SettingsError("FLYPG_SNAPSHOT_URL", url, "names no bucket: s3://BUCKET/PREFIX")
        if "@" in bucket:  # maybe a key and its secret
            why = "credentials have settings of their own: FLYPG_S3_ACCESS_KEY_ID, FLYPG_S3_SECRET_ACCESS_KEY"
            raise SettingsError("FLYPG_SNAPSHOT_URL", "…", why)
        if not BUCKET.match(bucket):
            raise SettingsError("FLYPG_SNAPSHOT_URL", url, f"{bucket!r} is no name of a bucket")
        access_key = values.get("FLYPG_S3_ACCESS_KEY_ID", "")
        secret_key = read.secret(values, "FLYPG_S3_SECRET_ACCESS_KEY")
        if bool(access_key) != bool(secret_key):
            lacking = "FLYPG_S3_SECRET_ACCESS_KEY" if access_key else "FLYPG_S3_ACCESS_KEY_ID"
            raise SettingsError(lacking, "", "is needed with the other half of the credentials")
        return make(
            bucket=bucket,
            prefix=prefix.strip("/"),
            endpoint=_endpoint(values),
            access_key=access_key,
            secret_key=secret_key,
            **common,
        )
    flex = values.get(FLEX_KEY, "")
    if url or not flex:
        return None
    parts = urlsplit(flex)
    bucket, _, prefix = parts.path.strip("/").partition("/")
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = "none"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    if parts.scheme not in ("http", "https") or not parts.hostname or not BUCKET.match(bucket) or port == "none":
        raise SettingsError(FLEX_KEY, "…", "must be https://KEY:SECRET@ENDPOINT/BUCKET/DIRECTORY")
    return make(
        bucket=bucket,
        prefix=prefix.strip("/"),
        endpoint=f"{parts.scheme}://{host}{port}",
        access_key=unquote(parts.username or ""),
        secret_key=unquote(parts.password or ""),
        **common,
    )
