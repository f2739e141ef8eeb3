"""What the programs we start are given, and the looks at directories that others are changing."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flypg.home import settle_home
from postgres import files
from postgres.command import Account, closed_above, plain_environment


def test_a_program_of_another_user_is_told_of_that_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """libpq looks into ~/.postgresql and ends the connection when it may not: root's home is closed to others."""
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setenv("PGPASSWORD", "secret")
    postgres = Account("postgres", 104, 108, "/var/lib/postgresql")
    assert plain_environment(user=postgres)["HOME"] == "/var/lib/postgresql"
    assert plain_environment()["HOME"] == "/root"
    assert plain_environment({"HOME": "/elsewhere"}, postgres)["HOME"] == "/elsewhere"
    assert "PGPASSWORD" not in plain_environment(user=postgres)


def test_a_program_of_another_user_is_not_told_of_our_directory_for_temporary_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An archive_command's mktemp would fail in a directory that only root may enter."""
    monkeypatch.setenv("TMPDIR", "/root/tmp")
    assert "TMPDIR" not in plain_environment(user=Account("postgres", 104, 108))
    assert plain_environment()["TMPDIR"] == "/root/tmp"


def test_a_home_that_we_may_not_enter_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`setpriv --reuid=postgres flypg agent` keeps root's HOME."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settle_home()
    assert os.environ["HOME"] == str(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    settle_home()
    assert os.environ["HOME"] == pwd.getpwuid(os.geteuid()).pw_dir
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)  # a container's user without a name
    settle_home()
    assert os.environ["HOME"] == "/nonexistent"
    monkeypatch.delenv("HOME")
    settle_home()
    assert "HOME" not in os.environ


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Pytest's own directories are closed."""
    with tempfile.TemporaryDirectory(prefix="fp", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_lies_below_a_closed_directory_is_found(open_path: Path) -> None:
    stranger = Account("stranger", 4_000_000, 4_000_000)
    closed = open_path / "closed"
    closed.mkdir(mode=0o700)
    assert closed_above(closed / "below" / "deeper", stranger) == closed
    assert closed_above(closed, stranger) is None, "only what is above it counts"
    assert closed_above(open_path / "yet" / "to" / "be", stranger) is None
    assert closed_above(closed / "below", None) is None
    link = open_path / "link"
    link.symlink_to(closed / "below")
    assert closed_above(link, stranger) == closed
    (closed / "out").symlink_to(open_path)
    assert closed_above(closed / "out" / "there", stranger) == closed
    closed.chmod(0o701)
    assert closed_above(closed / "below", stranger) is None
    mine = Account("me", closed.stat().st_uid, closed.stat().st_gid)
    closed.chmod(0o077)
    assert closed_above(closed / "below", mine) == closed, "the owner's bits count for the owner"
    closed.chmod(0o700)


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
