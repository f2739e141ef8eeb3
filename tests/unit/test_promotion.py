"""Which history files make PostgreSQL pick a timeline, and which must not be there when it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InstanceError
from postgres.promotion import drop_trailing_stubs, reserve

REAL = "1\t0/3000000\tno recovery target specified\n"


def histories(pg_wal: Path) -> list[str]:
    return sorted(p.name for p in pg_wal.iterdir())


def names(*numbers: int) -> list[str]:
    return [f"{n:08X}.history" for n in numbers]


def test_every_number_below_the_allocated_one_exists(tmp_path: Path) -> None:
    reserve(tmp_path, 1, 5, None)
    assert histories(tmp_path) == names(2, 3, 4)


def test_a_copy_without_older_histories_can_still_be_followed(tmp_path: Path) -> None:
    (tmp_path / names(4)[0]).write_text(REAL)
    reserve(tmp_path, 4, 6, None)
    assert histories(tmp_path) == names(2, 3, 4, 5)
    assert (tmp_path / names(4)[0]).read_text() == REAL


def test_a_real_branch_of_that_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / names(5)[0]).write_text(REAL)
    with pytest.raises(InstanceError, match="another branch"):
        reserve(tmp_path, 1, 5, None)


def test_stubs_of_a_promotion_that_never_came_about_are_removed(tmp_path: Path) -> None:
    (tmp_path / names(3)[0]).write_text(REAL)
    reserve(tmp_path, 3, 7, None)
    drop_trailing_stubs(tmp_path)
    assert histories(tmp_path) == names(2, 3)
    drop_trailing_stubs(tmp_path / "missing")


def test_without_any_real_history_all_stubs_go(tmp_path: Path) -> None:
    reserve(tmp_path, 1, 4, None)
    drop_trailing_stubs(tmp_path)
    assert histories(tmp_path) == []
