"""The control file of a data directory: who it is, how it was left, and what it demands of a standby.

Two ways to read it. `parse` takes the output of pg_controldata (LC_ALL=C) and knows everything; `peek` reads the first
bytes of the file itself, whose layout has been the same since PostgreSQL 9.3, and costs nothing beside a running
server.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cluster.errors import InstanceError
from cluster.model import Position, parse_lsn
from postgres.instance import Control

STATES = {  # enum DBState
    0: "starting up",
    1: "shut down",
    2: "shut down in recovery",
    3: "shutting down",
    4: "in crash recovery",
    5: "in archive recovery",
    6: "in production",
}
KNOWN_VERSIONS = (1300, 1700, 1800)  # PostgreSQL 13-16, 17, 18
HEAD = struct.Struct(
    "=QIIi4xqQQI"
)  # system id, control version, catalog version, state, time, checkpoint, redo, timeline

DEMANDS = {  # what a standby must have at least, by its line in pg_controldata
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}


@dataclass(frozen=True, slots=True)
class ControlData:
    """All that flypg wants to know from pg_controldata."""

    control: Control
    demands: dict[str, int]  # setting -> the least a standby of this data may be started with
    checksums: bool
    wal_log_hints: bool
    segment_bytes: int  # of a WAL file
    backup_start: int = 0  # LSN at which a base backup began whose end was not replayed yet; 0: it is consistent


def parse(output: str) -> ControlData:
    """Read the output of pg_controldata. Raises InstanceError when it is not what we know."""
    values: dict[str, str] = {}
    for line in output.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values[key.strip()] = value.strip()
    try:
        recovery_lsn = parse_lsn(values["Minimum recovery ending location"])
        recovery_timeline = int(values["Min recovery ending loc's timeline"])
        return ControlData(
            control=Control(
                system_id=values["Database system identifier"],
                state=values["Database cluster state"],
                timeline=int(values["Latest checkpoint's TimeLineID"]),
                checkpoint=parse_lsn(values["Latest checkpoint location"]),
                min_recovery=Position(recovery_timeline, recovery_lsn) if recovery_lsn else None,
            ),
            demands={setting: int(values[label]) for setting, label in DEMANDS.items()},
            checksums=int(values["Data page checksum version"]) > 0,
            wal_log_hints=values["wal_log_hints setting"] == "on",
            segment_bytes=int(values["Bytes per WAL segment"]),
            backup_start=parse_lsn(values["Backup start location"]),
        )
    except (KeyError, ValueError) as error:
        raise InstanceError(f"pg_controldata printed something unexpected: {error}") from error


def peek(head: bytes) -> Control | None:
    """The beginning of global/pg_control; None when it is of a version we do not know (then ask pg_controldata)."""
    if len(head) < HEAD.size:
        return None
    system_id, version, _catalog, state, _time, checkpoint, _redo, timeline = HEAD.unpack_from(head)
    if version not in KNOWN_VERSIONS or state not in STATES:
        return None
    return Control(str(system_id), STATES[state], timeline, checkpoint)
