"""Founding with restored data, and what of a data directory that was taken over is an operator's wish."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.adoption import held_back
from postgres.adoption import inspect, wishes
from postgres.config import InstanceConfig, Passwords
from tests.support.http_node import N1, member


def test_who_has_no_data_does_not_found_a_restored_cluster() -> None:
    me = member(N1)
    assert held_back(me, "vs_1", has_data=False).nofailover
    assert held_back(me, "vs_1", has_data=True) == me
    assert held_back(me, "", has_data=False) == me


def test_wishes_of_a_configuration_file() -> None:
    text = """
# a comment
max_connections = '300'
shared_preload_libraries = 'timescaledb'  # of the image
shared_buffers = '64MB'
primary_conninfo = 'host=gone password=''x'''
listen_addresses = '*'
synchronous_standby_names = ''
wal_level = 'replica'
log_line_prefix = '%m [%p] it''s '
timezone Europe/Amsterdam
work_mem = 4MB
ssl_min_protocol_version = 'TLSv1.2'
include = 'other.conf'
max_connections = 400
"""
    assert wishes(text) == (
        ("log_line_prefix", "%m [%p] it's "),
        ("max_connections", "400"),
        ("shared_preload_libraries", "timescaledb"),
        ("timezone", "Europe/Amsterdam"),
    )
    assert wishes("wal_level = logical") == (("wal_level", "logical"),)


@pytest.mark.parametrize(
    ("story", "aside", "expected"),
    [
        ("cut off in the middle of a restore", "host all alice 10.0.0.0/8 md5\n", "alice"),
        ("cut off twice: what is aside trusts as well", "host all flypgadmin ::0/0 trust\n", ""),
    ],
)
def test_rules_that_flys_app_left_in_the_middle_of_a_restore(
    tmp_path: Path, story: str, aside: str, expected: str
) -> None:
    pgdata = tmp_path / "postgres"
    (pgdata / "global").mkdir(parents=True)
    (pgdata / "global" / "pg_control").touch()
    (pgdata / "PG_VERSION").write_text("15\n")
    (pgdata / "pg_hba.conf").write_text("host all flypgadmin ::0/0 trust\n")
    (pgdata / "pg_hba.conf.bak").write_text(aside)
    (tmp_path / "keeperstate").write_text("{}")
    config = InstanceConfig(
        pgdata, tmp_path, tmp_path, tmp_path, Path("/usr/lib/postgresql/15/bin"), 1, Passwords("", "", "")
    )
    found = inspect(config)
    assert found is not None
    assert "trust" not in " ".join(found.hba), story
    assert expected in " ".join(found.hba) and found.hba
