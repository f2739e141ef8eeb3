"""The control file, as pg_controldata prints it and as its first bytes say."""

from __future__ import annotations

import pytest

from cluster.errors import InstanceError
from cluster.model import Position
from postgres.controldata import HEAD, parse, peek

STANDBY = """\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7713483143352839580
Database cluster state:               shut down in recovery
pg_control last modified:             Sun Nov 29 06:54:15 2026
Latest checkpoint location:           0/3000060
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's REDO WAL file:    000000010000000000000003
Latest checkpoint's TimeLineID:       4
Minimum recovery ending location:     22/3000110
Min recovery ending loc's timeline:   5
Backup start location:                0/0
wal_level setting:                    replica
wal_log_hints setting:                on
max_connections setting:              120
max_worker_processes setting:         8
max_wal_senders setting:              16
max_prepared_xacts setting:           3
max_locks_per_xact setting:           64
Bytes per WAL segment:                16777216
Data page checksum version:           1
"""


def test_standby() -> None:
    found = parse(STANDBY)
    assert found.control.system_id == "7713483143352839580"
    assert found.control.state == "shut down in recovery"
    assert found.control.clean and not found.control.clean_primary
    assert found.control.timeline == 4
    assert found.control.checkpoint == 0x3000060
    assert found.control.min_recovery == Position(5, 0x22_03000110)
    assert found.checksums and found.wal_log_hints
    assert found.demands == {
        "max_connections": 120,
        "max_worker_processes": 8,
        "max_wal_senders": 16,
        "max_prepared_transactions": 3,
        "max_locks_per_transaction": 64,
    }


def test_primary_has_no_minimum_recovery_position() -> None:
    text = STANDBY.replace("22/3000110", "0/0").replace("shut down in recovery", "shut down")
    found = parse(text)
    assert found.control.min_recovery is None
    assert found.control.clean_primary


@pytest.mark.parametrize("line", ["Latest checkpoint location", "Database system identifier", "Data page checksum"])
def test_a_missing_line_is_named(line: str) -> None:
    text = "\n".join(x for x in STANDBY.splitlines() if not x.startswith(line))
    with pytest.raises(InstanceError, match=line):
        parse(text)


def head(version: int = 1300, state: int = 6) -> bytes:
    return HEAD.pack(7713483143352839580, version, 202209061, state, 0, 0x3000060, 0x3000028, 7) + b"\0" * 100


def test_peek() -> None:
    control = peek(head())
    assert control is not None
    assert (control.system_id, control.state, control.timeline) == ("7713483143352839580", "in production", 7)
    assert control.checkpoint == 0x3000060


@pytest.mark.parametrize("data", [b"", head()[:20], head(version=1400), head(state=77)])
def test_peek_says_none_for_what_it_does_not_know(data: bytes) -> None:
    assert peek(data) is None
