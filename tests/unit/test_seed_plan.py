"""Which snapshot a new standby is made from, and why another is not; as stories."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agent.seeding import in_words, reason_of
from backups.catalog import Archive
from backups.config import read_config
from backups.layout import Segment
from backups.restore_plan import Refused
from backups.seed_plan import Followed, SeedPlan, plan_seed
from backups.unpacked import private_home
from cluster.errors import SettingsError
from cluster.model import NodeId, format_lsn
from postgres.seeding import Seed, Seeding, lost
from tests.support.snapshots import SEGMENT, record

# timeline 1 up to the middle of segment 10, 2 from there to the middle of 20, then 3
HISTORY = f"1\t{format_lsn(10 * SEGMENT + 500)}\twhy\n2\t{format_lsn(20 * SEGMENT + 500)}\twhy\n"
PRIMARY = Followed("7301", 15, 3, HISTORY, oldest=28 * SEGMENT, flushed=30 * SEGMENT + 700)
OLD, ON_TWO, NEW = (
    record("a", day=1, segment=3),
    record("b", day=2, segment=12, timeline=2),
    record("c", day=3, segment=25, timeline=3),
)
ALL = [OLD, ON_TWO, NEW]
WAL = frozenset(
    [Segment(1, n) for n in range(3, 10)]
    + [Segment(2, n) for n in range(10, 20)]
    + [Segment(3, n) for n in range(20, 30)]
)
ORPHAN = record("d", day=4, segment=14, timeline=1)  # of a primary that did not know it was replaced
AHEAD = record("e", day=5, segment=31, timeline=3)
TABLESPACE = (*NEW.archives, Archive("16384.tar", "/elsewhere", 1, ()))


def without(*segments: Segment) -> frozenset[Segment]:
    return WAL - {*segments}


FITS = [
    ("the newest", ALL, WAL, {}, "c", 30),
    ("an old one, across both failovers", [OLD], WAL, {}, "a", 30),
    ("the newest is damaged: the one before", [*ALL[:2], replace(NEW, damaged_pages=True)], WAL, {}, "b", 30),
    ("the newest failed its restore test", [ON_TWO, record("c", segment=25, timeline=3, verified=False)], WAL, {},
     "b", 30),
    ("that it was never tested is no reason", [NEW], WAL, {}, "c", 30),
    ("one that is on no branch of this history is passed over", [*ALL, ORPHAN], WAL, {}, "c", 30),
    ("so is one beyond where the primary stands", [*ALL, AHEAD], WAL, {}, "c", 30),
    ("and one of another system", [NEW, replace(AHEAD, system_id="9")], WAL, {}, "c", 30),
    ("the primary has what is not archived", ALL, without(Segment(3, 29)), {}, "c", 29),
    ("and exactly from the segment on that is missing", ALL, without(Segment(3, 28)), {}, "c", 28),
    ("nothing is archived: the snapshot's own WAL leads to the primary's", [NEW], frozenset(),
     {"oldest": 26 * SEGMENT}, "c", 25),
    ("on the first timeline there is no history", [OLD], WAL, {"timeline": 1, "history": "", "oldest": 9 * SEGMENT},
     "a", 10),
]  # fmt: skip


@pytest.mark.parametrize(("story", "snapshots", "wal", "changes", "letter", "beyond"), FITS, ids=[f[0] for f in FITS])
def test_it_is_made_from(story, snapshots, wal, changes, letter, beyond) -> None:  # type: ignore[no-untyped-def]
    followed = replace(PRIMARY, **changes)
    plan = plan_seed(snapshots, wal, followed)
    assert isinstance(plan, SeedPlan), plan
    assert (plan.snapshot.id, plan.beyond) == ("vs_" + letter * 16, beyond)
    assert plan.until >= followed.oldest
    assert plan.segments(followed) <= wal, "only what is archived, on the history"


REFUSED = [
    ("there is none", [], WAL, {}, "there is no snapshot"),
    ("a gap that the primary does not fill", ALL, without(Segment(3, 27)), {},
     "cccc lacks WAL: 0/1B000000 to 0/1C000000 is neither archived"),
    ("nothing is archived, and the primary has let it go", [NEW], frozenset(), {}, "neither archived nor on the"),
    ("the fork is not archived: its own WAL may go on beyond it", [ON_TWO], without(Segment(3, 20)),
     {"oldest": 19 * SEGMENT}, "older than timeline 3, whose beginning is not archived yet"),
    ("another system", [replace(NEW, system_id="9")], WAL, {}, "of another system, 9"),
    ("another version", [NEW], WAL, {"major": 16}, "of PostgreSQL 15, and the primary's is 16"),
    ("an abandoned branch", [ORPHAN], WAL, {}, "not on the history of timeline 3"),
    ("a branch that this history never had", [record("f", segment=12, timeline=9)], WAL, {}, "not on the history"),
    ("the fork came before its end", [record("g", segment=10, timeline=1)], WAL, {}, "not on the history"),
    ("beyond the primary", [AHEAD], WAL, {}, "and the primary stands at"),
    ("tablespaces", [replace(NEW, archives=TABLESPACE)], WAL, {}, "has tablespaces"),
    ("damaged pages", [replace(NEW, damaged_pages=True)], WAL, {}, "damaged pages"),
    ("a history that is not known", ALL, WAL, {"history": ""}, "no history file of its timeline 3"),
]  # fmt: skip


@pytest.mark.parametrize(("story", "snapshots", "wal", "changes", "why"), REFUSED, ids=[r[0] for r in REFUSED])
def test_it_is_copied_from_the_primary_because(story, snapshots, wal, changes, why) -> None:  # type: ignore[no-untyped-def]
    plan = plan_seed(snapshots, wal, replace(PRIMARY, **changes))
    assert isinstance(plan, Refused), plan
    assert why in plan.why


def test_only_segments_of_the_history_are_given() -> None:
    """The old primary's full copy of the segment in which it was left is archived as well, and goes beyond the fork."""
    plan = plan_seed([OLD], WAL | {Segment(1, 10), Segment(2, 20), Segment(9, 12)}, PRIMARY)
    assert isinstance(plan, SeedPlan)
    given = plan.segments(PRIMARY)
    assert given == WAL
    assert not given & {Segment(1, 10), Segment(2, 20)}


