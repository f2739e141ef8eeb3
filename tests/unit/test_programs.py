"""What the programs we start are given, and the looks at directories that others are changing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from postgres import files
from postgres.command import Account, plain_environment


def test_a_program_of_another_user_is_told_of_that_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """libpq looks into ~/.postgresql and ends the connection when it may not: root's home is closed to others."""
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setenv("PGPASSWORD", "secret")
    postgres = Account("postgres", 104, 108, "/var/lib/postgresql")
    assert plain_environment(user=postgres)["HOME"] == "/var/lib/postgresql"
    assert plain_environment()["HOME"] == "/root"
    assert plain_environment({"HOME": "/elsewhere"}, postgres)["HOME"] == "/elsewhere"
    assert "PGPASSWORD" not in plain_environment(user=postgres)


def test_a_directory_that_goes_away_while_it_is_looked_at_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert not files.holds_files(tmp_path / "gone")
    assert not files.holds_files(tmp_path / "empty")
    assert not files.holds_files(tmp_path / "file")
    assert files.holds_files(tmp_path)


def test_what_may_not_be_read_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(files.os, "scandir", closed)
    with pytest.raises(PermissionError):
        files.holds_files(tmp_path)
