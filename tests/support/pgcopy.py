"""A second PostgreSQL with the same data and passwords as a first: what a promoted standby looks like to a pooler."""

from __future__ import annotations

import shutil

from tests.support.pgserver import PgServer


def copy_of(server: PgServer) -> PgServer:
    """A started copy of `server`, which must be stopped."""
    copy = PgServer()
    shutil.copytree(server.data, copy.data)
    for path in (copy.data, *copy.data.rglob("*")):
        owner = (server.data / path.relative_to(copy.data)).lstat()
        shutil.chown(path, owner.st_uid, owner.st_gid)
    (copy.data / "postmaster.pid").unlink(missing_ok=True)
    copy.configure()
    copy.start()
    return copy
