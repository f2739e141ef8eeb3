"""What is asked and said before a cluster is restored in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backups.config import read_config
from backups.layout import PathName
from backups.restore_plan import RestorePlan, Target, TargetKind
from cluster.model import NodeId, Snapshot
from flypg.commands.restore_cluster import choose_node, consequences
from flypg.reply import BadInput
from tests.support.http_node import N1, N2, N3, open_snapshot
from tests.support.snapshots import record


def founded(**more: Any) -> Snapshot:
    snapshot = open_snapshot(**more)
    assert snapshot.view is not None
    return replace(snapshot, view=replace(snapshot.view, system_id="7"))


OWN = PathName("c", "7", "00000000")


def opened(path: PathName = OWN, shared: str = "true") -> Any:
    config = read_config({"FLYPG_SNAPSHOT_URL": "file:///r", "FLYPG_SNAPSHOT_SHARED": shared}, Path("/data"))
    return SimpleNamespace(path=SimpleNamespace(name=path), config=config, said=f"file:///r/{path}")


def without(snapshot: Snapshot, node: NodeId) -> Snapshot:
    return replace(snapshot, reports={n: r for n, r in snapshot.reports.items() if n != node})


def test_the_primary_restores_unless_it_cannot_be_seen() -> None:
    assert choose_node(founded(), None, opened(), "c") == N1
    assert choose_node(founded(), "n3", opened(), "c") == N3
    assert choose_node(without(founded(), N1), None, opened(), "c") == N2


@pytest.mark.parametrize(
    ("snapshot", "named", "given", "words"),
    [
        (open_snapshot(), None, opened(), "never founded"),
        (founded(), None, opened(PathName("c", "8", "00000000")), "not of cluster c"),
        (founded(), None, opened(PathName("d", "7", "00000000")), "not of cluster c"),
        (founded(), None, opened(shared="false"), "say with --node"),
        (founded(), "n9", opened(), "n9 cannot restore"),
        (without(founded(), N2), "n2", opened(), "its agent must run"),
        (replace(founded(), reports={}), None, opened(), "none could"),
    ],
)
def test_what_cannot_be_done_changes_nothing(snapshot: Snapshot, named: str | None, given: Any, words: str) -> None:
    with pytest.raises(BadInput) as raised:
        choose_node(snapshot, named, given, "c")
    assert words in str(raised.value) and "nothing was changed" in str(raised.value)


def plan(target: Target) -> RestorePlan:
    return RestorePlan(record("a", day=1.0), target, 1, (), None, None)


def test_it_says_what_is_lost_and_what_is_kept() -> None:
    lsn = Target(TargetKind.LSN, "0/2000060", lsn=0x2000060)
    text = "\n".join(consequences(without(founded(), N3), {}, plan(lsn), "n1", 0.0, keep=True))
    assert "every change after lsn 0/2000060, 16.0 MB of WAL" in text
    assert "n1 is at 0/3000060 on timeline 3 now" in text
    assert "n2, n3 then copy it" in text and "n3 cannot be seen" in text
    assert "pgdata.before-restore" in text
    moment = Target(TargetKind.TIME, "x", time=1000.0)
    text = "\n".join(consequences(founded(), {}, plan(moment), "n1", 1000.0 + 7200, keep=False))
    assert "2 h of them" in text and "IS REMOVED" in text
