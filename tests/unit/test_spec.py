"""What an operator may wish, how it is written, and what is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from cluster import spec
from cluster.errors import SettingsError
from cluster.model import Durability, Spec

OWNED = frozenset({"port", "fsync"})

CHANGES = [
    ("a word", ["durability=strict"], Spec(durability=Durability.STRICT)),
    ("a number", ["k=2"], Spec(k=2)),
    ("a flag", ["paused=true"], Spec(paused=True)),
    ("a duration", ["suspect_after_s=500ms", "cooldown_s=1m"], Spec(suspect_after_s=0.5, cooldown_s=60.0)),
    ("a size", ["max_lag_bytes=16MB"], Spec(max_lag_bytes=16 << 20)),
    ("a region", ["primary_region=ams"], Spec(primary_region="ams")),
    ("a parameter", ["parameters.work_mem=8MB"], Spec(parameters=(("work_mem", "8MB"),))),
    ("with = in it", ["parameters.search_path=a=b"], Spec(parameters=(("search_path", "a=b"),))),
    ("in any case", ["parameters.Work_Mem=8MB"], Spec(parameters=(("work_mem", "8MB"),))),
    ("the last wins", ["k=2", "k=3"], Spec(k=3)),
    ("never removed", ["remove_dead_after_s=0"], Spec()),
    (
        "hba",
        ["hba=host all all ::/0 md5\nlocal all all peer"],
        Spec(hba=("host all all ::/0 md5", "local all all peer")),
    ),
]


@pytest.mark.parametrize(("story", "texts", "expected"), CHANGES, ids=[c[0] for c in CHANGES])
def test_assign(story: str, texts: list[str], expected: Spec) -> None:
    assert spec.assign(Spec(), texts, OWNED) == expected


def test_nothing_after_the_sign_goes_back_to_the_default() -> None:
    changed = spec.assign(Spec(), ["k=2", "parameters.work_mem=8MB", "parameters.a=1", "primary_region=ams"], OWNED)
    assert changed.parameters == (("a", "1"), ("work_mem", "8MB")), "sorted"
    back = spec.assign(changed, ["k=", "parameters.work_mem=", "parameters.a=", "primary_region="], OWNED)
    assert back == Spec()


REFUSED = [
    ("no sign", "k", "k", "key=value"),
    ("a typo", "durabilty=strict", "durabilty", "did you mean durability?"),
    ("an unknown key", "colour=red", "colour", "durability, k, paused"),
    ("no such word", "durability=some", "durability", "quorum, strict, async"),
    ("too small", "k=0", "k", "from 1 to 10"),
    ("no number", "k=two", "k", "whole number"),
    ("no flag", "paused=yes", "paused", "true or false"),
    ("too short", "suspect_after_s=0.1", "suspect_after_s", "from 0.2 to 60"),
    ("too soon", "remove_dead_after_s=5", "remove_dead_after_s", "0, or from 60"),
    ("no size", "max_lag_bytes=lots", "max_lag_bytes", "size in bytes"),
    ("no region", "primary_region=A B", "primary_region", "region"),
    ("a parameter of ours", "parameters.fsync=off", "parameters.fsync", "belongs to flypg"),
    ("in any case", "parameters.FSYNC=off", "parameters.fsync", "belongs to flypg"),
    ("no parameter", "parameters.a b=1", "parameters.a b", "not the name"),
    ("no parameter either", "parameters.=", "parameters.", "not the name"),
    ("two lines", "parameters.a=1\nport = 1", "parameters.a", "one line"),
    ("no standby could follow", "parameters.wal_level=minimal", "parameters.wal_level", "replica or logical"),
    ("no hba line", "hba=allow everybody", "hba", "pg_hba.conf line"),
    ("an hba line too short", "hba=host all all md5", "hba", "pg_hba.conf line"),
]


@pytest.mark.parametrize(("story", "text", "key", "problem"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused_by_key(story: str, text: str, key: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        spec.assign(Spec(), [text], OWNED)
    assert caught.value.key == key and problem in str(caught.value)


def test_what_makes_no_sense_together_is_refused() -> None:
    with pytest.raises(SettingsError, match="async") as caught:
        spec.assign(Spec(k=2), ["durability=async"], OWNED)
    assert caught.value.key == "k"
    assert spec.assign(Spec(k=2), ["durability=async", "k=1"], OWNED).durability is Durability.ASYNC


FULL = Spec(
    durability=Durability.STRICT,
    k=2,
    paused=True,
    primary_region="ams",
    max_lag_bytes=5,
    suspect_after_s=0.5,
    shrink_after_s=3.0,
    cooldown_s=0.0,
    hold_max_s=7.0,
    restart_within_s=40.0,
    remove_dead_after_s=3600.0,
    read_max_lag_bytes=1 << 40,
    parameters=(("pg_stat_statements.max", "1000"), ("search_path", '"$user", public')),
    hba=("hostssl all all 0.0.0.0/0 scram-sha-256",),
)


@pytest.mark.parametrize("value", [Spec(), FULL], ids=["default", "everything"])
def test_a_rendered_spec_is_read_back(value: Spec) -> None:
    assert spec.from_toml(spec.to_toml(value), OWNED) == value


def test_every_key_is_described() -> None:
    assert {f.name for f in fields(Spec)} == {*spec.WISHES, spec.PARAMETERS}


def test_documents() -> None:
    toml = (
        'k = 2\ncooldown_s = "1m"\nhba = ["local all all peer"]\n[parameters]\nwork_mem = "8MB"\njit = false\na.b = 3\n'
    )
    expected = Spec(
        k=2,
        cooldown_s=60.0,
        hba=("local all all peer",),
        parameters=(("a.b", "3"), ("jit", "off"), ("work_mem", "8MB")),
    )
    assert spec.from_toml(toml, OWNED) == expected
    plain = {
        "k": 2,
        "cooldown_s": 60,
        "hba": ["local all all peer"],
        "parameters": {"work_mem": "8MB", "jit": False, "a.b": 3},
    }
    assert spec.from_json(json.dumps(plain), OWNED) == expected


BAD_DOCUMENTS = [
    ("no TOML", "= 1", "spec"),
    ("a typo", "pause = true", "pause"),
    ("a flag for a number", "k = true", "k"),
    ("a list for a number", "k = [1]", "k"),
    ("no table", "parameters = 1", "parameters"),
    ("a list as parameter", "[parameters]\na = [1]", "parameters.a"),
    ("ours", "[parameters]\nport = 1", "parameters.port"),
]


@pytest.mark.parametrize(("story", "text", "key"), BAD_DOCUMENTS, ids=[b[0] for b in BAD_DOCUMENTS])
def test_bad_documents(story: str, text: str, key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        spec.from_toml(text, OWNED)
    assert caught.value.key == key


@pytest.mark.parametrize("text", ["[]", "{", "null"])
def test_bad_json(text: str) -> None:
    with pytest.raises(SettingsError):
        spec.from_json(text, OWNED)


def test_diff() -> None:
    assert spec.diff(FULL, FULL) == []
    assert spec.diff(
        Spec(), spec.assign(Spec(), ["k=2", "paused=true", "parameters.a=1", "primary_region=ams"], OWNED)
    ) == [
        "k: 1 -> 2",
        "paused: false -> true",
        "primary_region: (none) -> ams",
        "parameters.a: (default) -> 1",
    ]
    assert spec.diff(Spec(hba=("a", "b")), Spec(hba=("b", "c"))) == ["hba: - a", "hba: + c"]
    assert spec.diff(Spec(hba=("a", "b")), Spec(hba=("b", "a"))) == ["hba: the order of the lines"]
    assert spec.diff(FULL, replace(FULL, parameters=()))[0].endswith("1000 -> (default)")
