"""Identity of a volume, founding with restored data, and what of a postgresql.conf is an operator's wish."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from agent.adoption import held_back, settle_identity
from cluster.codec import decode, encode
from cluster.model import Disk, Position
from postgres.adoption import wishes
from tests.support.http_node import N1, member

LOG = logging.getLogger("test")
WORDS = Disk(promised=7, floor=Position(3, 500), copying=True, was_primary=6)


def settled(state: Path, cluster: str, node: str) -> Disk:
    settle_identity(state, cluster, node, LOG)
    return decode(Disk, state.read_bytes(), str(state))


def test_words_bind_the_node_that_gave_them_and_nobody_else(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    settle_identity(state, "shop", "n1", LOG)
    state.write_bytes(encode(WORDS))
    assert settled(state, "shop", "n1") == WORDS
    assert settled(state, "shop", "n9") == Disk(copying=True, floor=WORDS.floor), "a copy of the volume in its cluster"
    state.write_bytes(encode(WORDS))
    assert settled(state, "fork", "n9") == Disk(copying=True), "a snapshot that begins another cluster"
    assert decode(Disk, (tmp_path / "state.before.json").read_bytes(), "") == WORDS
    assert json.loads((tmp_path / "identity.json").read_text()) == {"cluster": "fork", "node": "n9"}
    assert settled(state, "fork", "n9") == Disk(copying=True)


def test_a_directory_from_before_identities_keeps_its_words(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_bytes(encode(WORDS))
    assert settled(state, "shop", "n1") == WORDS


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
