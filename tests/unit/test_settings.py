"""Settings of a node: what is read, what is refused, and that every refusal names its key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import settings, values
from cluster.endpoints import Endpoint, EtcdOptions, nearest, parse_endpoint
from cluster.errors import SettingsError
from cluster.model import Ports


def load(**environment: str) -> settings.Settings:
    return settings.load({"FLYPG_NODE": "n1", **environment})


def test_defaults() -> None:
    found = load()
    assert (found.cluster, found.node, found.ports) == ("flypg", "n1", Ports())
    assert (found.data_dir, found.pgdata) == (Path("/data"), Path("/data/pgdata"))
    assert (found.lease_ttl_s, found.lease_renew_s, found.fence_margin_s, found.sentinel_ttl_s) == (10, 2, 2, 5)
    assert found.etcd.endpoints == (Endpoint("127.0.0.1", 2379, False),)
    assert found.sentinel and not found.nofailover and found.log_format == "text"
    assert found.os_user == ("postgres" if os.geteuid() == 0 else "")


def test_a_shorter_lease_brings_its_own_renewals_and_margin() -> None:
    found = load(FLYPG_LEASE_TTL_S="5")
    assert (found.lease_renew_s, found.fence_margin_s) == (1, 1)


def test_on_fly() -> None:
    found = settings.load(
        {
            "FLY_APP_NAME": "my-app-db",
            "FLY_MACHINE_ID": "E784-ff",
            "FLY_PRIVATE_IP": "fdaa:0:1::2",
            "FLY_REGION": "ams",
            "PRIMARY_REGION": "fra",
            "PG_PORT": "6000",
            "FLY_CONSUL_URL": "https://ignored",
        }
    )
    assert (found.cluster, found.node, found.host) == ("my-app-db", "e784_ff", "fdaa:0:1::2")
    assert (found.region, found.primary_region, found.ports.postgres) == ("ams", "fra", 6000)
    assert found.member.region == "ams" and found.member.host == "fdaa:0:1::2"
    assert settings.load({"FLY_APP_NAME": "a", "FLYPG_CLUSTER": "b"}).cluster == "b"


def test_an_empty_value_counts_as_not_set() -> None:
    assert load(FLYPG_CLUSTER="", FLYPG_LEASE_TTL_S="", SU_PASSWORD="").lease_ttl_s == 10


def test_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "flypg.toml"
    file.write_text(
        'cluster = "filed"\nnofailover = true\nprimary_region = "fra"\nsu_password = "s3cret"\n'
        '[etcd]\nendpoints = ["http://a:1", "http://b:2"]\n'
        "[lease]\nttl_s = 20\n[check]\ndisk_percent = 90.5\n[postgres]\nport = 7000\n"
    )
    file.chmod(0o600)
    found = settings.load({"FLYPG_NODE": "n1", "FLYPG_CONFIG": str(file), "FLYPG_LEASE_TTL_S": "30"})
    assert (found.cluster, found.nofailover, found.primary_region, found.lease_ttl_s) == ("filed", True, "fra", 30)
    assert found.etcd.endpoints == (Endpoint("a", 1, False), Endpoint("b", 2, False))
    assert found.su_password == "s3cret" and found.ports.postgres == 7000
    assert values.number(found.values, "FLYPG_CHECK_DISK_PERCENT", 80.0) == 90.5
    elsewhere = tmp_path / "password"
    elsewhere.write_text("other\n")
    environment = {"FLYPG_CONFIG": str(file), "SU_PASSWORD_FILE": str(elsewhere)}
    assert settings.load(environment).su_password == "other", "also when it is given in another way"


BAD_FILES = [
    ("an unknown key", "[lease]\nttl = 3\n", "lease.ttl"),
    ("an unknown table", "[leese]\nttl_s = 3\n", "leese.ttl_s"),
    ("not TOML", "= 3\n", "FLYPG_CONFIG"),
    ("a date", "cluster = 2020-01-01\n", "cluster"),
    ("a list of lists", "listen = [[1]]\n", "listen"),
]


@pytest.mark.parametrize(("story", "text", "key"), BAD_FILES, ids=[b[0] for b in BAD_FILES])
def test_a_bad_file_is_refused_by_key(story: str, text: str, key: str, tmp_path: Path) -> None:
    file = tmp_path / "flypg.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        settings.load({}, file)
    assert caught.value.key == key and str(file.name) in str(caught.value)


def test_a_secret_in_a_file_for_all_to_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "flypg.toml"
    file.write_text('repl_password = "s3cret"\n')
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 0600") as caught:
        settings.load({}, file)
    assert "s3cret" not in str(caught.value)
    file.chmod(0o640)
    assert settings.load({}, file).repl_password == "s3cret"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="FLYPG_CONFIG"):
        settings.load({"FLYPG_CONFIG": str(tmp_path / "none.toml")})


REFUSED = [
    ("a typo", {"FLYPG_LEASE_TTL": "10"}, "FLYPG_LEASE_TTL", "did you mean FLYPG_LEASE_TTL_S?"),
    ("a wrong type", {"FLYPG_PRIORITY": "high"}, "FLYPG_PRIORITY", "whole number"),
    ("no flag", {"FLYPG_NOSYNC": "maybe"}, "FLYPG_NOSYNC", "true or false"),
    ("no duration", {"FLYPG_TICK_S": "soon"}, "FLYPG_TICK_S", "duration"),
    ("no port", {"FLYPG_HTTP_PORT": "70000"}, "FLYPG_HTTP_PORT", "at most 65535"),
    ("one port twice", {"FLYPG_HTTP_PORT": "5432"}, "FLYPG_HTTP_PORT", "FLYPG_PROXY_PORT"),
    ("no word", {"FLYPG_LOG_FORMAT": "xml"}, "FLYPG_LOG_FORMAT", "text, json"),
    ("renewals too rare", {"FLYPG_LEASE_RENEW_S": "4"}, "FLYPG_LEASE_RENEW_S", "a third"),
    ("a margin as long as the lease", {"FLYPG_FENCE_MARGIN_S": "10"}, "FLYPG_FENCE_MARGIN_S", "below"),
    ("a margin that eats renewals", {"FLYPG_FENCE_MARGIN_S": "7"}, "FLYPG_FENCE_MARGIN_S", "two renewals"),
    ("a broken second", {"FLYPG_LEASE_TTL_S": "10.5"}, "FLYPG_LEASE_TTL_S", "whole seconds"),
    ("a lease too short", {"FLYPG_LEASE_TTL_S": "1"}, "FLYPG_LEASE_TTL_S", "at least 2"),
    ("a turn too long", {"FLYPG_TICK_S": "6"}, "FLYPG_TICK_S", "half"),
    ("no node name", {"FLYPG_NODE": "n-1"}, "FLYPG_NODE", "a-z"),
    ("no cluster name", {"FLYPG_CLUSTER": "a/b"}, "FLYPG_CLUSTER", "letters"),
    ("a relative path", {"FLYPG_DATA_DIR": "data"}, "FLYPG_DATA_DIR", "absolute"),
    ("PGDATA around all", {"FLYPG_PGDATA": "/data", "FLYPG_DATA_DIR": "/data/x"}, "FLYPG_PGDATA", "contain"),
    ("a path too long for sockets", {"FLYPG_DATA_DIR": "/" + "x" * 90}, "FLYPG_DATA_DIR", "too long"),
    ("an address of nobody", {"FLYPG_HOST": "0.0.0.0"}, "FLYPG_HOST", "reach"),
    ("no endpoint", {"FLYPG_ETCD_ENDPOINTS": ","}, "FLYPG_ETCD_ENDPOINTS", "at least one"),
    ("a bad endpoint", {"FLYPG_ETCD_ENDPOINTS": "ftp://a"}, "FLYPG_ETCD_ENDPOINTS", "http://"),
    ("mixed endpoints", {"FLYPG_ETCD_ENDPOINTS": "http://a,https://b"}, "FLYPG_ETCD_ENDPOINTS", "mixes"),
    ("an endpoint twice", {"FLYPG_ETCD_ENDPOINTS": "a,http://a:2379"}, "FLYPG_ETCD_ENDPOINTS", "twice"),
    ("files without TLS", {"FLYPG_ETCD_CA_FILE": "/ca"}, "FLYPG_ETCD_CA_FILE", "https://"),
    ("a user without password", {"FLYPG_ETCD_USER": "u"}, "FLYPG_ETCD_USER", "FLYPG_ETCD_PASSWORD"),
    ("no such program", {"FLYPG_HAPROXY": "/none"}, "FLYPG_HAPROXY", "program"),
    ("no PostgreSQL there", {"FLYPG_PG_BIN_DIR": "/tmp"}, "FLYPG_PG_BIN_DIR", "postgres"),
    ("root as server", {"FLYPG_OS_USER": "nobody-at-all"}, "FLYPG_OS_USER", ""),
    ("a missing secret", {"SU_PASSWORD_FILE": "/none"}, "SU_PASSWORD_FILE", "cannot be read"),
]


@pytest.mark.parametrize(("story", "environment", "key", "problem"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused_by_key(story: str, environment: dict[str, str], key: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**environment)
    assert caught.value.key == key and problem in str(caught.value)


def test_keys_of_other_packages_are_left_to_them() -> None:
    found = load(FLYPG_S3_BUCKET="b", FLYPG_CHECK_X="1")
    assert found.values["FLYPG_S3_BUCKET"] == "b"
    assert load(PGHOST="x", HOME="/").values.get("HOME") is None


def test_secrets_come_from_files_too_and_never_appear(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2\n")
    found = load(
        SU_PASSWORD="swordfish",
        REPL_PASSWORD_FILE=str(file),
        FLYPG_API_TOKEN="t0ken",
        FLYPG_ETCD_USER="u",
        FLYPG_ETCD_PASSWORD="etc3d",
    )
    assert (found.su_password, found.repl_password) == ("swordfish", "hunter2")
    assert set(found.secrets) == {"swordfish", "hunter2", "t0ken", "etc3d"}
    assert not [secret for secret in found.secrets if secret in repr(found)]
    with pytest.raises(SettingsError, match="keep one") as caught:
        load(SU_PASSWORD="swordfish", SU_PASSWORD_FILE=str(file))
    assert "swordfish" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        load(FLYPG_API_TOKN="oops")
    assert "oops" not in str(caught.value) and "FLYPG_API_TOKEN" in str(caught.value)


ENDPOINTS = [
    ("http://etcd1:2379", "http://etcd1:2379"),
    ("etcd1", "http://etcd1:2379"),
    ("https://etcd1/", "https://etcd1:2379"),
    ("fdaa::3", "http://[fdaa::3]:2379"),
    ("[fdaa::3]:1", "http://[fdaa::3]:1"),
]


@pytest.mark.parametrize(("text", "expected"), ENDPOINTS)
def test_endpoints(text: str, expected: str) -> None:
    assert str(parse_endpoint(text)) == expected


@pytest.mark.parametrize("text", ["", "http://", "a:b", "a:99999", "a/b", "u@a", "ftp://a"])
def test_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(text)


AMOUNTS = [("10", 10.0), ("0.5", 0.5), ("500ms", 0.5), ("10 s", 10.0), ("5m", 300.0), ("1h", 3600.0), ("2d", 172800.0)]


@pytest.mark.parametrize(("text", "expected"), AMOUNTS)
def test_durations(text: str, expected: float) -> None:
    assert values.seconds({"K": text}, "K", 0.0) == expected


@pytest.mark.parametrize(("text", "expected"), [("7", 7), ("16MB", 16 << 20), ("1.5 GiB", 3 << 29), ("64k", 64 << 10)])
def test_sizes(text: str, expected: int) -> None:
    assert values.size({"K": text}, "K", 0) == expected


@pytest.mark.parametrize("text", ["-1", "x", "1e3", "10 parsecs", "nan", "inf"])
def test_no_amount(text: str) -> None:
    for parse in (values.seconds, values.size):
        with pytest.raises(SettingsError):
            parse({"K": text}, "K", 0)


def test_a_number_is_finite() -> None:
    with pytest.raises(SettingsError):
        values.number({"K": "nan"}, "K", 0.0)


def test_the_endpoint_to_begin_with_is_that_of_the_own_machine_else_spread() -> None:
    options = EtcdOptions(tuple(parse_endpoint(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.0.3")))
    assert [nearest(options, f"10.0.0.{n}", "x") for n in (1, 2, 3)] == [0, 1, 2]
    assert {nearest(options, "10.0.0.9", f"n{n}") for n in range(20)} == {0, 1, 2}
    local = EtcdOptions(tuple(parse_endpoint(f"127.0.0.1:{port}") for port in (1, 2)))
    assert {nearest(local, "127.0.0.1", f"n{n}") for n in range(20)} == {0, 1}
