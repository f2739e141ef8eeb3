"""Does a repository in a directory survive the loss of the database's volume?"""

from __future__ import annotations

import os
from pathlib import Path

from backups.config import directory

WARN_SAME = (
    "no backups: the snapshots lie on the volume of the database and do not survive its loss;"
    " name a repository: FLYPG_SNAPSHOT_URL=s3://BUCKET/PREFIX (docs/backups.md)"
)


def warnings(url: str, pgdata: Path) -> tuple[str, ...]:
    """What people are to be warned of; blocks, on a network's directory maybe for long."""
    if not url.startswith("file://"):
        return ()
    place = directory(url)
    try:
        there = next(p for p in (place, *place.parents) if p.exists())  # it comes to be with the first snapshot
        same = os.stat(there).st_dev == os.stat(pgdata).st_dev
    except OSError:
        return ()
    return (WARN_SAME,) if same else ()