WANTED = Seeding(NodeId("n1"), None, "7301", 15, 3, HISTORY, oldest=5, flushed=100)  # type: ignore[arg-type]
AFTER = [
    ("the primary went on", {"flushed": 900, "oldest": 40}, ""),
    ("its oldest WAL is just what is needed", {"oldest": 50}, ""),
    ("it has let go what is needed", {"oldest": 51}, "n1 has let WAL go meanwhile: 0/32 to 0/33"),
    ("it is on another timeline", {"timeline": 4}, "n1 went from timeline 3 to 4 meanwhile"),
    ("it is another system", {"system_id": "8"}, "meanwhile"),
]


@pytest.mark.parametrize(("story", "changes", "why"), AFTER, ids=[a[0] for a in AFTER])
def test_when_it_is_complete_the_primary_is_asked_again(story, changes, why) -> None:  # type: ignore[no-untyped-def]
    found = lost(WANTED, replace(WANTED, **changes), Seed("vs_x", until=50))
    assert why in found and bool(found) == bool(why)


def test_progress_and_reasons_in_words() -> None:
    assert in_words(b'{"done_bytes": 536870912, "total_bytes": 1073741824, "stored_bytes": 1}') == (
        "50 % of 1.0 GB of a snapshot"
    )
    assert in_words(b'{"doing": "replaying WAL, 2 of 5 segments"}') == "replaying WAL, 2 of 5 segments"
    assert in_words(b"Traceback") == in_words(b"[1]") == in_words(b'{"other": 1}') == ""
    assert reason_of('python exited 1: bytes": 1}\n{"done_bytes": 2}\nno snapshot fits; the newest: x') == (
        "no snapshot fits; the newest: x"
    )
    assert reason_of("python did not finish within 9 s and was killed") == (
        "python did not finish within 9 s and was killed"
    )


def test_it_needs_a_repository_that_every_node_sees(tmp_path) -> None:  # type: ignore[no-untyped-def]
    wish = {"FLYPG_SEED_FROM": "repository"}
    assert not read_config({}, tmp_path).seed
    assert read_config(wish | {"FLYPG_SNAPSHOT_URL": "s3://bucket"}, tmp_path).seed
    assert read_config(wish | {"FLYPG_SNAPSHOT_URL": "file:///b", "FLYPG_SNAPSHOT_SHARED": "on"}, tmp_path).seed
    for changes in ({}, {"FLYPG_SNAPSHOT_URL": "off", "FLYPG_SNAPSHOT_SHARED": "on"}):
        with pytest.raises(SettingsError, match="every node sees"):
            read_config(wish | changes, tmp_path)
    with pytest.raises(SettingsError, match="FLYPG_SEED_FROM"):
        read_config({"FLYPG_SEED_FROM": "elsewhere"}, tmp_path)


def test_what_a_killed_one_has_left_in_tmp_is_removed_by_the_next() -> None:
    left, others = (
        Path("/tmp/flypg-4194305-left"),
        Path(f"/tmp/flypg-{os.getpid()}-lives"),
    )  # no pid is larger than 2^22
    for directory in (left, others):
        directory.mkdir()
        (directory / "wal").touch()
    try:
        home = private_home()
        home.rmdir()
        assert not left.exists()
        assert (others / "wal").exists()
    finally:
        shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(others)
