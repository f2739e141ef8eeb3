"""flypg pool and connection-string: what is asked for, and what is said."""

from __future__ import annotations

import pytest

from cluster.errors import SettingsError
from cluster.model import Member, NodeId, Spec
from flypg.cli import build_parser
from flypg.commands.pool import COLUMNS, asked, effects, parse_pools, said, settings
from flypg.connection import Way, place
from flypg.reply import BadInput
from healthchecks import own_metrics as own
from healthchecks.exposition import render
from healthchecks.provider import PoolerStats, PoolStats

CHANGES = [
    (["--mode", "transaction"], Spec(pool_mode="transaction")),
    (["--mode", "default"], Spec()),
    (["--mode", "transaction", "--database", "shop"], Spec(pool_modes="etl=session,shop=transaction")),
    (["--mode", "default", "--database", "etl"], Spec(pool_modes="")),
    (["--plan", "launch", "--clients", "70"], Spec(pool_plan="launch", pool_clients=70)),
    (["--connections", "30", "--reserve", "0"], Spec(pool_connections=30, pool_reserve=0)),
]


@pytest.mark.parametrize(("options", "expected"), CHANGES)
def test_changes(options: list[str], expected: Spec) -> None:
    before = Spec(pool_modes="etl=session") if "--database" in options else Spec()
    assert asked(build_parser().parse_args(["pool", "set", *options]), before) == expected


def test_refusals() -> None:
    parse = build_parser().parse_args
    with pytest.raises(BadInput, match="nothing to change"):
        asked(parse(["pool", "set"]), Spec())
    with pytest.raises(BadInput, match="--mode"):
        asked(parse(["pool", "set", "--database", "x"]), Spec())
    with pytest.raises(BadInput, match="--reserve 10: must be less than the 10 connections"):
        asked(parse(["pool", "set", "--connections", "10", "--reserve", "10"]), Spec())
    with pytest.raises(SettingsError, match="pool_modes"):
        asked(parse(["pool", "set", "--database", "", "--mode", "session"]), Spec())
    for name in ("pgbouncer", "a b", "ünï", "a@b", 'we"ird'):
        with pytest.raises(SettingsError, match="cannot have a mode of its own"):
            asked(parse(["pool", "set", "--database", name, "--mode", "session"]), Spec())
    with pytest.raises(SettingsError, match="pool_clients"):
        asked(parse(["pool", "set", "--clients", "many"]), Spec())


def test_what_is_said() -> None:
    assert "200 clients per node, 50 connections" in " ".join(said(Spec(), 3))
    assert settings(Spec(pool_plan="launch"), 3)["per_node"] == {
        "clients": 500,
        "pool": 40,
        "reserve": 10,
        "connections": 50,
    }
    assert len(effects(Spec(), Spec(pool_mode="transaction", pool_connections=5))) == 3


def test_pools_from_metrics() -> None:
    """As a node writes them."""
    out = own.Collected("main", NodeId("n1"))
    own.add_pools(out, PoolerStats(True, (PoolStats('we"ird\\ db', "a", 1, 2, 3, 4, 5, 0.25),)))
    found = parse_pools("pgbouncer_up 1\n" + render(out.families.values()))
    assert list(found) == [('we"ird\\ db', "a")]
    values = found['we"ird\\ db', "a"]
    assert [values[name] for name in COLUMNS] == [1, 2, 3, 4, 0.25]


def test_a_url_can_ask_for_tls() -> None:
    at = place(Member(NodeId("n1"), "h"), Way.POOLED)
    found = at.url("u", None, "d", {"sslmode": "verify-full", "sslrootcert": "/my files/root.crt"})
    assert found == "postgresql://u@h:6432/d?sslmode=verify-full&sslrootcert=/my%20files/root.crt"
    assert at.url("u", None, "d", {"sslmode": "", "sslrootcert": ""}).endswith("/d")


def test_urls_are_quoted() -> None:
    url = place(Member(NodeId("n1"), "fdaa::1"), Way.READ).url("fly user", "p@ss/word", "my db")
    assert url == "postgresql://fly%20user:p%40ss%2Fword@[fdaa::1]:5434/my%20db"
    assert (
        place(Member(NodeId("n1"), "h"), Way.POOLED, "app.internal").url("u", None, "d")
        == "postgresql://u@app.internal:6432/d"
    )
