"""The report of a drill, from a made-up history."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from chaos.checkers.durability import durability
from chaos.checkers.outage import outage
from chaos.history import NEVER, Outcome, Verdict, Write
from chaos.page import story, to_html
from chaos.phases import Band, failovers, phases, roles
from chaos.report import earlier_runs, to_json, to_junit
from chaos.results import Result, Told
from chaos.timeline import Axis, _kinds, columns
from cluster.model import Member, NodeId, NodeReport, Phase, Position, Promise, ServerState, View

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
FAULT = 102.0


def view(term: int, phase: Phase, primary: NodeId | None, cause: str = "") -> View:
    return View(term, phase, primary, term, (), cause=cause)


VIEWS = [
    (99.0, view(1, Phase.OPEN, N1)),
    (102.02, view(2, Phase.REVOKING, None, "postmaster of n1 died <&>")),
    (102.09, view(2, Phase.PROMOTING, N2, "postmaster of n1 died <&>")),
    (102.20, view(2, Phase.OPEN, N2, "postmaster of n1 died <&>")),
]
PROMISES = [(102.05, Promise(N3, 2, Position(1, 9))), (102.07, Promise(N2, 2, Position(1, 9)))]


def said(node: NodeId, state: ServerState, term: int, barrier: int = 0) -> NodeReport:
    return NodeReport(Member(node, "127.0.0.1"), "run", state, term, streaming=True, barrier_term=barrier)


REPORTS = [
    (99.0, said(N1, ServerState.PRIMARY, 1, 1)),
    (99.0, said(N2, ServerState.STANDBY, 1)),
    (102.01, said(N1, ServerState.CRASHED, 1, 1)),
    (102.18, said(N2, ServerState.PRIMARY, 2, 2)),
    (104.0, said(N1, ServerState.STANDBY, 2, 1)),
]


def history() -> list[Write]:
    writes = []
    for i in range(400):
        at = 100 + i * 0.01
        down = FAULT <= at < 102.25
        if down and i % 5:
            continue
        outcome = Outcome.FAIL if down else Outcome.OK
        server, timeline = ("n1:5433", 1) if at < FAULT else ("n2:5433", 2)
        error = "connection refused <tag>" if down else ""
        writes.append(
            Write("steady", i, at, at + 0.004, outcome, error, "" if down else server, 0 if down else timeline)
        )
    return writes


def result() -> Result:
    writes = history()
    r = Result("kill-postmaster", "kill -9 of the primary's postmaster", 7, "n1", 0.5, 2.0, 100.0, "2026-01-01")
    r.fault, r.mended, r.healed, r.ended, r.writes = FAULT, 103.0, 103.9, 104.5, writes
    r.outages = [outage(writes, "steady", fault=FAULT)]
    r.durability = durability(writes, [w.id for w in writes if w.acknowledged])
    r.phases = phases(VIEWS, PROMISES, REPORTS, writes, fault=FAULT)
    r.failovers = len(failovers(VIEWS, since=FAULT))
    r.roles = roles(REPORTS, began=r.began, ended=r.ended)
    r.verdicts = [r.durability.verdict, Verdict("convergence", None, "not looked at")]
    r.events = [Told(102.02, "failover", "n1 <is> dead", "n3")]
    r.errors = {"connection refused <tag>": 5}
    return r


def test_phases_add_up_to_the_outage() -> None:
    found = result().phases
    assert found is not None
    assert (found.term, found.primary) == (2, "n2")
    named = found.named()
    assert [round(v, 2) for v in named.values() if v is not None] == [0.02, 0.05, 0.02, 0.09, 0.02, 0.05]


def test_without_a_failover_there_are_no_phases() -> None:
    assert phases(VIEWS[:1], [], [], [], fault=FAULT) is None


def test_roles_are_bands() -> None:
    bands = result().roles
    assert Band("n1", 102.01, 104.0, "crashed", 1) in bands
    assert [b.what for b in bands if b.name == "n2"] == ["standby", "primary"]
    assert all(100.0 <= b.began < b.ended <= 104.5 for b in bands)


def test_columns_show_waiting_where_nothing_was_answered() -> None:
    slow = Write("steady", 1, 0.05, 0.95, Outcome.OK)
    found = columns([slow], 0.0, 1.0)
    assert [c[3] for c in found[:10]] == [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert found[9][0] == 1


def test_json_says_it_all() -> None:
    body = json.loads(to_json([result()], {"flypg": "0"}))
    (one,) = body["results"]
    assert one["lost"] == 0
    assert one["phases_s"]["detect"] == 0.02
    assert 0.2 < one["outage_s"]["steady"] < 0.4


def test_what_never_ended_is_json_too() -> None:
    r = result()
    r.limit_s, r.outages = NEVER, [outage([], "steady", fault=FAULT)]

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    (one,) = json.loads(to_json([r], {}), parse_constant=refuse)["results"]
    assert one["limit_s"] is None and one["outage_s"] == {"steady": None}
    assert "for ever" in r.line and "Writes never came back." in story(r)


def test_a_report_is_compared_with_earlier_ones() -> None:
    before = earlier_runs(to_json([result(), result()], {"commit": "abc1234"}))
    assert [run.commit for run in before["kill-postmaster"]] == ["abc1234"] * 2
    page = to_html([result()], {}, before)
    assert "2 before this one, median outage" in page and "abc1234" in page
    assert "Earlier runs" not in to_html([result()], {})
    assert "1 before this one" in to_html([result(), result()], {}), "runs of one report are compared, too"
    for text in ("", "[]", "{}", '{"format_version": 9}', '{"format_version": 1, "results": [1]}'):
        with pytest.raises(ValueError, match=r".+"):
            earlier_runs(text)


def test_the_story_is_told_in_a_few_sentences() -> None:
    assert story(result()) == (
        "Kill -9 of the primary's postmaster (n1). Clients could not write for 260 ms at most. Noticed after 20 ms:"
        " postmaster of n1 died <&>. n2 had taken over 234 ms later. All 375 acknowledged writes are there. All nodes"
        " were complete again 900 ms after it was mended."
    )


def test_each_fault_of_a_soak_is_named() -> None:
    r = result()
    r.drill, r.faults = "soak", [Band("freeze-etcd", 102.0, 103.0, "n1"), Band("kill-node", 103.5, 104.0, "n2")]
    page = to_html([r], {})
    assert "<title>2: kill-node</title>" in page
    assert "<td>kill-node</td><td>n2</td><td class=num>+1.5 s</td><td class=num>0.5 s</td>" in page


def test_what_failed_is_said_first() -> None:
    bad = result()
    bad.verdicts.append(Verdict("durability", False, "3 acknowledged writes are lost"))
    page = to_html([bad], {})
    assert page.index("Why it failed") < page.index("<svg") < page.index("not looked at")


def test_pauses_of_a_client_that_writes_rarely_are_no_gaps() -> None:
    writes = [Write("fresh", i, i * 0.16, i * 0.16 + 0.01, Outcome.OK) for i in range(20)]
    assert set(_kinds(writes, Axis(0, 3, 0), 0.1)[1:-2]) == {"ok"}
    assert "" in _kinds([*writes[:5], *writes[10:]], Axis(0, 3, 0), 0.1), "nobody tried: that is a gap"


def test_junit_is_as_its_schema_says() -> None:
    bad = result()
    bad.verdicts.append(Verdict("durability", False, 'one "lost" <write>\x1b[31m'))
    root = ET.fromstring(to_junit([bad], {"flypg": "0"}))
    (suite,) = root
    assert {"name", "tests", "failures", "errors", "time", "timestamp", "hostname"} <= suite.attrib.keys()
    assert (root.get("tests"), root.get("failures"), suite.get("tests")) == ("3", "1", "3")
    assert [e.tag for e in suite] == ["properties", *["testcase"] * 3, "system-out", "system-err"]
    assert all({"name", "classname", "time"} <= case.attrib.keys() for case in suite.iter("testcase"))
    assert all("type" in failure.attrib for failure in suite.iter("failure"))
    bad.again = "flypg drill soak --seed 7 --minutes 30"
    assert "flypg drill soak --seed 7" in to_junit([bad], {})


def test_junit_has_a_case_per_verdict_and_no_silent_green() -> None:
    bad = result()
    bad.verdicts.append(Verdict("durability", False, 'one "lost" <write>'))
    root = ET.fromstring(to_junit([result(), bad], {"flypg": "0"}))
    suites = root.findall("testsuite")
    assert [s.get("failures") for s in suites] == ["0", "1"]
    assert suites[0].find("testcase/skipped") is not None, "what could not be decided is not a pass"
    assert "--seed 7" in "".join(suites[1].find("testcase/failure").itertext())  # type: ignore[union-attr]


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    page = to_html([result(), result()], {"flypg": "0"})

    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "br"):
                self.open.append(tag)
            assert not any(name in ("src", "onclick") for name, _ in attrs)
            assert tag != "script"

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "n1 &lt;is&gt; dead" in page
    assert "<tag>" not in page
