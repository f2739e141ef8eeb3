"""Sizes of the pools: plans, explicit numbers, shares of a node."""

from __future__ import annotations

import pytest

from cluster import spec as wishes
from cluster.errors import SettingsError
from cluster.model import Spec
from cluster.pool import PoolMode, PoolSize, Share, modes, pool_size, share

SIZES = [
    ("the default plan", [], PoolSize(200, 50, 10)),
    ("launch", ["pool_plan=launch"], PoolSize(500, 150, 30)),
    ("performance", ["pool_plan=performance"], PoolSize(1000, 300, 50)),
    ("clients by hand", ["pool_clients=77"], PoolSize(77, 50, 10)),
    ("fewer connections than the plan's reserve", ["pool_connections=5"], PoolSize(200, 5, 4)),
    ("no reserve", ["pool_reserve=0"], PoolSize(200, 50, 0)),
]


@pytest.mark.parametrize(("texts", "expected"), [s[1:] for s in SIZES], ids=[s[0] for s in SIZES])
def test_pool_size(texts: list[str], expected: PoolSize) -> None:
    assert pool_size(wishes.assign(Spec(), texts, frozenset())) == expected


SHARES = [
    (PoolSize(200, 50, 10), 1, Share(200, 40, 10, 50)),
    (PoolSize(200, 50, 10), 3, Share(200, 13, 4, 17)),
    (PoolSize(200, 2, 1), 5, Share(200, 1, 0, 1)),
    (PoolSize(200, 50, 10), 0, Share(200, 40, 10, 50)),
]


@pytest.mark.parametrize(("size", "poolers", "expected"), SHARES)
def test_share(size: PoolSize, poolers: int, expected: Share) -> None:
    assert share(size, poolers) == expected


def test_modes_are_kept_in_one_form() -> None:
    spec = wishes.assign(Spec(), ["pool_modes= shop=transaction , etl=session"], frozenset())
    assert spec.pool_modes == "etl=session,shop=transaction"
    assert modes(spec) == {"etl": PoolMode.SESSION, "shop": PoolMode.TRANSACTION}


@pytest.mark.parametrize(
    "text", ["pool_modes=shop=statement", "pool_modes=a b=session", "pool_mode=x", "pool_plan=gold"]
)
def test_what_is_not_allowed_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=text.partition("=")[0]):
        wishes.assign(Spec(), [text], frozenset())


def test_names_that_pgbouncer_would_choke_on_are_left_out() -> None:
    """An older flypg took them, and PgBouncer then refused its configuration: nobody could connect."""
    assert modes(Spec(pool_modes="pgbouncer=session,shop=transaction,ünï=session")) == {"shop": PoolMode.TRANSACTION}
