"""What backups know of the node they run on, and what they say of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

from backups.config import BackupConfig
from backups.policy import RunHistory
from backups.wal import WalStatus
from backups.wire import archive_command
from cluster.model import NodeId
from postgres.command import account


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """This node, as backups need to know it."""

    node: NodeId
    cluster: str
    data_dir: FilePath
    pgdata: FilePath
    run_dir: FilePath  # sockets
    postgres_port: int
    user: str | None  # whom PostgreSQL runs as when we are root
    programs: str = ""  # directory of PostgreSQL's programs; "" means the usual place

    @property
    def socket(self) -> FilePath:
        return self.run_dir / "wal.sock"

    @property
    def conninfo(self) -> str:
        return f"host={self.run_dir} port={self.postgres_port} user=postgres connect_timeout=10"


@dataclass(frozen=True, slots=True)
class BackupStatus:
    """What checks, metrics and `flypg status` say about backups. Times: seconds since 1970, None means unknown."""

    url: str  # "" means backups are off
    archiving: bool
    history: RunHistory
    next_at: float | None
    running: str  # what this node does now: "snapshot", "restore test", …; "" means nothing
    wal: WalStatus | None  # None: this node does not archive, or nothing is known of it
    warnings: tuple[str, ...] = ()
    shared: bool = False  # every node sees the same repository
    retry_at: float | None = None  # when a snapshot that failed is tried again
    archive_timeout_s: float = 0.0
    read: bool = True  # has `history` been read yet


@dataclass(frozen=True, slots=True)
class ArchiveSettings:
    """What PostgreSQL is configured with."""

    command: str  # "" means no archive
    timeout_s: int


def archive_settings(config: BackupConfig, facts: NodeFacts) -> ArchiveSettings:
    """How PostgreSQL is to archive on this node; the client it needs is put into place."""
    if not config.archive:
        return ArchiveSettings("", 0)
    command = archive_command(facts.run_dir, facts.socket, account(facts.user))
    return ArchiveSettings(command, config.archive_timeout_s)
