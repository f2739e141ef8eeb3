"""A volume that was made from a snapshot of another cluster's: what its old agent had promised there is void here.

Fly sets FLY_RESTORED_FROM on the machines of an app whose volumes were restored. The data itself needs no treatment:
the sentinel founds a new cluster with the data a node brings, PostgreSQL never starts with an open gate, and the keeper
sets the passwords of flypg's users anew. Only the keeper's own words are in the way: a promise of term 7 of the old
cluster would keep this node out of term 1 of the new one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cluster.codec import decode, encode
from cluster.errors import InstanceError
from cluster.model import Disk
from postgres.files import read_or_empty, write_atomically

MARKER = "restore.lock"  # of Fly's own app: the name of the cluster that has taken the volume over


def take_over(state_file: Path, pgdata: Path, cluster: str, restored_from: str, log: logging.Logger) -> bool:
    """Forget the old cluster, once. False: nothing to do. Raises InstanceError, StoredFormatError.

    `restored_from`: what FLY_RESTORED_FROM says, "" on an ordinary machine. A machine without data is a new standby of
    the restored cluster: what it promises from now on counts, so it is marked as ours at once. That a copy of the data
    was unfinished when the snapshot was taken is not forgotten. Cut off anywhere, it is simply done again.
    """
    marker = state_file.parent / MARKER
    if not restored_from or read_or_empty(marker).strip() == cluster:
        return False
    brought = (pgdata / "PG_VERSION").exists()
    try:
        if brought and state_file.exists():
            stored = state_file.read_bytes()
            kept = Disk(copying=decode(Disk, stored, str(state_file)).copying)
            if stored != encode(kept):
                before = state_file.with_name(f"{state_file.name}.before-restore")
                write_atomically(before, stored.decode(), owner=None, durable=True)
                write_atomically(state_file, encode(kept).decode(), owner=None, durable=True)
        write_atomically(marker, f"{cluster}\n", owner=None, durable=True, mode=0o644)
    except OSError as error:
        raise InstanceError(f"{error.filename} cannot be taken over: {error.strerror}") from error
    if brought:
        log.info("volume taken over", extra={"restored_from": restored_from, "cluster": cluster})
    return brought
