"""A repository with damage in it: what is whole can be listed and restored, what is not is named, nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backups.codec import Codec, SealingKey
from backups.errors import ObjectDamaged, ObjectMissing, RestoreRefused
from backups.layout import MARKER, Segment
from backups.objects import ObjectInfo
from backups.repository import Path as RepositoryPath
from backups.repository import PathInfo, Repository
from backups.retention import GRACE_S, Keep
from backups.upkeep import audit, sweep
from backups.verify import verify
from flypg.reply import Refused
from flypg.repository import choose
from tests.support.memory import NAME, NOW, MemoryStore, path_on, take
from tests.support.snapshots import record, wal_segment

A, B = "vs_" + "a" * 16, "vs_" + "b" * 16
FIRST_WAL = f"{NAME}/wal/00000001/{Segment(1, 90).name()}.zst"


@pytest.fixture
def store() -> MemoryStore:
    """Two snapshots, the older one long past retention, and all the WAL since."""
    made = MemoryStore()
    repository = Repository(made, Codec())
    repository.open()
    path = repository.begin_path(PathInfo("c", "7301", "00000000", NOW - 100))
    take(path, record("a", day=80, segment=90))
    take(path, record("b", day=99, segment=92))
    for number in (90, 91, 92, 93, 94):
        path.put_wal(Segment(1, number).name(), wal_segment(number))
    path.put_wal("00000002.history", b"1\t0/5E000000\tno recovery target specified\n")
    path.put_wal(Segment(2, 94).name(), wal_segment(94))
    return made


def flip(store: MemoryStore, key: str, at: float = 0.5) -> None:
    """Change one bit."""
    data = bytearray(store.objects[key])
    data[int(len(data) * at)] ^= 1
    store.objects[key] = bytes(data)


def test_nothing_is_wrong_with_what_is_whole(store: MemoryStore) -> None:
    assert not audit(path_on(store), deep=True).problems


DAMAGE = [
    ("a part, one bit", f"{NAME}/snapshots/{B}/base.tar.zst.000001", True),
    ("the manifest, one bit", f"{NAME}/snapshots/{B}/backup_manifest.zst", True),
    ("a segment, one bit", FIRST_WAL, True),
    ("a history file, one bit", f"{NAME}/wal/00000002/00000002.history.zst", False),
]


@pytest.mark.parametrize(("key", "deep"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_one_bit_is_found_and_named(store: MemoryStore, key: str, deep: bool) -> None:
    flip(store, key)
    problems = audit(path_on(store), deep=deep).problems
    name = key.rpartition("/")[2].removesuffix(".zst")
    assert problems and all(name in p for p in problems), problems


def test_wal_that_is_not_what_its_name_says(store: MemoryStore) -> None:
    path = path_on(store)
    path.put_wal(Segment(2, 95).name(), wal_segment(96))
    path.put_wal(Segment(2, 96).name(), wal_segment(96, system=9))
    path.put_wal(Segment(2, 97).name(), b"short")
    problems = " ".join(audit(path, deep=True).problems)
    for words in ("it was recycled, not yet written", "is of system 9, this cluster is 7301", "has 5 bytes"):
        assert words in problems
    store.objects[FIRST_WAL] = b""
    assert any("is empty" in p for p in audit(path).problems)


@pytest.mark.parametrize("content", [b"", b'{"a":', b'{"format_version":1}', b'{"format_version":99}'])
def test_one_record_that_cannot_be_read_hides_nothing(store: MemoryStore, content: bytes) -> None:
    path = path_on(store)
    store.objects[f"{NAME}/catalog/{A}.json"] = content
    store.objects[f"{NAME}/catalog/note.txt"] = b"somebody's"
    catalogue = path.catalogue()
    assert [s.id for s in catalogue.snapshots] == [B]
    assert [i for i, _ in catalogue.damaged] == [A]
    problems = audit(path).problems
    assert len(problems) == 1 and A in problems[0] and "cannot be read" in problems[0]
    before = {k for k in store.objects if "/wal/" in k or A in k}
    swept = sweep(path, Keep(days=5, at_least=1, window=False), wall=lambda: NOW + 2 * GRACE_S)
    assert [i for i, _ in swept.unreadable] == [A]
    assert before <= set(store.objects), "what it needs is not known: nothing goes"
    path.remove_snapshot(A)
    assert not any(A in k for k in store.objects)
    assert sweep(path, Keep(days=5, at_least=1, window=False), wall=lambda: NOW + 2 * GRACE_S).wal_files == 2


def test_a_record_under_another_name_is_not_believed(store: MemoryStore) -> None:
    store.objects[f"{NAME}/catalog/{A}.json"] = store.objects[f"{NAME}/catalog/{B}.json"]
    assert [i for i, _ in path_on(store).catalogue().damaged] == [A]


def test_a_restore_test_that_cannot_be_read_never_was(store: MemoryStore) -> None:
    store.objects[f"{NAME}/verified/{B}.json"] = b"junk"
    path = path_on(store)
    assert path.snapshot(B).verification is None
    assert any(f"verified/{B}.json" in p for p in audit(path).problems)


def test_a_path_is_known_by_the_name_of_its_record(store: MemoryStore) -> None:
    repository = Repository(store, Codec())
    store.objects[f"_paths/{NAME}.json"] = b"junk"
    assert [p.name for p in repository.paths()] == [NAME]
    store.objects["_paths/c/junk.json"] = b"junk"
    assert [p.name for p in repository.paths()] == [NAME]


class Forgetful(MemoryStore):
    """A service whose listings leave out what it has."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter([o for o in super().list(prefix) if "/catalog/" not in o.key])


