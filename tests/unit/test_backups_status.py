"""What is said of backups: how far the archive is behind, when people are told, the line of `flypg status`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.backup_stats import backup_stats
from backups.alarms import ALARM_S, GAP_EVERY_S, ArchiveAlarm
from backups.archiver import parse_status
from backups.facts import BackupStatus
from backups.lag import ArchiveLag, archive_lag
from backups.policy import RunHistory
from backups.wal import WalStatus
from backups.walqueue import Queue, look
from flypg.backup_look import BackupLook, archive_words, backups_data, combined, next_words, parse_backups, span
from flypg.look import parse_look
from flypg.show import backup_lines
from healthchecks.config import Thresholds
from healthchecks.node import _backups
from healthchecks.pg import judge_snapshots

NOW = 1_800_000_000.0
MB = 1 << 20
DONE = Queue(0, None, 5 * MB, NOW - 20)
LAG_STORIES: list[tuple[str, Queue | None, int | None, ArchiveLag]] = [
    ("nothing is known of the archiver", None, 6 * MB, ArchiveLag()),
    ("nor of the server", DONE, None, ArchiveLag()),
    ("all is archived", DONE, 5 * MB, ArchiveLag(0, 0.0)),
    ("the open segment is not", DONE, 5 * MB + 999, ArchiveLag(999, 20.0)),
    ("its age is not known", replace(DONE, until_at=None), 6 * MB, ArchiveLag(MB, None)),
    ("open for long: nothing in it matters", replace(DONE, until_at=NOW - 600), 5 * MB + 200, ArchiveLag(200, 0.0)),
    ("but a backlog does", Queue(3, NOW - 500, 5 * MB, NOW - 600), 8 * MB, ArchiveLag(3 * MB, 600.0)),
    ("a clock that went back", replace(DONE, until_at=NOW + 50), 6 * MB, ArchiveLag(MB, 0.0)),
    ("a position that is older than the archive", DONE, 4 * MB, ArchiveLag(0, 0.0)),
]


@pytest.mark.parametrize(("story", "queue", "written", "expected"), LAG_STORIES, ids=[s[0] for s in LAG_STORIES])
def test_how_far_the_archive_is_behind(
    story: str, queue: Queue | None, written: int | None, expected: ArchiveLag
) -> None:
    assert archive_lag(queue, written, now=NOW, timeout_s=60) == expected, story


def test_a_cluster_that_never_ends_segments_by_time_is_never_called_idle() -> None:
    assert archive_lag(replace(DONE, until_at=NOW - 9e5), 6 * MB, now=NOW, timeout_s=0) == ArchiveLag(MB, 9e5)


def test_the_queue_is_read_from_postgres_notes(tmp_path: Path) -> None:
    notes = tmp_path / "archive_status"
    assert look(tmp_path, 2, MB, set()) == Queue(), "no directory yet"
    notes.mkdir()
    done = {"000000010000000000000009": 10, "000000020000000000000004": 20, "000000020000000000000005": 30}
    ready = {"000000020000000000000006": 40, "000000020000000000000007": 50, "00000003.history": 60}
    for suffix, names in ((".done", done), (".ready", ready)):
        for name, at in names.items():
            (notes / f"{name}{suffix}").touch()
            os.utime(notes / f"{name}{suffix}", (at, at))
    assert look(tmp_path, 2, MB, set()) == Queue(3, 40.0, 6 * MB, 30.0)
    assert look(tmp_path, 2, MB, {"000000020000000000000006"}) == Queue(2, 50.0, 7 * MB, 30.0), "stored ahead"
    assert look(tmp_path, 1, MB, set()) == Queue(3, 40.0, 10 * MB, 10.0)
    for name in done:
        (notes / f"{name}.done").unlink()
    assert look(tmp_path, 2, MB, set()) == Queue(3, 40.0, 6 * MB, 40.0)


def test_an_archiver_of_another_version_is_understood() -> None:
    assert parse_status({"archived": 3, "ready": 7, "news": 1, "queue": {"ready": 2, "more": 0}}) == WalStatus(
        archived=3, queue=Queue(ready=2)
    )


def test_an_outage_is_told_twice_and_a_gap_at_once() -> None:
    alarm = ArchiveAlarm()
    fine, away = WalStatus(last="x"), WalStatus(error="no answer")
    assert not alarm.look(fine, NOW).events
    assert not alarm.look(away, NOW + 1).events, "a moment is not worth a line"
    assert alarm.look(away, NOW + 1 + ALARM_S).events == ("WAL is not archived, and kept until it can be: no answer",)
    assert not alarm.look(away, NOW + 900).events, "said once"
    assert alarm.look(fine, NOW + 901).events == ("WAL is archived again, after 900 s",)
    assert alarm.back_at == NOW + 901
    assert alarm.look(away, NOW + 910) == alarm.look(fine, NOW + 940, primary=False), "replaced meanwhile"
    assert not alarm.look(away, NOW + 941).events, "and primary again: it begins anew"
    dropped = replace(away, dropped=4, dropped_at=NOW + 950, dropped_name="S")
    found = alarm.look(dropped, NOW + 950).gap
    assert found is not None and (found.at, found.name) == (NOW + 950, "S")
    more = replace(dropped, dropped=9, dropped_at=NOW + 960)
    assert alarm.look(more, NOW + 960).gap is None, "etcd is not written every two seconds"
    last = alarm.look(more, NOW + 951 + GAP_EVERY_S).gap
    assert last is not None and last.at == NOW + 960
    assert alarm.look(more, NOW + 2000).gap is None
    assert alarm.look(replace(fine, dropped=1), NOW + 3000).gap is not None, "a new archiver counts anew"
    assert not alarm.look(None, NOW + 3001).events


HISTORY = RunHistory(
    ok_at=NOW - 7200,
    ok_id="vs_x",
    ok_bytes=187 * MB,
    kept=5,
    oldest_at=NOW - 4 * 86400,
    verified_at=NOW - 7100,
    verified_s=41.2,
)
STATUS = BackupStatus(
    "s3://b/p", True, HISTORY, NOW + 3600 * 21, "", WalStatus(queue=DONE), shared=True, archive_timeout_s=60
)


def said(status: BackupStatus, written: int | None = 5 * MB + 100) -> BackupLook:
    """As `flypg status` hears it from a node."""
    found = parse_backups(_backups(backup_stats(status, written, NOW)) | {"unknown": [1]})
    assert found is not None
    return found


def test_the_line_of_a_healthy_cluster() -> None:
    (line,) = backup_lines(said(STATUS), {})
    assert line == (
        "backups   snapshot vs_x 2 h ago, 187.0 MB, verified, restored in 41 s; next in 21 h;"
        " WAL archive 20 s behind (100 B)"
    )


def test_what_is_wrong_is_said_in_words() -> None:
    history = replace(
        HISTORY,
        failures=3,
        failed_at=NOW - 60,
        error="403",
        gap_at=NOW - 50,
        gap="SEG",
        doubt="vs_x: no",
        unreadable="vs_y: not JSON",
    )
    wal = WalStatus(error="the bucket is gone", conflicts=1, dropped=2, queue=Queue(70, NOW - 300, 5 * MB, NOW - 360))
    status = replace(STATUS, history=history, wal=wal, retry_at=NOW + 840, warnings=("careful",))
    stats = backup_stats(status, 75 * MB, NOW)
    assert (stats.archive_lag_s, stats.archive_lag_bytes, stats.gap_age_s) == (360.0, 70 * MB, 50.0)
    assert stats.next_in_s == 840.0, "a failure is tried again before the next regular run"
    lines = backup_lines(said(status, 75 * MB), {})
    assert "not verified; next in 14 min; WAL archive 6 min behind (70.0 MB), 70 files wait" in lines[0]
    for words in (
        "WAL is not archived: the bucket is gone",
        "a snapshot's record cannot be read, no WAL is deleted: vs_y: not JSON",
        "gap at SEG",
        "failed 3 times: 403",
        "vs_x: no",
        "careful",
    ):
        assert any(words in line for line in lines[1:]), (words, lines)
    (check,) = judge_snapshots(stats, Thresholds())
    assert check.warning and check.passed and "the bucket is gone" in check.text


def test_before_the_first_snapshot_and_without_an_archive() -> None:
    status = BackupStatus("file:///x", False, RunHistory(), NOW - 4000, "snapshot", None)
    assert backup_lines(said(status, None), {}) == [
        "backups   no snapshot yet; a snapshot is being taken; WAL is not archived: a restore reaches the last snapshot"
    ]
    assert next_words(said(replace(status, running=""), None)) == "next overdue by 67 min"
    assert next_words(said(replace(status, running="", next_at=None), None)) == "none is planned"
    assert archive_words(said(replace(status, archiving=True), None)) == "WAL archive: not known how far behind"


def test_without_a_repository_it_says_what_to_set() -> None:
    look = parse_look(b'{"node": "n1", "backups": null}')
    assert look is not None and look.backups is None
    (line,) = backup_lines(None, {"n1": look})  # type: ignore[dict-item]
    assert "no backups: name a repository: FLYPG_SNAPSHOT_URL=" in line
    assert backup_lines(None, {}) == [], "nobody answers: nothing is known"
    assert backups_data(None)["configured"] is False


def test_the_primary_knows_the_archive_and_the_one_who_took_it_the_snapshot() -> None:
    primary = BackupLook("r", newest_age_s=90000.0, newest_id="old", archiving=True, archive_lag_s=3.0, problems=("p",))
    other = BackupLook("r", newest_age_s=10.0, newest_id="new", running="verify", problems=("q",))
    found = combined({"n1": primary, "n2": other, "n3": None}, "n1")
    assert found is not None
    assert (found.newest_id, found.archive_lag_s, found.running, found.problems) == ("new", 3.0, "verify", ("p", "q"))
    alone = combined({"n1": None, "n2": other}, "n1")
    assert alone is not None and alone.archive_lag_s is None
    assert combined({"n1": None}, "n1") is None


@pytest.mark.parametrize("answer", [None, 3, [], "x", {"snapshots": "x", "problems": 4, "newest_age_s": True}])
def test_a_node_may_answer_anything(answer: Any) -> None:
    found = parse_backups(answer)
    assert found in (None, BackupLook())


def test_spans() -> None:
    assert [span(s) for s in (0.4, 119, 121, 7199, 7201, 172801)] == [
        "0 s",
        "119 s",
        "2 min",
        "120 min",
        "2 h",
        "2 days",
    ]
