"""Unpacking a base backup: what is in it stays in its directory, also on a Python before 3.11.4, without filters."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from backups.errors import ObjectDamaged
from backups.extract import _untar


def archive(*members: tuple[str, str]) -> io.BytesIO:
    """Files with their content; a content that begins with `->` is a link."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o666
            if content.startswith("->"):
                info.type, info.linkname = tarfile.SYMTYPE, content.removeprefix("->")
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
    made.seek(0)
    return made


@pytest.fixture(params=["this Python", "Debian 12's"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    trusted = getattr(tarfile, "fully_trusted_filter", None)
    if request.param == "Debian 12's" and trusted is not None:
        extractall = tarfile.TarFile.extractall

        def older(self: tarfile.TarFile, path: Path, members: Any, *, numeric_owner: bool) -> None:
            extractall(self, path, members, numeric_owner=numeric_owner, filter=trusted)

        monkeypatch.delattr(tarfile, "fully_trusted_filter")
        monkeypatch.setattr(tarfile.TarFile, "extractall", older)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_a_backup_is_unpacked(target: Path) -> None:
    _untar(archive(("PG_VERSION", "15\n"), ("base/1/112", "x")), target, None, "base.tar")
    assert (target / "PG_VERSION").read_text() == "15\n"
    assert (target / "base/1/112").stat().st_mode & 0o777 == 0o644, "nobody else may write"


OUTSIDE = [
    ("above", [("../evil", "x")]),
    ("anywhere", [("/tmp/flypg-evil", "x")]),
    ("through a link", [("out", "->.."), ("out/evil", "x")]),
]


@pytest.mark.parametrize(("where", "members"), OUTSIDE, ids=[o[0] for o in OUTSIDE])
def test_nothing_leaves_the_directory(target: Path, where: str, members: list[tuple[str, str]]) -> None:
    with pytest.raises(ObjectDamaged, match="outside"):
        _untar(archive(*members), target, None, "base.tar")
    assert sorted(path.name for path in target.parent.iterdir()) == ["data"]
