"""WAL on a volume of its own: `pg_wal` is a link then, which a new copy of the data must not lose."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from postgres.command import Account
from postgres.files import make_directory


def keep_wal_home(fresh: Path, pgdata: Path, owner: Account | None) -> None:
    """Where the WAL of `pgdata` is a link to a volume of its own, that of `fresh`, which replaces it, moves there.

    What was there goes with the old data, if that volume has room for it. Raises OSError when the new WAL does not fit.
    """
    link = pgdata / "pg_wal"
    if not link.is_symlink() or not link.is_dir():
        return
    home, aside = link.resolve(), pgdata / "pg_wal.aside"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _copy_tree(home, aside, owner)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        make_directory(aside, owner=owner)
    link.unlink()
    aside.rename(link)
    for entry in home.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in (fresh / "pg_wal").iterdir():
        if entry.is_dir():
            _copy_tree(entry, home / entry.name, owner)
        else:
            shutil.copy2(entry, home / entry.name)
            _own(home / entry.name, owner)
    shutil.rmtree(fresh / "pg_wal")
    (fresh / "pg_wal").symlink_to(home)


def _copy_tree(source: Path, target: Path, owner: Account | None) -> None:
    shutil.copytree(source, target)
    for path in (target, *target.rglob("*")):
        _own(path, owner)


def _own(path: Path, owner: Account | None) -> None:
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)
