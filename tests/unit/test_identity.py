"""Whose words a volume carries: whom they bind, and what is left of them when it wakes as somebody else's."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from agent.identity import MARKER, Identity, counted, doubtful, newly_restored, settle, what_binds
from cluster.codec import decode, encode
from cluster.errors import InstanceError, StoreUnavailable
from cluster.model import Disk, Member, Phase, Position, Snapshot, Spec, View
from tests.support.http_node import N1, member

LOG = logging.getLogger("test")
FLOOR = Position(3, 500)
WORDS = Disk(promised=7, floor=FLOOR, copying=True, was_primary=6)
NONE = Disk(copying=True)  # an unfinished copy must never become the cluster's data, whoever has it
SHOP = Identity("shop", "n1")

BINDING = [
    ("the node itself", SHOP, SHOP, False, WORDS),
    ("from before identities", None, SHOP, False, WORDS),
    ("from before identities, restored", None, Identity("new", "n1", "vs_1"), False, NONE),
    ("a copy of the volume in its cluster", SHOP, Identity("shop", "n9"), False, Disk(copying=True, floor=FLOOR)),
    ("a fork without FLY_RESTORED_FROM", SHOP, Identity("fork", "n9"), False, NONE),
    ("a snapshot that begins another cluster", SHOP, Identity("fork", "n9", "vs_1"), False, NONE),
    ("restored under the same names, in an empty etcd", SHOP, Identity("shop", "n1", "vs_1"), False, NONE),
    ("the setting on a machine of a living cluster", SHOP, Identity("shop", "n1", "vs_1"), True, WORDS),
    ("restored in the same app, on a new machine", SHOP, Identity("shop", "m2", "vs_1"), False, NONE),
    ("restored once, started again", Identity("shop", "n1", "vs_1"), Identity("shop", "n1", "vs_1"), False, WORDS),
    ("restored once more", Identity("shop", "n1", "vs_1"), Identity("shop", "n1", "vs_2"), False, NONE),
    ("restored, and the setting is gone", Identity("shop", "n1", "vs_1"), SHOP, False, WORDS),
]


@pytest.mark.parametrize(("story", "before", "mine", "known", "expected"), BINDING, ids=[b[0] for b in BINDING])
def test_what_binds(story: str, before: Identity | None, mine: Identity, known: bool, expected: Disk) -> None:
    assert what_binds(WORDS, before, mine, known=known) == expected


def settled(root: Path, cluster: str, node: str, restored_from: str = "", *, known: bool | None = None) -> Disk | None:
    """What the volume says after a start. `known` None: etcd need not be asked."""
    state, mine = root / "state.json", Identity(cluster, node, restored_from)
    assert doubtful(state, mine) is (known is not None)
    settle(state, mine, LOG, known=bool(known))
    assert json.loads((root / "identity.json").read_text())["node"] == node
    return decode(Disk, state.read_bytes(), str(state)) if state.exists() else None


def says(root: Path, words: Disk) -> None:
    (root / "state.json").write_bytes(encode(words))


def aside(root: Path) -> Disk:
    return decode(Disk, (root / "state.before.json").read_bytes(), "")


def test_words_bind_the_node_that_gave_them_and_nobody_else(tmp_path: Path) -> None:
    assert settled(tmp_path, "shop", "n1") is None
    says(tmp_path, WORDS)
    assert settled(tmp_path, "shop", "n1") == WORDS
    assert not (tmp_path / "state.before.json").exists()
    assert settled(tmp_path, "shop", "n9") == Disk(copying=True, floor=FLOOR)
    assert aside(tmp_path) == WORDS, "nothing is deleted"
    says(tmp_path, WORDS)
    assert settled(tmp_path, "fork", "n9") == NONE
    assert settled(tmp_path, "fork", "n9") == NONE


def test_a_restored_volume_is_taken_over_once(tmp_path: Path) -> None:
    assert settled(tmp_path, "old", "m1") is None
    says(tmp_path, WORDS)
    assert settled(tmp_path, "new", "m1", "vs_1") == NONE
    assert (tmp_path / MARKER).read_text() == "new\n", "so that Fly's own app would not restore it once more"
    says(tmp_path, Disk(promised=1))
    assert settled(tmp_path, "new", "m1", "vs_1") == Disk(promised=1)
    assert settled(tmp_path, "new", "m1") == Disk(promised=1), "the setting may go"
    assert settled(tmp_path, "new", "m1", "vs_1") == Disk(promised=1), "and come back"


def test_what_a_new_standby_promises_is_never_forgotten(tmp_path: Path) -> None:
    """It comes without data on a machine with FLY_RESTORED_FROM, copies the primary, promises, and is restarted."""
    assert settled(tmp_path, "new", "m2", "vs_1") is None
    says(tmp_path, WORDS)
    assert settled(tmp_path, "new", "m2", "vs_1") == WORDS


def test_the_same_app_restored_under_its_own_name_is_not_skipped(tmp_path: Path) -> None:
    """Fly's own image looks at restore.lock only, finds its name there, and does nothing."""
    settled(tmp_path, "shop", "n1", "vs_1")
    says(tmp_path, WORDS)
    assert (tmp_path / MARKER).read_text().strip() == "shop"
    assert settled(tmp_path, "shop", "n1", "vs_2", known=False) == NONE
    assert settled(tmp_path, "shop", "n1", "vs_2") == NONE


