"""Commands of the operator's around each snapshot: a snapshot of the volume, a word to a monitor, a job that waits.

They run on the node that takes the snapshot, as the user that flypg runs as, by a shell. They are told what it is about
by variables, find the server with `psql`, and are given no secret.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from backups.errors import SnapshotFailed
from cluster.errors import CommandFailed, CommandTimedOut
from postgres.command import run
from postgres.connection import where

log = logging.getLogger("flypg.backups")
T = TypeVar("T")
BEFORE, AFTER = "FLYPG_SNAPSHOT_BEFORE", "FLYPG_SNAPSHOT_AFTER"


@dataclass(frozen=True, slots=True)
class Hooks:
    """ "" means none."""

    before: str = ""  # when it fails, no snapshot is taken
    after: str = ""  # also after a failure, so that what `before` did can be undone
    timeout_s: float = 300.0  # each of them is killed then


def about(snapshot: str, cluster: str, node: str, data_dir: Path, conninfo: str) -> dict[str, str]:
    """What a hook is told. `conninfo`: of the server that is copied; of it, only where that is."""
    return {
        "FLYPG_SNAPSHOT_ID": snapshot,
        "FLYPG_CLUSTER": cluster,
        "FLYPG_NODE": node,
        "FLYPG_DATA_DIR": str(data_dir),
        "PGDATABASE": "postgres",
        **where(conninfo),
    }


def hooked(hooks: Hooks, told: Mapping[str, str], take: Callable[[], T]) -> tuple[T, str]:
    """Take a snapshot between the hooks; blocks. Returns it and why `after` failed, "" if it did not.

    Raises SnapshotFailed when `before` fails, else what `take` raises.
    """
    try:
        _call(BEFORE, hooks.before, hooks.timeout_s, told)
        taken = take()
    except BaseException as error:
        why = " ".join(str(error).split()) or type(error).__name__
        _after(hooks, {**told, "FLYPG_SNAPSHOT_RESULT": "failed", "FLYPG_SNAPSHOT_ERROR": why})
        raise
    return taken, _after(hooks, {**told, "FLYPG_SNAPSHOT_RESULT": "ok"})


def _after(hooks: Hooks, told: Mapping[str, str]) -> str:
    try:
        _call(AFTER, hooks.after, hooks.timeout_s, told)
    except SnapshotFailed as error:
        log.error("snapshot_hook_failed", extra={"snapshot": told["FLYPG_SNAPSHOT_ID"], "error": str(error)})
        return str(error)
    return ""


def _call(name: str, command: str, timeout_s: float, told: Mapping[str, str]) -> None:
    if not command:
        return
    try:
        asyncio.run(run(["/bin/sh", "-c", command], timeout_s=timeout_s, env=told))
    except CommandTimedOut:
        raise SnapshotFailed(f"{name} did not finish within {timeout_s:g} s and was killed") from None
    except CommandFailed as error:
        raise SnapshotFailed(f"{name} failed: {error}") from None
