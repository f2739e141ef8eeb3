"""What snapshots have come to is written down, also when etcd is away for a moment; what could not be done is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.backup_stats import backup_stats
from backups import service as service_module
from backups.config import read_config
from backups.facts import NodeFacts
from backups.notes import WorkLease
from backups.policy import RunHistory
from backups.service import BackupService
from cluster.errors import CommandFailed, OutcomeUnknown, StoredFormatError, StoreUnavailable
from cluster.model import Event
from tests.support.backing import N1, alone

SNAPSHOT = {"id": "vs_" + "a" * 16, "stored_bytes": 7, "finished_at": 1.0}
SWEPT = {"kept": 1, "oldest_at": 1.0, "unreadable": ""}
VERIFIED = {"id": SNAPSHOT["id"], "ok": True, "at": 2.0, "restore_s": 3.0}


class Noted:
    """The notes in etcd, with what goes wrong there: each error once."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.history = RunHistory()
        self.events: list[str] = []
        self.released = False
        self.begun: list[tuple[str, bool]] = []  # each work, and was it told that there is a repository

    async def incarnation(self, system_id: str, fresh: str) -> str:
        return "00000000"

    async def take(self, node: str) -> WorkLease:
        return WorkLease(1, 1)

    async def renew(self, work: WorkLease) -> bool:
        return True

    async def release(self, work: WorkLease) -> None:
        self.released = True

    async def read_history(self, repository: str = "") -> RunHistory:
        return self.history

    async def change_history(
        self, change: Callable[[RunHistory], RunHistory], repository: str = "", event: Event | None = None
    ) -> RunHistory:
        if self.errors:
            raise self.errors.pop(0)
        self.history = change(self.history)
        self.events += [event.text] if event else []
        return self.history


def made(notes: Noted, tmp_path: Path, results: dict[str, Any], url: str = "s3://b") -> BackupService:
    values = {"FLYPG_SNAPSHOT_URL": url, "FLYPG_SNAPSHOT_SHARED": "true", "FLYPG_SNAPSHOT_FIRST_AFTER_S": "0"}
    config = read_config(values, tmp_path, 1000)
    facts = NodeFacts(N1, "c", tmp_path, tmp_path, tmp_path, 1, None)
    service = BackupService(config, facts, notes, lambda: alone("7301"))  # type: ignore[arg-type]

    async def run(work: str, _: object, *arguments: str) -> dict[str, Any]:
        notes.begun.append((work, "--begun" in arguments))
        if isinstance(results[work], Exception):
            raise results[work]
        return dict(results[work])

    service._children.run = run  # type: ignore[assignment]
    return service


@pytest.mark.parametrize(
    "errors",
    [(StoreUnavailable("no answer"),), (OutcomeUnknown("no answer"), StoreUnavailable("no answer"))],
    ids=["away", "maybe"],
)
def test_a_snapshot_is_noted_although_etcd_was_away(
    errors: tuple[Exception, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment after a snapshot of hours: it ended the agent's whole backup service."""
    monkeypatch.setattr(service_module, "NOTE_AGAIN_S", 0.0)
    notes = Noted(*errors)
    asyncio.run(made(notes, tmp_path, {"snapshot": SNAPSHOT, "sweep": SWEPT, "verify": VERIFIED})._under_lease())
    assert (notes.history.ok_id, notes.history.verified_at) == (SNAPSHOT["id"], 2.0)
    assert notes.released and not notes.errors


def test_notes_that_cannot_be_read_are_no_bug_of_ours(tmp_path: Path) -> None:
    notes = Noted(StoredFormatError("of a newer version"))
    service = made(notes, tmp_path, {"snapshot": SNAPSHOT, "sweep": SWEPT, "verify": VERIFIED})
    with pytest.raises(StoredFormatError):
        asyncio.run(service._under_lease())
    assert notes.released


def test_what_could_not_be_done_after_a_snapshot_is_said_until_it_can(tmp_path: Path) -> None:
    """Credentials that may not delete, a disk without room for a restore test: it stood in a log only."""
    notes = Noted()
    results: dict[str, Any] = {
        "snapshot": SNAPSHOT,
        "sweep": CommandFailed("AccessDenied"),
        "verify": CommandFailed("no room"),
    }
    service = made(notes, tmp_path, results)
    asyncio.run(service._under_lease())
    text = "old snapshots are not deleted: AccessDenied; the restore test could not be made: no room"
    assert backup_stats(service.status(), None, 1.0).problems == (text,)
    assert notes.events == [text]
    results |= {"sweep": SWEPT, "verify": VERIFIED}
    notes.history = RunHistory(undone=text)
    asyncio.run(service._under_lease())
    assert backup_stats(service.status(), None, 1.0).problems == ()
    assert notes.events == [text], "told when it begins"


@pytest.mark.parametrize(("before", "begun"), [("", False), ("file:///elsewhere", False), ("file:///nfs", True)])
def test_a_shared_directory_is_begun_once(before: str, begun: bool, tmp_path: Path) -> None:
    """The second time, its file system is not mounted; another one that was named since is new."""
    notes = Noted()
    notes.history = RunHistory(where=before)
    results = {"snapshot": SNAPSHOT, "sweep": SWEPT, "verify": VERIFIED}
    asyncio.run(made(notes, tmp_path, results, "file:///nfs")._under_lease())
    assert notes.begun == [("snapshot", begun), ("sweep", True), ("verify", True)]
    assert notes.history.where == "file:///nfs"


def test_an_agent_that_starts_knows_before_its_archiver_that_there_is_a_repository(tmp_path: Path) -> None:
    notes = Noted()
    notes.history = RunHistory(where="file:///nfs")
    service = made(notes, tmp_path, {}, "file:///nfs")
    told: list[list[str]] = []

    async def tell(standing: object, arguments: list[str], written: int | None = None) -> None:
        told.append(arguments)

    service._archiver.tell = tell  # type: ignore[method-assign]
    asyncio.run(service.watch())
    assert told and "--begun" in told[0]
