"""Metrics as text: names, types and help of the exporter, escaping, units, and what an absence means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cluster.model import Durability, Event, NodeId, Phase, Rule, ServerState, Snapshot, Spec, lone_rule
from healthchecks import own_metrics as own
from healthchecks import pg_settings
from healthchecks.documentation import DOCS, tables, with_tables
from healthchecks.exposition import Definition, Family, label_text, number, render
from healthchecks.history import History, reason
from healthchecks.outlook import outlook
from healthchecks.pg_families import BY_QUERY, definitions, families
from healthchecks.role import Claim, Facts, Role
from postgres.metrics_queries import Rows
from tests.support.http_node import N1, N2, N3, open_snapshot, primary_instance, report, walsender

EXPORTER = Path(__file__).parents[1] / "data" / "postgres_exporter_0.8.0.tsv"


def test_every_metric_of_the_exporter_is_served_under_its_name_with_its_type_labels_and_help() -> None:
    ours = {definition.name: definition for definition in definitions()}
    lines = [line.split("\t") for line in EXPORTER.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 40
    for name, kind, labels, text in lines:
        found = ours[name]
        assert (found.type, found.help) == (kind, text), name
        assert labels in ("", ",".join(found.labels)), name


def test_names_are_unique_and_follow_the_conventions() -> None:
    names = [d.name for d in (*definitions(), *own.DEFINITIONS.values())]
    assert len(names) == len(set(names))
    for definition in own.DEFINITIONS.values():
        assert definition.type != "counter" or definition.name.endswith("_total"), definition.name
        assert definition.help[0].isupper() and not definition.help.endswith("."), definition.name
        assert {"cluster", "node"} <= set(definition.labels)
        assert not {"app", "region", "host", "instance"} & set(definition.labels), "Fly would overwrite it"


def test_the_documentation_is_up_to_date() -> None:
    for file, found in tables().items():
        text = (DOCS / file).read_text()
        assert with_tables(text, found) == text, f"run python -m healthchecks.documentation: {file} is old"


def test_rendering_survives_any_name_and_any_number() -> None:
    family = Family(Definition("m", "gauge", "two\nlines \\ here", ("datname",)))
    for name, value in (
        ('a"b\\c\nd', 1),
        ("nan", None),
        ("inf", float("inf")),
        ("yes", True),
        ("f", 0.5),
        ("big", 1 << 60),
    ):
        family.add(label_text(("datname",), (name,)), value)
    parsed = list(text_string_to_metric_families(render([family])))
    assert parsed[0].documentation == "two\nlines \\ here"
    values = {sample.labels["datname"]: sample.value for sample in parsed[0].samples}
    assert values['a"b\\c\nd'] == 1 and values["yes"] == 1 and values["f"] == 0.5 and values["big"] == float(1 << 60)
    assert values["inf"] == float("inf") and values["nan"] != values["nan"]
    assert render([Family(Definition("empty", "gauge", "x"))]) == ""
    assert number(float("-inf")) == "-Inf" and number(float("nan")) == "NaN"


def test_the_same_labels_twice_do_not_spoil_the_scrape() -> None:
    columns = ("application_name", "client_addr", "state", "slot_name", "pg_wal_lsn_diff")
    rows = Rows(columns, (("r", "::1", "streaming", "", 5), ("r", "::1", "streaming", "", 9)))
    text = render(families(BY_QUERY["replication"], rows, "h:1"))
    labels = '{application_name="r",client_addr="::1",server="h:1",slot_name="",state="streaming"}'
    assert text.splitlines()[2:] == [f"pg_stat_replication_pg_wal_lsn_diff{labels} 9"]


def test_renamed_counters_have_both_names_and_missing_columns_are_left_out() -> None:
    text = render(families(BY_QUERY["bgwriter"], Rows(("buffers_alloc", "stats_reset"), ((7, None),)), "h:1"))
    assert 'pg_stat_bgwriter_buffers_alloc{server="h:1"} 7\n' in text
    assert 'pg_stat_bgwriter_buffers_alloc_total{server="h:1"} 7\n' in text
    assert 'pg_stat_bgwriter_stats_reset{server="h:1"} NaN\n' in text
    assert "buffers_backend" not in text


SETTINGS = [
    (("16384", "8kB", "integer"), (16384 * 8192.0, "bytes")),
    (("4096", "kB", "integer"), (4096 * 1024.0, "bytes")),
    (("200", "ms", "integer"), (0.2, "seconds")),
    (("5", "min", "integer"), (300.0, "seconds")),
    (("-1", "ms", "integer"), (-1.0, "seconds")),
    (("on", "", "bool"), (1.0, "")),
    (("1.1", "", "real"), (1.1, "")),
    (("7", "furlongs", "integer"), None),
    (("many", "", "integer"), None),
]


@pytest.mark.parametrize(("given", "expected"), SETTINGS)
def test_settings_are_converted(given: tuple[str, str, str], expected: tuple[float, str] | None) -> None:
    found = pg_settings.converted(*given)
    assert found == (pytest.approx(expected[0]), expected[1]) if expected else found is None


def test_a_setting_of_an_extension_becomes_a_name() -> None:
    rows = Rows((), (("pg_stat_statements.max", "5000", "", "Most.", "integer"), ("w", "4", "kB", "W.", "integer")))
    text = render(pg_settings.families(rows, "h:1"))
    assert 'pg_settings_pg_stat_statements_max{server="h:1"} 5000.0\n' in text
    assert "# HELP pg_settings_w_bytes W. [Units converted to bytes.]\n" in text


def with_rules(*rules: Rule, **more: object) -> Snapshot:
    snapshot = open_snapshot()
    assert snapshot.view is not None
    return replace(snapshot, view=replace(snapshot.view, rules=rules), **more)  # type: ignore[arg-type]


def without(*nodes: NodeId) -> Snapshot:
    snapshot = open_snapshot()
    return replace(snapshot, reports={n: r for n, r in snapshot.reports.items() if n not in nodes})


def with_members(**changes: object) -> Snapshot:
    snapshot = open_snapshot()
    assert snapshot.view is not None
    members = tuple(replace(m, **changes) if m.node != N1 else m for m in snapshot.view.members)  # type: ignore[arg-type]
    return replace(snapshot, view=replace(snapshot.view, members=members))


def revoking() -> Snapshot:
    snapshot = open_snapshot()
    assert snapshot.view is not None
    return replace(snapshot, view=replace(snapshot.view, phase=Phase.REVOKING, primary=None))


OLD, NEW = Rule(3, N1, frozenset({N2, N3}), 1), Rule(3, N1, frozenset({N2}), 1)
SILENT = {N1: report(N1, ServerState.PRIMARY), N2: report(N2, ServerState.STANDBY, streaming=False)}
DETACHED = replace(open_snapshot(), reports=SILENT)
WITNESS_ONLY = replace(
    open_snapshot(), reports={n: replace(r, sentinel=n == N1) for n, r in open_snapshot().reports.items()}
)
OUTLOOKS = [
    ("two standbys stream", open_snapshot(), True, "n2 or n3"),
    ("ANY 1 of two, and one is gone: the other may lack the commit", without(N3), False, "1 more of n3"),
    ("a lone primary", with_rules(lone_rule(3, N1)), False, "alone"),
    ("both rules of a change count", with_rules(OLD, NEW), True, "n2 or n3"),
    ("one voter is enough for its own rule", replace(with_rules(NEW), reports=without(N3).reports), True, "n2"),
    ("a standby that does not stream cannot promise", DETACHED, False, "2 more of n2, n3"),
    ("nobody may be primary", with_members(nofailover=True), False, "no streaming standby is allowed"),
    ("paused", replace(open_snapshot(), spec=Spec(paused=True)), False, "paused"),
    ("asynchronous", replace(open_snapshot(), spec=Spec(durability=Durability.ASYNC)), False, "async"),
    ("out of region", replace(open_snapshot(), spec=Spec(primary_region="fra")), False, "no streaming standby"),
    ("no sentinel but beside the primary", WITNESS_ONLY, False, "no sentinel"),
    ("no primary", revoking(), False, "revoking"),
    ("nothing known", None, False, "not known"),
]


@pytest.mark.parametrize(("story", "snapshot", "safe", "words"), OUTLOOKS, ids=[s[0] for s in OUTLOOKS])
def test_what_a_failure_would_cost(story: str, snapshot: Snapshot | None, safe: bool, words: str) -> None:
    found = outlook(snapshot)
    assert (found.safe, words in found.why) == (safe, True), found


def test_unknown_is_left_out_and_never_zero() -> None:
    out = own.Collected("test", N1)
    silent = primary_instance(position=None, walsenders=(walsender(lag_s=None),))
    given = Facts(100.0, N1, open_snapshot(), 0.5, silent, 0.5, 104.0)
    own.add_node(out, given, Claim(Role.PRIMARY, ""))
    own.add_cluster(out, given, True, (N2,))
    text = render(out.families.values())
    assert 'flypg_is_primary{cluster="test",node="n1"} 1\n' in text
    assert 'flypg_authority_seconds{cluster="test",node="n1"} 4.0\n' in text
    assert 'flypg_standby_streaming{cluster="test",node="n1",standby="n2",sync_state="quorum"} 1\n' in text
    for absent in ("flypg_timeline", "flypg_standby_lag_seconds", "flypg_standby_lag_bytes", "flypg_streaming"):
        assert absent not in text
    assert 'flypg_postgres_state{cluster="test",node="n1",state="up"} 1\n' in text
    assert 'flypg_postgres_state{cluster="test",node="n1",state="hung"} 0\n' in text


def event(kind: str, term: int, text: str = "") -> Event:
    return Event(10.0 * term, term, kind, text)


FOUNDED = [event("founding", 1), event("open", 1)]
PLANNED = [event("switchover", 1, "switchover from n1 to n2, asked for by root"), event("phase", 2), event("open", 2)]
CALLED_OFF = [event("switchover", 2, "switchover called off")]
DIED = [event("failover", 3, "postmaster of n2 died on n2"), event("phase", 3), event("open", 3)]
TWICE = [
    event("failover", 4, "no answer from n1, say n2 and n3"),
    event("failover", 5, "n3 went away while it was being promoted"),
]
TWICE += [event("open", 5)]


def test_history_counts_every_opened_term_once_under_a_bounded_reason() -> None:
    history = History(CollectorRegistry())
    history.count([*FOUNDED, *PLANNED, *CALLED_OFF])
    history.count([*FOUNDED, *PLANNED, *CALLED_OFF, *DIED])
    history.count([*DIED[1:], *TWICE])  # the beginning has left the bounded history
    history.count(TWICE)
    assert dict(history.counts) == {
        ("switchover", "operator"): 1,
        ("failover", "postgres_died"): 1,
        ("failover", "promotion_failed"): 1,
    }
    assert history.last_at == 50.0
    assert reason(event("failover", 6, "something nobody thought of")) == reason(None) == "other"


def test_phases_are_timed_from_what_was_seen() -> None:
    registry = CollectorRegistry()
    history = History(registry)
    opened = open_snapshot()
    assert opened.view is not None
    for now, term, phase in (
        (1.0, 3, Phase.OPEN),
        (5.0, 4, Phase.REVOKING),
        (5.1, 4, Phase.PROMOTING),
        (5.4, 4, Phase.OPEN),
    ):
        seen = replace(opened, view=replace(opened.view, term=term, phase=phase))
        history.observe(seen, now, "c", "n1")
        history.observe(seen, now + 0.01, "c", "n1")

    def total(phase: str) -> float | None:
        labels = {"cluster": "c", "node": "n1", "phase": phase}
        return registry.get_sample_value("flypg_failover_phase_seconds_sum", labels)

    assert total("revoking") == pytest.approx(0.1)
    assert total("promoting") == pytest.approx(0.3)
    assert total("all") == pytest.approx(0.4)
    assert total("open") is None
