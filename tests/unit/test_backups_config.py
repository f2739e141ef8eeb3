"""How much a node does at once for its backups, by the memory it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from backups.config import read_config

MB = 1 << 20
STORIES = (
    ("the smallest machine of Fly", 256, {}, (1, 1, 2 * MB)),
    ("half a gigabyte", 512, {}, (1, 1, 2 * MB)),
    ("a gigabyte, as machines have it", 1000, {}, (4, 2, 8 * MB)),
    ("plenty", 16384, {}, (4, 2, 8 * MB)),
    (
        "who says otherwise is heard",
        256,
        {"FLYPG_WAL_WORKERS": "3", "FLYPG_SNAPSHOT_UPLOADS": "2", "FLYPG_SNAPSHOT_PART_SIZE": "4MB"},
        (3, 2, 4 * MB),
    ),
)


@pytest.mark.parametrize(("memory_mb", "values", "wanted"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES])
def test_a_small_node_does_less_at_once(memory_mb: int, values: dict[str, str], wanted: tuple[int, int, int]) -> None:
    found = read_config(values, Path("/data"), memory_mb)
    assert (found.wal.workers, found.options.uploaders, found.options.part_bytes) == wanted
