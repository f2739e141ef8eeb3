"""What `flypg status`, `why` and `members` print for given states of a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.model import (
    Branch,
    Event,
    Leadership,
    Member,
    NodeId,
    NodeReport,
    Phase,
    Ports,
    Position,
    Promise,
    Rule,
    ServerState,
    Snapshot,
    Spec,
    View,
    lone_rule,
)
from flypg.backup_look import BackupLook
from flypg.commands.members import members_table
from flypg.commands.why import term_lines
from flypg.health import failover_without_loss, serving
from flypg.look import NodeLook, StandbyLag
from flypg.show import Style, columns, size, status_data, status_text

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
RULE = Rule(4, N2, frozenset({N1, N3}), 1)
AT = 0x3000060


def member(node: NodeId, **more: object) -> Member:
    return Member(node, "127.0.0.1", Ports(), region="ams", **more)  # type: ignore[arg-type]


MEMBERS = (member(N1), member(N2), member(N3, priority=0))
VIEW = View(
    term=4,
    phase=Phase.OPEN,
    primary=N2,
    timeline=3,
    rules=(RULE,),
    members=MEMBERS,
    deposed=N1,
    branches=(Branch(4, 3, N2, 2, 0x2FFF000, opened=True),),
    last_timeline=3,
    cause="postmaster of n1 died",
    why="n2 has passed its barrier",
)


def report(node: NodeId, state: ServerState = ServerState.STANDBY, **more: object) -> NodeReport:
    fields: dict[str, object] = {"streaming": state is ServerState.STANDBY, "term": 4, "following": N2}
    return NodeReport(MEMBERS[int(node[1]) - 1], "run", state, position=Position(3, AT), **(fields | more))  # type: ignore[arg-type]


def snapshot(view: View | None = VIEW, **more: object) -> Snapshot:
    reports = {N1: report(N1), N2: report(N2, ServerState.PRIMARY, streaming=False, following=None), N3: report(N3)}
    fields: dict[str, object] = {"reports": reports, "leader": Leadership("n3", 12), "spec": Spec()}
    return Snapshot(99, view, 98, spec_revision=1, **(fields | more))  # type: ignore[arg-type]


LOOKS = {
    N1: NodeLook("standby", Position(3, AT), True, 0.0),
    N2: NodeLook(
        "primary",
        Position(3, AT),
        False,
        None,
        standbys={N1: StandbyLag(0, 0.01), N3: StandbyLag(1 << 21, 1.5)},
        backups=BackupLook("s3://b", 3, "vs_a", 300.0, 1 << 20, True, verified_s=9.0, next_in_s=7300.0),
    ),
    N3: NodeLook("standby", Position(3, AT - (1 << 21)), True, 2.0),
}
EVENTS = [
    Event(1_700_000_000.0, 4, "failover", "term 4: postmaster of n1 died", node="n1", by="n3"),
    Event(1_700_000_001.0, 4, "phase", "n2 is open", node="n2"),
]

HEALTHY = """\
a cluster

node  role     state      region  timeline  position   lag            commits wait  health
n2    primary  primary    ams     3         0/3000060  -              -             ok
n1    standby  streaming  ams     3         0/3000060  0 B, 0.0 s     quorum        ok
n3    standby  streaming  ams     3         0/2E00060  2.0 MB, 1.5 s  quorum        ok

clients   served: n2 is primary
failover  without loss now: yes, n1 would take over
term      4 open, timeline 3, opened because: postmaster of n1 died
rule      ANY 1 (n1, n3) for n2 (term 4), durability quorum
leader    n3
backups   snapshot vs_a 5 min ago, 1.0 MB, verified, restored in 9 s; next in 2 h; \
WAL is not archived: a restore reaches the last snapshot

last events
  22:13:20  term 4  failover: term 4: postmaster of n1 died [n3]
  22:13:21  term 4  phase: n2 is open"""


def test_a_healthy_cluster_looks_like_this() -> None:
    assert status_text(snapshot(), LOOKS, EVENTS, title="a cluster") == HEALTHY


DURING = """\
a cluster

node  role     state      region  timeline  position   lag  commits wait  health
n1    standby  unknown    ams     -         -          ?    quorum        no word from its agent
n2    standby  streaming  ams     3         0/3000060  ?    async         disk of WAL is full
n3    standby  streaming  ams     3         0/3000060  ?    quorum        ok