def test_the_setting_on_a_living_cluster_costs_no_promise(tmp_path: Path) -> None:
    """A secret of an app reaches all of its machines, also those that were there before."""
    settled(tmp_path, "shop", "n1")
    says(tmp_path, WORDS)
    assert settled(tmp_path, "shop", "n1", "vs_1", known=True) == WORDS
    assert settled(tmp_path, "shop", "n1", "vs_1") == WORDS, "and is not asked about again"


@pytest.mark.parametrize("lost", ["identity.json", MARKER])
def test_cut_off_before_a_step_it_is_done_again(tmp_path: Path, lost: str) -> None:
    settled(tmp_path, "old", "m1")
    says(tmp_path, WORDS)
    noted = (tmp_path / "identity.json").read_text()
    assert settled(tmp_path, "new", "m1", "vs_1") == NONE
    (tmp_path / MARKER).unlink()
    if lost == "identity.json":
        (tmp_path / lost).write_text(noted)
    assert settled(tmp_path, "new", "m1", "vs_1") == NONE
    assert aside(tmp_path) == WORDS, "the first words, not what was left of them"
    assert (tmp_path / MARKER).exists()


def test_a_volume_that_an_earlier_agent_took_over_is_not_taken_over_again(tmp_path: Path) -> None:
    """It noted that in the marker alone."""
    (tmp_path / "identity.json").write_text(json.dumps({"cluster": "new", "node": "m1"}))
    (tmp_path / MARKER).write_text("new\n")
    says(tmp_path, WORDS)
    assert settled(tmp_path, "new", "m1", "vs_1") == WORDS
    (tmp_path / "identity.json").unlink()
    assert settled(tmp_path, "new", "m1", "vs_1") == WORDS


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("[]x")
    with pytest.raises(InstanceError, match=r"identity\.json"):
        settled(tmp_path, "shop", "n1")


def test_only_what_says_something_new_counts_as_restored() -> None:
    assert not newly_restored(None, SHOP)
    assert newly_restored(None, Identity("shop", "n1", "vs_1"))
    assert not newly_restored(Identity("shop", "n1", "vs_1"), Identity("shop", "n1", "vs_1"))


def test_etcd_is_waited_for_and_says_whether_it_knows_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.identity.LOOK_S", 0.0)
    me: Member = member(N1)
    view = View(3, Phase.OPEN, me.node, 1, (), (me,))
    answers: list[Snapshot | None] = []

    async def read() -> Snapshot:
        found = answers.pop(0)
        if found is None:
            raise StoreUnavailable("no answer")
        return found

    founded = Snapshot(9, view, 9, Spec(), 0)
    answers[:] = [None, None, founded]
    assert asyncio.run(counted(read, me.node)) is True
    answers[:] = [founded]
    assert asyncio.run(counted(read, "n9")) is False
    answers[:] = [replace(founded, view=None)]
    assert asyncio.run(counted(read, me.node)) is False, "a cluster that is yet to be founded"