def test_a_listing_without_a_snapshot_does_not_make_garbage_of_its_parts(store: MemoryStore) -> None:
    forgetful = Forgetful()
    forgetful.objects = dict(store.objects)
    swept = sweep(path_on(forgetful), Keep(days=5, at_least=1), wall=lambda: NOW + 2 * GRACE_S)
    assert swept.garbage == ()
    assert forgetful.objects == store.objects


def test_a_history_file_that_is_missing_is_named_as_that(store: MemoryStore) -> None:
    """No snapshot mends it."""
    del store.objects[f"{NAME}/wal/00000002/00000002.history.zst"]
    (problem,) = audit(path_on(store)).problems
    assert "00000002.history is not archived" in problem and "snapshot closes it" not in problem


def test_paths_that_are_not_listed_are_named_not_denied(store: MemoryStore) -> None:
    """It was said that there are no snapshots yet."""
    del store.objects[f"_paths/{NAME}.json"]
    with pytest.raises(Refused, match=rf"there are snapshots.*--path: {NAME};"):
        choose(Repository(store, Codec()), None, "c")
    assert choose(Repository(store, Codec()), str(NAME), "c") == NAME


def test_the_mark_of_a_repository(store: MemoryStore) -> None:
    repository = Repository(store, Codec())
    store.objects[MARKER] = b"junk"
    with pytest.raises(ObjectDamaged, match=re.escape('put {"format_version": 1} there')):
        repository.open(create=False)
    del store.objects[MARKER]
    with pytest.raises(ObjectDamaged, match="is missing, though there is data"):
        repository.open(create=False)
    with pytest.raises(ObjectMissing, match="no repository of flypg is here"):
        Repository(MemoryStore(), Codec()).open(create=False)


def test_wal_from_before_there_was_a_key_and_after(store: MemoryStore) -> None:
    key = SealingKey(b"k" * 32)
    sealed = Repository(store, Codec(key=key)).path(NAME)
    sealed.put_wal(Segment(2, 95).name(), wal_segment(95))
    assert sealed.get_wal(Segment(1, 90).name()) == wal_segment(90)
    assert not audit(sealed, deep=True).problems
    with pytest.raises(ObjectDamaged, match="FLYPG_SNAPSHOT_KEY"):
        path_on(store).get_wal(Segment(2, 95).name())
    with pytest.raises(ObjectMissing):
        sealed.get_wal(Segment(2, 99).name())


async def test_without_its_key_a_snapshot_is_neither_tested_nor_doubted() -> None:
    store = MemoryStore()
    path = path_on(store)
    take(path, replace(record("a", day=99), encrypted_with="0123456789abcdef"))
    with pytest.raises(RestoreRefused, match="sealed with key 0123456789abcdef, which was not given"):
        await verify(path, path.snapshot(A), Path("/nowhere"), owner=None, node="n1")
    assert path.verification(A) is None, "it is not the snapshot's fault"
    assert any("0123456789abcdef" in p for p in audit(path).problems)


async def test_without_programs_neither(store: MemoryStore) -> None:
    path: RepositoryPath = path_on(store)
    with pytest.raises(RestoreRefused, match="programs of PostgreSQL 15 are not in /nowhere"):
        await verify(path, path.snapshot(A), Path("/nowhere"), owner=None, node="n1", programs="/nowhere")
    assert path.verification(A) is None
