"""The mirror of etcd: a read, and what a watch tells, are what a later read would bring, in any order of coming."""

from __future__ import annotations

import random

from cluster import codec
from cluster.etcd_values import Changes, Found, KeyValue
from cluster.keys import Keys
from cluster.mirror import MOST_KEPT, Mirror
from cluster.model import Spec

KEYS = Keys("main")


def item(revision: int, value: bytes = b"", key: str = KEYS.spec) -> KeyValue:
    return KeyValue(key, value or codec.encode(Spec(cooldown_s=revision)), 1, revision, 0)


def told(revision: int) -> Changes:
    return Changes(revision, (item(revision),))


def holds(mirror: Mirror) -> float:
    return mirror.snapshot().spec.cooldown_s


def begun(revision: int = 5) -> Mirror:
    """A mirror whose watch has begun and whose read has answered."""
    mirror = Mirror(KEYS)
    mirror.lost()
    mirror.take(Found(revision, (item(revision),)), mirror.watched)
    return mirror


def test_what_the_watch_tells_is_added_to_what_was_read() -> None:
    mirror = begun(5)
    assert mirror.follow(told(7))
    assert (holds(mirror), mirror.revision) == (7, 7)
    assert mirror.follow(Changes(8, (), ((KEYS.spec, 8),)))
    assert holds(mirror) == Spec().cooldown_s


def test_without_a_read_nothing_is_known() -> None:
    mirror = Mirror(KEYS)
    mirror.lost()
    assert not mirror.follow(told(7))


def test_what_was_told_before_the_read_answered_is_not_forgotten() -> None:
    mirror = Mirror(KEYS)
    mirror.lost()
    watched = mirror.watched
    assert not mirror.follow(told(7))
    assert not mirror.follow(Changes(8, (item(8, b"x", "/other"),)))
    mirror.take(Found(6, (item(6),)), watched)
    assert (holds(mirror), mirror.revision) == (7, 8)


def test_a_read_from_before_the_watch_is_not_added_to() -> None:
    """Between both something may have been written that neither tells."""
    mirror = Mirror(KEYS)
    before = mirror.watched
    mirror.lost()
    mirror.take(Found(5, (item(5),)), before)
    assert holds(mirror) == 5
    assert not mirror.follow(told(7)), "6 may be missing"
    mirror.take(Found(7, (item(6, key="/flypg/main/x"), item(7))), mirror.watched)
    assert holds(mirror) == 7


def test_a_broken_watch_needs_a_new_read() -> None:
    mirror = begun(5)
    mirror.lost()
    assert not mirror.follow(told(9))
    mirror.take(Found(8, (item(8),)), mirror.watched)
    assert holds(mirror) == 9


def test_a_late_read_does_not_bring_back_the_past() -> None:
    mirror = begun(5)
    assert mirror.follow(told(9))
    mirror.take(Found(7, (item(7),)), mirror.watched)
    assert holds(mirror) == 9


def test_an_etcd_restored_from_a_backup_begins_lower() -> None:
    mirror = begun(50)
    mirror.lost()
    mirror.take(Found(7, (item(7),)), mirror.watched)
    assert holds(mirror) == 7


def test_a_late_event_changes_nothing() -> None:
    mirror = begun(9)
    assert mirror.follow(told(7))
    assert mirror.follow(Changes(8, (), ((KEYS.spec, 8),)))
    assert holds(mirror) == 9


def test_a_read_that_never_answers_does_not_fill_the_memory() -> None:
    mirror = Mirror(KEYS)
    mirror.lost()
    watched = mirror.watched
    for revision in range(1, MOST_KEPT + 2):
        mirror.follow(told(revision))
    mirror.take(Found(3, (item(3),)), watched)
    assert not mirror.follow(told(MOST_KEPT + 9)), "changes were dropped: this read is too old"


def test_any_order_of_reads_breaks_and_changes() -> None:
    """Whenever the mirror says that it knows, it holds what etcd held at that revision."""
    for seed in range(300):
        rng = random.Random(seed)
        mirror, revision, sent, heard = Mirror(KEYS), 1, [], 0
        reading: list[tuple[int, int]] = []  # answers under way: revision, watch they belong to
        watching = False
        for _ in range(60):
            match rng.randrange(6):
                case 0:
                    revision += 1
                    if watching:
                        sent.append(revision)
                case 1:
                    mirror.lost()
                    sent, watching = [], rng.random() < 0.8
                case 2:
                    reading.append((revision, mirror.watched))
                case 3 if reading:
                    at, watched = reading.pop(rng.randrange(len(reading)))
                    mirror.take(Found(at, (item(at),)), watched)
                case _ if sent:
                    heard = sent.pop(0)
                    if mirror.follow(told(heard)):
                        assert holds(mirror) == max(heard, holds(mirror)) == mirror.revision
        assert heard <= revision
