"""How much a node does at once for its backups, by the memory it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from backups.config import read_config
from cluster.errors import SettingsError

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


WRONG = (
    ({"FLYPG_S3_ENDPOINT": "fly.storage.tigris.dev"}, "FLYPG_S3_ENDPOINT"),
    ({"FLYPG_S3_ENDPOINT": "ftp://host"}, "FLYPG_S3_ENDPOINT"),
    ({"AWS_ENDPOINT_URL_S3": "host:9000"}, "AWS_ENDPOINT_URL_S3"),
    ({"FLYPG_S3_REGION": "x y"}, "FLYPG_S3_REGION"),
    ({"FLYPG_S3_ACCESS_KEY_ID": "k"}, "FLYPG_S3_SECRET_ACCESS_KEY"),
    ({"FLYPG_S3_SECRET_ACCESS_KEY": "s"}, "FLYPG_S3_ACCESS_KEY_ID"),
    ({"FLYPG_SNAPSHOT_URL": "s3://my bucket/x"}, "FLYPG_SNAPSHOT_URL"),
    ({"FLYPG_SNAPSHOT_URL": "", "S3_ARCHIVE_CONFIG": "https://k:s@host:99999/b/d"}, "S3_ARCHIVE_CONFIG"),
    ({"FLYPG_SNAPSHOT_URL": "", "S3_ARCHIVE_CONFIG": "https://k:s@host"}, "S3_ARCHIVE_CONFIG"),
)


@pytest.mark.parametrize(("values", "key"), WRONG)
def test_a_wrong_service_is_refused_by_the_name_of_its_key(values: dict[str, str], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_config({"FLYPG_SNAPSHOT_URL": "s3://bucket/x"} | values, Path("/data"), 1000)
    assert caught.value.key == key


def test_a_right_service() -> None:
    found = read_config(
        {"FLYPG_SNAPSHOT_URL": "s3://bucket/x", "FLYPG_S3_ENDPOINT": "http://[fdaa::3]:9000"}, Path("/data"), 1000
    )
    assert found.s3 is not None and found.s3.endpoint == "http://[fdaa::3]:9000"
