"""Fills a new standby's data directory from the repository: the work is done by a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable

from backups.children import Children
from backups.config import BackupConfig
from backups.facts import NodeFacts
from backups.layout import PathName
from backups.notes import Notes
from cluster.errors import CommandFailed, CommandTimedOut, InstanceError
from postgres.process import end_leftovers
from postgres.seeding import Seed, Seeding

GB = 1 << 30


class RepositorySeeder:
    """Implements postgres.seeding.Seeder for one node."""

    def __init__(self, config: BackupConfig, facts: NodeFacts, notes: Notes) -> None:
        self._children = Children(config, facts)
        self._cluster = facts.cluster
        self._notes = notes

    async def __call__(self, wanted: Seeding, tell: Callable[[str], None]) -> Seed:
        """Only the path that this cluster archives under now is looked at: others of the same system are of before a
        restore, or of a cluster that was restored from it. Raises InstanceError, StoreUnavailable."""
        incarnation = await self._notes.known_incarnation(wanted.system_id)
        if not incarnation:
            raise InstanceError("this cluster has stored nothing in the repository yet")
        followed = {
            "system_id": wanted.system_id,
            "major": wanted.major,
            "timeline": wanted.timeline,
            "history": wanted.history,
            "oldest": wanted.oldest,
            "flushed": wanted.flushed,
        }
        more = ["--followed", json.dumps(followed), "--into", str(wanted.directory)]
        path = PathName(self._cluster, wanted.system_id, incarnation)
        tell("looking for a snapshot")

        def heard(chunk: bytes) -> None:
            for line in chunk.splitlines():
                if text := in_words(line):
                    tell(text)

        try:
            made = await self._children.run("seed", path, *more, on_stderr=heard)
        except (CommandFailed, CommandTimedOut) as error:
            raise InstanceError(reason_of(str(error))) from error
        finally:
            await end_leftovers(wanted.directory, patience_s=0.0)  # the server that it started, if it was killed
        return Seed(str(made["snapshot"]), int(made["until"]))


def in_words(line: bytes) -> str:
    """What a line of the child's progress says to people; "" for one that is none. Pure."""
    try:
        found = json.loads(line)
        if "doing" in found:
            return str(found["doing"])
        done, total = int(found["done_bytes"]), max(1, int(found["total_bytes"]))
    except (ValueError, KeyError, TypeError):
        return ""
    return f"{min(100, 100 * done // total)} % of {total / GB:.1f} GB of a snapshot"


def reason_of(failure: str) -> str:
    """The child's own words, without what ran. Pure."""
    head, colon, words = failure.partition(": ")
    if not colon or " exited " not in head:
        return failure
    lines = [line for line in words.splitlines() if line and not line.endswith("}")]  # those are its progress
    return " ".join(lines) or failure