clients   NOT SERVED: no primary is open yet: revoking (1 more of n1)
failover  without loss now: no, a change of primary is under way (revoking)
term      5 revoking, timeline 3, opened because: n1 is gone
rule      ANY 1 (n1, n3) for n2 (term 4), durability quorum
leader    none
PAUSED    flypg changes nothing by itself; flypg resume ends that"""


def test_without_a_primary_it_says_what_is_waited_for() -> None:
    view = replace(VIEW, term=5, phase=Phase.REVOKING, primary=None, cause="n1 is gone", why="1 more of n1")
    reports = {N2: report(N2, fault="disk of WAL is full"), N3: report(N3)}
    seen = snapshot(view, reports=reports, leader=None, spec=Spec(paused=True))
    assert status_text(seen, {}, [], title="a cluster") == DURING


def test_a_node_that_does_not_answer_is_not_shown_as_well() -> None:
    seen = status_text(snapshot(), LOOKS | {N1: None}, [], title="a cluster")
    assert "n1    standby  silent" in seen and "does not answer" in seen
    assert "failover  without loss now: no, 1 more of n1 would have to answer" in seen


def test_no_colour_unless_asked_for() -> None:
    plain = status_text(snapshot(), LOOKS, EVENTS, title="a cluster")
    coloured = status_text(snapshot(), LOOKS, EVENTS, title="a cluster", style=Style(colour=True))
    assert "\x1b" not in plain and "\x1b[32m" in coloured


def test_json_has_what_the_table_has() -> None:
    data = status_data(snapshot(), LOOKS, EVENTS, cluster="c")
    assert (data["primary"], data["serving"], data["failover_without_loss"]) == ("n2", True, True)
    nodes = data["nodes"]
    assert isinstance(nodes, list)
    assert [(n["node"], n["lag_bytes"], n["sync"]) for n in nodes] == [
        ("n2", None, ""),
        ("n1", 0, "quorum"),
        ("n3", 1 << 21, "quorum"),
    ]


def test_an_empty_etcd_is_no_error() -> None:
    empty = Snapshot(1, None, 0, Spec(), 0)
    assert "never founded" in status_text(empty, {}, [], title="a cluster")
    assert status_data(empty, {}, [], cluster="c")["founded"] is False


SAFE = [
    ("all is well", snapshot(), True, "n1 would take over"),
    ("nobody leads", snapshot(leader=None), False, "no sentinel leads"),
    ("paused", snapshot(spec=Spec(paused=True)), False, "paused"),
    ("alone", snapshot(replace(VIEW, rules=(lone_rule(4, N2),))), False, "acknowledges writes alone"),
    (
        "one voter of two is silent, and the other may not lead",
        snapshot(reports={N2: report(N2, ServerState.PRIMARY), N3: report(N3)}),
        False,
        "1 more of n1",
    ),
    (
        "enough voters answer, none may lead",
        snapshot(replace(VIEW, members=(replace(MEMBERS[0], nofailover=True), *MEMBERS[1:]))),
        False,
        "no standby that is ready may become primary",
    ),
    ("wrong region", snapshot(spec=Spec(primary_region="fra")), False, "no standby that is ready"),
    ("never founded", snapshot(None, reports={}), False, "never founded"),
    ("etcd has lost it", snapshot(None), False, "etcd has lost this cluster, which n1, n2, n3 served up to term 4"),
]


@pytest.mark.parametrize(("story", "seen", "yes", "why"), SAFE, ids=[s[0] for s in SAFE])
def test_would_a_failover_lose_anything(story: str, seen: Snapshot, yes: bool, why: str) -> None:
    answer = failover_without_loss(seen)
    assert answer.yes is yes, answer.why
    assert why in answer.why


SERVING = [
    ("open", snapshot(), True),
    ("its agent is silent, but nobody replaced it", snapshot(reports={}), True),
    ("its server is down", snapshot(reports={N2: report(N2, ServerState.CRASHED)}), False),
    ("founding", snapshot(replace(VIEW, phase=Phase.FOUNDING)), False),
    ("nothing there", snapshot(None), False),
]


@pytest.mark.parametrize(("story", "seen", "yes"), SERVING, ids=[s[0] for s in SERVING])
def test_are_clients_served(story: str, seen: Snapshot, yes: bool) -> None:
    answer = serving(seen)
    assert answer.yes is yes, answer.why


WHY = """\
term 4 is the current one: open
  cause     postmaster of n1 died
  replaced  n1
  now       n2 has passed its barrier
  primary   n2, timeline 3
  fork      left timeline 2 at 0/2FFF000
  promise   n1 had 0/3000060 on timeline 3
  promise   n3 had 0/3000060 on timeline 3
  rule      ANY 1 (n1, n3) for n2 (term 4): to replace it, 2 of them must promise"""


def test_why_tells_how_a_term_came_to_be() -> None:
    promises = {n: Promise(n, 4, Position(3, AT)) for n in (N3, N1)} | {N2: Promise(N2, 3, Position(2, AT))}
    assert "\n".join(term_lines(snapshot(promises=promises), VIEW, 4)) == WHY


def test_members_are_listed_with_what_they_may_become() -> None:
    text = members_table(snapshot(), (*MEMBERS, member(NodeId("n4"), nosync=True)))
    assert text.splitlines()[0].split() == [
        "node",
        "host",
        "proxy",
        "postgres",
        "read",
        "pooler",
        "http",
        "region",
        "priority",
        "may",
        "be",
    ]
    assert [line.split("  ")[-1].strip() for line in text.splitlines()[1:]] == [
        "primary, voter, standby",
        "primary, voter, standby",
        "voter, standby",
        "primary, standby",
    ]


def test_columns_that_say_nothing_are_left_out() -> None:
    assert columns(["a", "b", "c"], [["1", "-", "x"], ["22", "", "y"]]) == "a   c\n1   x\n22  y"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 kB"), (1 << 40, "1.0 TB")])
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
