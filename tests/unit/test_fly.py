"""stolonctl's forms, and what the image and the compose file promise."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path

import pytest

from flypg.cli_fly import NAMES
from flypg.commands import fly, stolon
from flypg.reply import BadInput
from tests.support.http_node import open_snapshot

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "images" / "Dockerfile").read_text()


def test_status_as_stolonctl_prints_it() -> None:
    found = stolon.status_data(open_snapshot())
    assert found["cluster"] == {"available": True, "master_keeper_uid": "n1", "master_db_uid": "n1"}
    assert found["sentinels"] == [{"uid": n, "leader": n == "n2"} for n in ("n1", "n2", "n3")]
    keepers = found["keepers"]
    assert isinstance(keepers, list)
    assert keepers[0]["listen_address"] == "127.0.0.1:5433" and keepers[0]["pg_healthy"]
    text = stolon.status_text(found)
    headings = [line for line in text.splitlines() if line.startswith("=")]
    assert headings == [
        "=== Active sentinels ===",
        "=== Active proxies ===",
        "=== Keepers ===",
        "=== Cluster Info ===",
        "===== Keepers/DB tree =====",
    ]
    assert "Master Keeper: n1" in text and text.endswith("n1 (master)\n├─n2\n└─n3")


def test_clusterdata_names_the_master_where_readers_look() -> None:
    found = stolon.clusterdata_data(open_snapshot())
    cluster, dbs = found["cluster"], found["dbs"]
    assert isinstance(cluster, dict) and isinstance(dbs, dict)
    assert dbs[cluster["status"]["master"]]["spec"]["role"] == "master"


@pytest.mark.parametrize(
    "options", [[], ["--patch"], ["{}"], ["-p", "["], ["-p", "[]"], ["--patch", "{}", "more"]], ids=str
)
def test_a_patch_that_is_none_is_refused(options: list[str]) -> None:
    with pytest.raises(BadInput):
        stolon.patch_of(options)


def test_a_patch() -> None:
    assert stolon.patch_of(["--patch", '{"pgParameters": {"a": "1"}}']) == {"pgParameters": {"a": "1"}}


def test_every_helper_is_in_the_image() -> None:
    for name, _ in NAMES:
        file = ROOT / "images" / "bin" / name
        assert file.stat().st_mode & 0o111 and f'exec flypg fly {name} "$@"' in file.read_text()


def test_the_labels_that_flyctl_looks_at() -> None:
    assert "fly.app_role=postgres_cluster" in DOCKERFILE and "fly.pg-version=" in DOCKERFILE
    assert re.search(r"fly\.version=\$\{VERSION\}", DOCKERFILE) and "ARG VERSION=custom" in DOCKERFILE
    assert "fly.pg-manager=" not in DOCKERFILE, "flyctl would take it for repmgr"


def test_no_secret_is_built_in() -> None:
    assert not re.search(r"PASSWORD|SECRET|TOKEN", DOCKERFILE)


def test_fly_checks_have_the_names_flyctl_reads() -> None:
    fly = tomllib.loads((ROOT / "images" / "fly.toml").read_text())
    assert {name: check["path"] for name, check in fly["checks"].items()} == {
        name: f"/flycheck/{name}" for name in ("pg", "role", "vm")
    }
    assert fly["services"][0]["auto_stop_machines"] == "off", "a database is not suspended"
    assert fly["mounts"]["destination"] == "/data"


def test_nothing_of_the_compose_file_is_exposed_beyond_loopback() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    published = re.findall(r'"([^"\s]*:\d+:\d+)"', text)
    assert len(published) >= 15 and all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", ["pg-failover", "pg-restart", "pg-role", "connect", "stolonctl", "flyadmin"])
def test_asking_for_help_does_nothing_else(name: str) -> None:
    reply = fly.run(argparse.Namespace(name=name, arguments=["--help"]))
    assert reply.ok and reply.text.startswith(f"{name} ")


@pytest.mark.parametrize("name", ["pg-failover", "pg-restart", "pg-role"])
def test_arguments_that_nobody_knows_do_nothing(name: str) -> None:
    answer = json.loads(fly.run(argparse.Namespace(name=name, arguments=["--force"])).text)
    assert answer["success"] is False and "nothing was done" in answer["message"]
