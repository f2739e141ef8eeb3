"""What the checks say and when they fail: formats, roles, thresholds, probes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cluster.errors import SettingsError
from cluster.model import NodeId, Phase, Snapshot, Upstream
from healthchecks import pg
from healthchecks.config import HttpConfig, Thresholds, fly
from healthchecks.lines import Line, NotProcessed, report, timed_out
from healthchecks.probes import PROBES, Asked, parse_lag, probe
from healthchecks.provider import BackupStats
from healthchecks.role import Claim, Facts, Role, claim
from healthchecks.settings import configured
from healthchecks.text import duration, size, without_roles
from healthchecks.vm import Disk, Pressure, judge_disk, judge_load, judge_pressure, parse_pressure, read_disk
from postgres.check_queries import Upkeep, Vitals
from postgres.instance import InstanceState, Job, JobKind, Run
from tests.support.http_node import N1, N2, open_snapshot, primary_instance, standby_instance

SIZES = [(0, "0 B"), (1023, "1023 B"), (1025, "1 KB"), (902627328, "860.81 MB"), (1073741823, "1024 MB")]
SIZES += [(1 << 40, "1 TB"), (1 << 60, "1048576 TB")]


@pytest.mark.parametrize(("count", "text"), SIZES)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


DURATIONS = [(0, "0s"), (0.93, "930ms"), (1.4213, "1.42s"), (0.0063, "6.3ms"), (0.00056943, "569.43µs")]
DURATIONS += [(62.3, "1m2.3s"), (3600, "1h0m0s"), (5e-7, "500ns"), (-1, "0s"), (0.012041, "12.04ms"), (1.0, "1s")]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_report_has_flys_lines_and_no_newline_at_the_end() -> None:
    found = report([Line("a", "fine", seconds=0.0063), Line("b", "bad", passed=False, seconds=1), NotProcessed("c")])
    assert found.body == "[✓] a: fine (6.3ms)\n[✗] b: bad (1s)\n[-] c: Not processed"
    assert found.status == 500
    assert report([Line("a", "fine", warning=True)]).body == "[✓] a: warning: fine"
    assert report([Line("a", "fine", warning=True)]).status == 200
    assert report([Line("a", "fine"), NotProcessed("b")]).status == 500
    assert str(timed_out("pg", 5.0)) == "[✗] pg: Timed out (5s)"


def facts(local: InstanceState | None, snapshot: Snapshot | None, **more: object) -> Facts:
    given = Facts(
        now=100.0,
        node=N1,
        snapshot=snapshot,
        snapshot_age_s=0.5,
        instance=local,
        instance_age_s=0.5,
        authority_until=104.0,
    )
    return replace(given, **more)  # type: ignore[arg-type]


def with_view(**changes: object) -> Snapshot:
    snapshot = open_snapshot()
    assert snapshot.view is not None
    return replace(snapshot, view=replace(snapshot.view, **changes))  # type: ignore[arg-type]


COPYING = primary_instance(run=Run.DOWN, in_recovery=None, job=Job(JobKind.COPY, running=True))
ROLES = [
    ("agreed, opened, let in and with authority", primary_instance(), open_snapshot(), {}, "leader"),
    ("a lone primary needs no proof", primary_instance(), open_snapshot(), {"authority_until": float("inf")}, "leader"),
    (
        "etcd is gone, the standbys still confirm",
        primary_instance(),
        open_snapshot(),
        {"snapshot_age_s": 500.0},
        "leader",
    ),
    ("authority has run out", primary_instance(), open_snapshot(), {"authority_until": 100.0}, "none"),
    ("another node is primary", primary_instance(), open_snapshot(N2, (N1,)), {}, "none"),
    ("the term is not open", primary_instance(), with_view(phase=Phase.PROMOTING), {}, "none"),
    ("clients are not let in", primary_instance(gate_open=False), open_snapshot(), {}, "none"),
    ("etcd was never read", primary_instance(), None, {}, "none"),
    ("a standby", standby_instance(), open_snapshot(), {}, "replica"),
    ("a standby needs no etcd", standby_instance(), None, {}, "replica"),
    (
        "a standby that is detached is still one",
        replace(standby_instance(), streaming=False),
        open_snapshot(),
        {},
        "replica",
    ),
    ("PostgreSQL hangs", primary_instance(run=Run.HUNG), open_snapshot(), {}, "none"),
    ("PostgreSQL is down", primary_instance(run=Run.DOWN, in_recovery=None), open_snapshot(), {}, "none"),
    ("it is being copied", COPYING, open_snapshot(), {}, "none"),
    ("nobody has looked lately", primary_instance(), open_snapshot(), {"instance_age_s": 11.0}, "none"),
    ("nobody has ever looked", None, open_snapshot(), {}, "none"),
]


@pytest.mark.parametrize(("story", "local", "snapshot", "more", "expected"), ROLES, ids=[s[0] for s in ROLES])
def test_role(
    story: str, local: InstanceState | None, snapshot: Snapshot | None, more: dict[str, object], expected: str
) -> None:
    found = claim(facts(local, snapshot, **more), stale_after_s=10.0)
    assert found.role == expected, found.why
    if found.role is Role.NONE:
        for word in ("leader", "replica", "primary"):
            assert word not in found.why.lower()


def test_a_reason_never_contains_a_role_even_when_a_problem_does() -> None:
    down = primary_instance(run=Run.DOWN, in_recovery=None)
    found = claim(facts(down, open_snapshot(), problem="cannot reach the Primary replica_leader"), 10.0)
    assert "cannot reach" in found.why
    for word in ("leader", "replica", "primary"):
        assert word not in found.why.lower()
    assert without_roles("nothing here") == "nothing here"


DEFAULT, STRICT = Thresholds(), fly()


def test_disk_fails_below_its_limit_and_survives_a_full_one() -> None:
    assert str(judge_disk(Disk(1000 << 20, 871 << 20), "/data/", DEFAULT)) == (
        "[✓] checkDisk: 871 MB (87.1%) free space on /data/"
    )
    assert str(judge_disk(Disk(1000 << 20, 0), "/data/", DEFAULT)) == "[✗] checkDisk: 0 B (0.0%) free space on /data/"
    assert not judge_disk(Disk(0, 0), "/data/", DEFAULT).passed


def test_the_fullest_volume_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """WAL may have one of its own, and a node without data has none yet."""
    free = {"/data": 50, "/data/pgdata/pg_wal": 3}

    def statvfs(path: str) -> SimpleNamespace:
        if path not in free:
            raise FileNotFoundError(path)
        return SimpleNamespace(f_blocks=100, f_bavail=free[path], f_frsize=1 << 20)

    monkeypatch.setattr("healthchecks.vm.os.statvfs", statvfs)
    disk = read_disk("/data", "/data/pgdata/pg_wal")
    assert (disk.path, disk.available) == ("/data/pgdata/pg_wal", 3 << 20)
    free["/data"] = 2
    assert read_disk("/data", "/data/pgdata/pg_wal").path == "/data"
    assert read_disk("/data", "/data/nothing/pg_wal").path == "/data"
    with pytest.raises(FileNotFoundError):
        read_disk("/nothing", "/data")


def test_load_is_printed_from_fifteen_minutes_to_one() -> None:
    assert judge_load((0.3, 0.2, 0.1), 2, DEFAULT).text == "load averages: 0.10 0.20 0.30"
    busy = judge_load((30.0, 1.0, 1.0), 2, STRICT)
    assert (busy.passed, busy.text) == (False, "1 minute load average is very high: 30.00")
    assert judge_load((30.0, 1.0, 1.0), 2, DEFAULT).passed, "honest load is no failure"
    assert judge_load((1.0, 9.0, 1.0), 2, STRICT).text == "5 minute load average is high: 9.00"


PSI = "some avg10=46.00 avg60=31.00 avg300=2.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def test_pressure_cries_wolf_only_when_asked_to() -> None:
    pressure = parse_pressure(PSI)
    assert pressure == Pressure((46.0, 31.0, 2.0))
    line = judge_pressure("cpu", pressure, DEFAULT)
    assert (line.passed, line.warning, line.text) == (True, False, "system spent 18.6s of the last 60s waiting on cpu")
    strict = judge_pressure("cpu", pressure, STRICT)
    assert (strict.passed, strict.text) == (False, "system spent 4.6s of the last 10 seconds waiting on cpu")
    assert judge_pressure("cpu", Pressure((99.0, 99.0, 99.0)), DEFAULT).warning
    assert not judge_pressure("memory", Pressure((99.0, 99.0, 9.0), (50.0, 50.0, 5.0)), DEFAULT).passed
    with pytest.raises(ValueError):
        parse_pressure("nonsense=1")
    with pytest.raises(ValueError):
        parse_pressure("")


VITALS = Vitals(
    in_recovery=False,
    read_only=False,
    used=9,
    clients=4,
    oldest_transaction_s=None,
    oldest_transaction_pid=None,
    reserved=3,
    max_connections=300,
    standbys=[["10.0.0.2", "0.001234"]],
    slots=[],
    archiving=False,
    archive_failing=False,
    archive_failures=0,
    archive_age_s=None,
    behind_bytes=None,
    behind_s=0.0,
    contact_age_s=None,
)
REPLICA = replace(VITALS, in_recovery=True, read_only=True, standbys=[])
PRIMARY, STANDBY, NOBODY = Claim(Role.PRIMARY, ""), Claim(Role.STANDBY, ""), Claim(Role.NONE, "term 3 is not open yet")
MISLED = replace(standby_instance(), upstream=Upstream(NodeId("n3"), "10.0.0.3", 5433, 3))
LINES = [
    (
        "a primary, as Fly prints it",
        (VITALS, facts(primary_instance(), open_snapshot()), PRIMARY),
        [
            "transactions: read/write",
            "replicationLag: 10.0.0.2 is lagging 1.23ms",
            "connections: 9 used, 3 reserved, 300 max",
        ],
        True,
    ),
    (
        "a standby, as Fly prints it",
        (REPLICA, facts(standby_instance(N2), open_snapshot(N2, (N1,))), STANDBY),
        ["transactions: readonly", "replication: syncing from 127.0.0.1", "connections: 9 used, 3 reserved, 300 max"],
        True,
    ),
    (
        "a primary that is read-only",
        (replace(VITALS, read_only=True, standbys=[]), facts(primary_instance(), open_snapshot()), PRIMARY),
        ["transactions: readonly but expected read/write"],
        False,
    ),
    (
        "writable, but not entitled",
        (VITALS, facts(primary_instance(), open_snapshot()), NOBODY),
        ["transactions: read/write but expected readonly: term 3 is not open yet"],
        False,
    ),
    (
        "a standby of the wrong node",
        (REPLICA, facts(MISLED, open_snapshot(N2, (N1,))), STANDBY),
        ["transactions: readonly", 'replication: primary mismatch detected: current: "127.0.0.1", expected "10.0.0.3"'],
        False,
    ),
    (
        "a standby that does not stream only warns",
        (REPLICA, facts(replace(standby_instance(N2), streaming=False), open_snapshot(N2, (N1,))), STANDBY),
        ["transactions: readonly", "replication: warning: not streaming from 127.0.0.1"],
        True,
    ),
    (
        "a standby that lags is not the primary's fault",
        (replace(VITALS, standbys=[["10.0.0.2", "4.2"]]), facts(primary_instance(), open_snapshot()), PRIMARY),
        ["transactions: read/write", "replicationLag: warning: 10.0.0.2 is lagging 4.2s"],
        True,
    ),
]


@pytest.mark.parametrize(("story", "given", "expected", "passed"), LINES, ids=[s[0] for s in LINES])
def test_pg(story: str, given: tuple[Vitals, Facts, Claim], expected: list[str], passed: bool) -> None:
    lines = pg.judge(*given, DEFAULT, 0.001)
    texts = [str(line)[4:].rsplit(" (", 1)[0] for line in lines]
    assert texts[: len(expected)] == expected
    assert all(line.passed for line in lines) is passed


def test_flys_lag_limit_is_three_seconds_and_not_fifty_minutes() -> None:
    late = replace(VITALS, standbys=[["10.0.0.2", "3.0"]])
    lines = pg.judge(late, facts(primary_instance(), open_snapshot()), PRIMARY, STRICT, 0.001)
    assert [line.passed for line in lines] == [True, False, True]


MORE = [
    ("connections near the limit", replace(VITALS, clients=290), "connectionsLimit", "290 of 297 for clients (98%)"),
    (
        "a slot keeps much",
        replace(VITALS, slots=[["flypg_n3", "false", "extended", str(3 << 30)]]),
        "replicationSlots",
        "1 slots, flypg_n3 (inactive) keeps 3 GB",
    ),
    (
        "a slot is lost",
        replace(VITALS, slots=[["flypg_n3", "false", "lost", "0"]]),
        "replicationSlots",
        "flypg_n3 lost: its standby can only come back from the archive or a new copy",
    ),
    (
        "archiving fails",
        replace(VITALS, archiving=True, archive_failing=True, archive_failures=7, archive_age_s=90.0),
        "archiving",
        "failing (7 failures, last succeeded 1m30s ago)",
    ),
    (
        "a transaction is old",
        replace(VITALS, oldest_transaction_s=400.0, oldest_transaction_pid=42),
        "longTransactions",
        "the oldest is open for 6m40s (pid 42)",
    ),
]


@pytest.mark.parametrize(("story", "vitals", "name", "text"), MORE, ids=[s[0] for s in MORE])
def test_what_only_warns(story: str, vitals: Vitals, name: str, text: str) -> None:
    lines = {line.name: line for line in pg.judge_more(vitals, DEFAULT, 0.0)}
    assert (lines[name].passed, lines[name].warning, lines[name].text) == (True, True, text)
    calm = {line.name: line for line in pg.judge_more(VITALS, DEFAULT, 0.0)}
    assert not any(line.warning for line in calm.values())


def test_upkeep_and_snapshots_warn() -> None:
    calm = pg.judge_upkeep(Upkeep(1000, 10, 0, None), DEFAULT, 0.0)
    assert not any(line.warning for line in calm)
    bad = pg.judge_upkeep(Upkeep(400_000_000, 10, 2, "app"), DEFAULT, 0.0)
    assert all(line.warning and line.passed for line in bad)
    assert pg.judge_snapshots(None, DEFAULT) == []
    assert not pg.judge_snapshots(BackupStats(3, 3600.0, last_succeeded=True), DEFAULT)[0].warning
    assert pg.judge_snapshots(BackupStats(3, 30 * 3600.0), DEFAULT)[0].warning
    assert pg.judge_snapshots(BackupStats(0), DEFAULT)[0].warning
    assert pg.judge_snapshots(BackupStats(3, 3600.0, last_succeeded=False), DEFAULT)[0].warning


def asked(local: InstanceState, snapshot: Snapshot, limit: int | None = None, behind: int | None = None) -> Asked:
    given = facts(local, snapshot)
    return Asked(given, claim(given, 10.0), limit, behind, 10.0)


ON_PRIMARY = {"/primary", "/master", "/read-write", "/leader", "/read-only", "/read-only-sync", "/read-only-quorum"}
ON_PRIMARY |= {"/health", "/liveness", "/readiness"}
ON_VOTER = {"/replica", "/read-only", "/sync", "/synchronous", "/quorum", "/read-only-sync", "/read-only-quorum"}
ON_VOTER |= {"/health", "/liveness", "/readiness"}
ON_OTHER = {"/replica", "/read-only", "/async", "/asynchronous", "/health", "/liveness", "/readiness"}
PROBED = [
    ("primary", asked(primary_instance(), open_snapshot()), ON_PRIMARY),
    ("standby that votes", asked(standby_instance(N2), open_snapshot(N2, (N1,))), ON_VOTER),
    ("standby that does not", asked(standby_instance(N2), open_snapshot(N2, (NodeId("n3"),))), ON_OTHER),
    ("hangs", asked(primary_instance(run=Run.HUNG), open_snapshot()), {"/liveness"}),
    ("lags less", asked(standby_instance(N2), open_snapshot(N2, (N1,)), 100, 99), ON_VOTER),
    ("lags more", asked(standby_instance(N2), open_snapshot(N2, (N1,)), 100, 101), {"/health", "/liveness"}),
    (
        "lags nobody knows how much",
        asked(standby_instance(N2), open_snapshot(N2, (N1,)), 100),
        {"/health", "/liveness"},
    ),
]


@pytest.mark.parametrize(("story", "given", "expected"), PROBED, ids=[s[0] for s in PROBED])
def test_probes(story: str, given: Asked, expected: set[str]) -> None:
    assert {path for path in PROBES if probe(path, given) == 200} == expected


def test_lag_is_a_size() -> None:
    assert [parse_lag(text) for text in (None, "10", "16MB", "1.5 kB")] == [None, 10, 16 << 20, 1536]
    for text in ("", "x", "-1", "10 parsecs"):
        with pytest.raises(ValueError):
            parse_lag(text)


def test_settings_are_read_and_refused_by_key() -> None:
    found = configured(
        HttpConfig(), {"FLYPG_CHECK_PROFILE": "fly", "FLYPG_CHECK_LAG_S": "1m", "FLYPG_METRICS_TABLES": "on"}
    )
    assert (found.thresholds.lag_fail_s, found.thresholds.pressure_fail_percent, found.table_metrics) == (
        60.0,
        10.0,
        True,
    )
    assert configured(HttpConfig(), {"FLYPG_METRICS_PORT": "9187"}) == HttpConfig()
    loads = configured(HttpConfig(), {"FLYPG_CHECK_LOAD_PER_CPU": "1,2,3"}).thresholds.load_fail_per_cpu
    assert loads == (1.0, 2.0, 3.0)
    for key, value in (("FLYPG_CHECK_LAGS", "1"), ("FLYPG_CHECK_LOAD_PER_CPU", "1,2"), ("FLYPG_CHECK_LAG_S", "soon")):
        with pytest.raises(SettingsError) as caught:
            configured(HttpConfig(), {key: value})
        assert caught.value.key == key
