"""A copy of the data takes the place of the present one: where that has its WAL elsewhere, so has the copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from postgres.wal_home import keep_wal_home


def data(root: Path, name: str, segment: str) -> Path:
    pgdata = root / name
    (pgdata / "pg_wal" / "archive_status").mkdir(parents=True)
    (pgdata / "pg_wal" / segment).write_text(segment)
    return pgdata


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, Path]:
    """Data whose WAL is elsewhere, and where."""
    pgdata = data(tmp_path, "pgdata", "old")
    home = tmp_path / "volume" / "pg_wal"
    home.parent.mkdir()
    (pgdata / "pg_wal").rename(home)
    (pgdata / "pg_wal").symlink_to(home)
    return pgdata, home


def test_the_copy_has_it_there_too(tmp_path: Path, linked: tuple[Path, Path]) -> None:
    pgdata, home = linked
    fresh = data(tmp_path, "fresh", "new")
    keep_wal_home(fresh, pgdata, None)
    assert (fresh / "pg_wal").is_symlink() and (fresh / "pg_wal").resolve() == home
    assert sorted(p.name for p in home.iterdir()) == ["archive_status", "new"]
    assert not (pgdata / "pg_wal").is_symlink(), "what is moved aside has its own"
    assert (pgdata / "pg_wal" / "old").read_text() == "old"


def test_without_room_for_the_old_wal_the_copy_has_it_all_the_same(
    tmp_path: Path, linked: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pgdata, home = linked
    fresh = data(tmp_path, "fresh", "new")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("postgres.wal_home.shutil.copytree", full)
    (fresh / "pg_wal" / "archive_status").rmdir()
    keep_wal_home(fresh, pgdata, None)
    assert [p.name for p in home.iterdir()] == ["new"]
    assert list((pgdata / "pg_wal").iterdir()) == []


def test_nothing_happens_where_it_is_in_its_place(tmp_path: Path) -> None:
    pgdata, fresh = data(tmp_path, "pgdata", "old"), data(tmp_path, "fresh", "new")
    keep_wal_home(fresh, pgdata, None)
    assert not (fresh / "pg_wal").is_symlink() and (fresh / "pg_wal" / "new").exists()
    keep_wal_home(fresh, tmp_path / "nothing", None)
    assert (fresh / "pg_wal" / "new").exists()
