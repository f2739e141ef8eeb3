"""How much a node does at once for its backups, by the memory it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from backups.config import read_config, values_of
from cluster.errors import SettingsError
from cluster.settings import load

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
    ({"FLYPG_SNAPSHOT_URL": "s3://key:verysecret@bucket/x"}, "FLYPG_SNAPSHOT_URL"),
    ({"FLYPG_S3_ENDPOINT": "https://key:verysecret@host"}, "FLYPG_S3_ENDPOINT"),
    ({"FLYPG_S3_ENDPOINT": "https://host?token=verysecret"}, "FLYPG_S3_ENDPOINT"),
    ({"FLYPG_SNAPSHOT_MAX_RATE": "20"}, "FLYPG_SNAPSHOT_MAX_RATE"),  # MB were meant; it was no limit at all
    ({"FLYPG_SNAPSHOT_MAX_RATE": "2GB"}, "FLYPG_SNAPSHOT_MAX_RATE"),  # more than PostgreSQL takes
    ({"FLYPG_SNAPSHOT_URL": "", "S3_ARCHIVE_CONFIG": "https://k:s@host:99999/b/d"}, "S3_ARCHIVE_CONFIG"),
    ({"FLYPG_SNAPSHOT_URL": "", "S3_ARCHIVE_CONFIG": "https://k:s@host"}, "S3_ARCHIVE_CONFIG"),
)


@pytest.mark.parametrize(("values", "key"), WRONG)
def test_a_wrong_service_is_refused_by_the_name_of_its_key(values: dict[str, str], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_config({"FLYPG_SNAPSHOT_URL": "s3://bucket/x"} | values, Path("/data"), 1000)
    assert caught.value.key == key
    assert "verysecret" not in str(caught.value)


def test_a_right_service() -> None:
    found = read_config(
        {"FLYPG_SNAPSHOT_URL": "s3://bucket/x", "FLYPG_S3_ENDPOINT": "http://[fdaa::3]:9000"}, Path("/data"), 1000
    )
    assert found.s3 is not None and found.s3.endpoint == "http://[fdaa::3]:9000"


def test_a_service_as_fly_names_it_may_have_an_address() -> None:
    found = read_config({"S3_ARCHIVE_CONFIG": "http://k:s@[fdaa::3]:9000/b//d/"}, Path("/data"), 1000).s3
    assert found is not None
    assert (found.endpoint, found.bucket, found.prefix) == ("http://[fdaa::3]:9000", "b", "d")


def test_a_limit_of_time_is_never_rounded_to_none() -> None:
    assert read_config({"FLYPG_WAL_TIMEOUT_S": "500ms"}, Path("/data"), 1000).archive_timeout_s == 1


def test_a_directory_is_where_its_name_says(tmp_path: Path) -> None:
    """`?` and `#` are letters of a name."""
    store = read_config({"FLYPG_SNAPSHOT_URL": f"file://{tmp_path}/a%20b?c#d"}, Path("/data"), 1000).store()
    assert store.describe() == f"file://{tmp_path}/a b?c#d"


def test_the_work_is_done_by_way_of_the_proxy_that_the_agent_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    config = read_config(values_of(load({"FLYPG_NODE": "n1", "FLYPG_SNAPSHOT_URL": "s3://b"})), Path("/data"), 1000)
    assert config.values["HTTPS_PROXY"] == "http://proxy:3128"
