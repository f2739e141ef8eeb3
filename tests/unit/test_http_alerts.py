"""Alert rules and dashboards: every rule fires on what it is for and on nothing else, and names only what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from healthchecks.own_metrics import DEFINITIONS
from healthchecks.pg_families import definitions

ROOT = Path(__file__).parents[2]
RULES = ROOT / "images" / "prometheus" / "rules" / "flypg.yml"
DASHBOARDS = sorted((ROOT / "images" / "grafana" / "dashboards").glob("*.json"))
RUNBOOKS = (ROOT / "docs" / "alerts.md").read_text()
EXTRA = {"up", "flypg_failover_phase_seconds_bucket", "process_resident_memory_bytes", "process_cpu_seconds_total"}
NAMES = {d.name for d in definitions()} | set(DEFINITIONS) | EXTRA
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian's prometheus) is not installed")

N1, N2 = 'cluster="c",node="n1"', 'cluster="c",node="n2"'
AT = 'instance="h:1",server="h:2"'


def flat(name: str, labels: str, value: float) -> tuple[str, str]:
    """A series that stays at `value` for three hours, a sample each minute."""
    return f"{name}{{{labels}}}", f"{value}x200"


def steps(name: str, labels: str, values: str) -> tuple[str, str]:
    return f"{name}{{{labels}}}", values


C, OUT = 'cluster="c"', {"cluster": "c"}
NODE, INSTANCE = {"cluster": "c", "node": "n1"}, {"instance": "h:1", "server": "h:2"}
FIRING: list[tuple[str, list[tuple[str, str]], str, dict[str, str]]] = [
    ("FlypgNoPrimary", [flat("flypg_is_primary", N1, 0), flat("flypg_is_primary", N2, 0)], "5m", OUT),
    ("FlypgTwoPrimaries", [flat("flypg_is_primary", N1, 1), flat("flypg_is_primary", N2, 1)], "5m", OUT),
    ("FlypgCannotFailOver", [flat("flypg_can_fail_over", N1, 0), flat("flypg_members", N1, 3)], "5m", OUT),
    ("FlypgFailedOver", [steps("flypg_term", N1, "3x20 4x20")], "25m", OUT),
    ("FlypgFlapping", [steps("flypg_term", N1, "3+1x20 23x60")], "30m", OUT),
    ("FlypgNodeMissing", [flat("flypg_members", N1, 3), flat("flypg_members_reporting", N1, 2)], "5m", OUT),
    ("FlypgRuleChangeStuck", [flat("flypg_rules", N1, 2)], "10m", OUT),
    ("FlypgTimelinesDiffer", [flat("flypg_timeline", N1, 4), flat("flypg_timeline", N2, 3)], "10m", OUT),
    ("FlypgPaused", [flat("flypg_paused", N1, 1)], "2h", OUT),
    ("FlypgAuthorityShort", [flat("flypg_is_primary", N1, 1), flat("flypg_authority_seconds", N1, 0.5)], "5m", NODE),
    ("FlypgAgentDown", [flat("up", 'job="flypg",instance="h:1"', 0)], "5m", {"job": "flypg", "instance": "h:1"}),
    ("FlypgPostgresDown", [flat("pg_up", 'instance="h:1"', 0)], "5m", {"instance": "h:1"}),
    ("FlypgKeeperStalled", [flat("flypg_observed_age_seconds", N1, 20)], "1m", NODE),
    ("FlypgCheckFailing", [flat("flypg_check_passing", f'{N1},check="pg"', 0)], "5m", NODE | {"check": "pg"}),
    ("FlypgFenceDown", [flat("flypg_fence_up", N1, 0)], "5m", NODE),
    ("FlypgFenceFired", [steps("flypg_fence_fired_total", N1, "0x5 1x20")], "8m", NODE),
    ("FlypgEtcdSilent", [flat("flypg_etcd_contact_age_seconds", N1, 20)], "1m", NODE),
    (
        "FlypgEtcdErrors",
        [
            steps("flypg_etcd_errors_total", f'{N1},operation="read"', "0+20x60"),
            steps("flypg_etcd_requests_total", f'{N1},operation="read"', "0+100x60"),
        ],
        "20m",
        NODE,
    ),
    ("FlypgLeaseOld", [flat("flypg_lease_age_seconds", N1, 8), flat("flypg_lease_ttl_seconds", N1, 10)], "1m", NODE),
    ("FlypgPendingRestart", [steps("flypg_pending_restart", N1, "2x160")], "25h", NODE),
    (
        "FlypgCertificateEnds",
        [flat("flypg_tls_certificate_expiry_seconds", f'{N1},certificate="server"', 800000)],
        "20m",
        NODE | {"certificate": "server"},
    ),
    (
        "FlypgAuthorityEnds",
        [flat("flypg_tls_certificate_expiry_seconds", f'{N1},certificate="authority"', 15000000)],
        "20m",
        OUT,
    ),
    ("FlypgTlsProblem", [flat("flypg_tls_problem", N1, 1)], "20m", NODE),
    ("FlypgPoolerDown", [flat("pgbouncer_up", N1, 0)], "5m", NODE),
    (
        "FlypgPoolerClientsWait",
        [
            flat("pgbouncer_pools_client_waiting_connections", f'{N1},database="d",user="u"', 5),
            flat("pgbouncer_pools_client_maxwait_seconds", f'{N1},database="d",user="u"', 3),
        ],
        "5m",
        NODE | {"database": "d", "user": "u"},
    ),
    ("FlypgStandbyNotStreaming", [flat("flypg_is_standby", N1, 1), flat("flypg_streaming", N1, 0)], "5m", NODE),
    (
        "FlypgStandbyLagBytes",
        [flat("flypg_standby_lag_bytes", f'{N1},standby="n2"', 2e7)],
        "5m",
        NODE | {"standby": "n2"},
    ),
    (
        "FlypgStandbyLagSeconds",
        [flat("flypg_standby_lag_seconds", f'{N1},standby="n2"', 40)],
        "5m",
        NODE | {"standby": "n2"},
    ),
    (
        "FlypgSlotRetainsWal",
        [flat("flypg_slot_retained_bytes", f'{N1},slot="s"', 200), flat("flypg_disk_size_bytes", N1, 1000)],
        "10m",
        NODE | {"slot": "s"},
    ),
    ("FlypgSlotLost", [flat("flypg_slot_lost", f'{N1},slot="s"', 1)], "1m", NODE | {"slot": "s"}),
    (
        "FlypgDiskWillFill",
        [steps("flypg_disk_free_bytes", N1, "400-2x190"), flat("flypg_disk_size_bytes", N1, 1000)],
        "90m",
        NODE,
    ),
    (
        "FlypgDiskNearlyFull",
        [flat("flypg_disk_free_bytes", N1, 50), flat("flypg_disk_size_bytes", N1, 1000)],
        "5m",
        NODE,
    ),
    (
        "FlypgArchivingFails",
        [steps("pg_stat_archiver_failed_count", AT, "0+3x60"), flat("pg_stat_archiver_last_archive_age", AT, 300)],
        "20m",
        INSTANCE,
    ),
    ("FlypgArchiveLag", [flat("flypg_archive_ready_segments", N1, 20)], "20m", NODE),
    ("FlypgArchiveBehind", [flat("flypg_archive_lag_seconds", N1, 400)], "20m", NODE),
    ("FlypgArchiveGap", [flat("flypg_archive_gap", N1, 1)], "20m", OUT),
    ("FlypgSnapshotTooOld", [flat("flypg_snapshot_age_seconds", N1, 100000)], "20m", OUT),
    ("FlypgSnapshotFailed", [flat("flypg_snapshot_last_success", N1, 0)], "10m", NODE),
    ("FlypgRestoreNotVerified", [flat("flypg_restore_verified_age_seconds", N1, 900000)], "1m", OUT),
    (
        "FlypgTooManyConnections",
        [
            flat("pg_stat_activity_count", f'{AT},datname="d",state="idle"', 85),
            flat("pg_settings_max_connections", AT, 100),
            flat("pg_settings_superuser_reserved_connections", AT, 3),
        ],
        "10m",
        {"instance": "h:1"},
    ),
    (
        "FlypgLongTransaction",
        [flat("pg_stat_activity_max_tx_duration", f'{AT},datname="d",state="idle in transaction"', 1000)],
        "5m",
        {"instance": "h:1", "datname": "d"},
    ),
    (
        "FlypgDeadlocks",
        [steps("pg_stat_database_deadlocks", f'{AT},datname="d",datid="5"', "0+20x60")],
        "20m",
        {"instance": "h:1", "datname": "d"},
    ),
    (
        "FlypgChecksumFailure",
        [steps("pg_stat_database_checksum_failures", f'{AT},datname="d",datid="5"', "0x5 1x20")],
        "8m",
        INSTANCE | {"datname": "d", "datid": "5"},
    ),
    (
        "FlypgTransactionIdsOld",
        [flat("flypg_database_xid_age", f'{N1},datname="d"', 6e8)],
        "20m",
        NODE | {"datname": "d"},
    ),
    ("FlypgMetricsStale", [flat("flypg_metrics_age_seconds", f'{N1},family="locks"', 90)], "10m", NODE),
]
HEALTHY: list[tuple[str, str]] = [
    flat("flypg_tls_certificate_expiry_seconds", f'{N1},certificate="server"', 1e7),
    flat("flypg_tls_certificate_expiry_seconds", f'{N1},certificate="authority"', 1e8),
    flat("flypg_tls_problem", N1, 0),
    flat("up", 'job="flypg",instance="h:1"', 1),
    flat("pg_up", 'instance="h:1"', 1),
    flat("flypg_is_primary", N1, 1),
    flat("flypg_is_primary", N2, 0),
    flat("flypg_is_standby", N1, 0),
    flat("flypg_is_standby", N2, 1),
    flat("flypg_streaming", N2, 1),
    flat("flypg_can_fail_over", N1, 1),
    flat("flypg_members", N1, 2),
    flat("flypg_members_reporting", N1, 2),
    flat("flypg_term", N1, 3),
    flat("flypg_rules", N1, 1),
    flat("flypg_timeline", N1, 3),
    flat("flypg_timeline", N2, 3),
    flat("flypg_paused", N1, 0),
    flat("flypg_authority_seconds", N1, 4),
    flat("flypg_observed_age_seconds", N1, 0.3),
    flat("flypg_check_passing", f'{N1},check="pg"', 1),
    flat("flypg_fence_up", N1, 1),
    flat("flypg_fence_fired_total", N1, 0),
    flat("flypg_etcd_contact_age_seconds", N1, 1),
    steps("flypg_etcd_errors_total", f'{N1},operation="read"', "0+1x200"),
    steps("flypg_etcd_requests_total", f'{N1},operation="read"', "0+100x200"),
    flat("flypg_lease_age_seconds", N1, 3),
    flat("flypg_lease_ttl_seconds", N1, 10),
    flat("flypg_pending_restart", N1, 0),
    flat("pgbouncer_up", N1, 1),
    flat("flypg_standby_lag_bytes", f'{N1},standby="n2"', 1000),
    flat("flypg_standby_lag_seconds", f'{N1},standby="n2"', 0.1),
    flat("flypg_slot_retained_bytes", f'{N1},slot="s"', 10),
    flat("flypg_slot_lost", f'{N1},slot="s"', 0),
    flat("flypg_disk_size_bytes", N1, 1000),
    flat("flypg_disk_free_bytes", N1, 700),
    flat("pg_stat_archiver_failed_count", AT, 7),
    flat("pg_stat_archiver_last_archive_age", AT, 4000),
    flat("flypg_archive_ready_segments", N1, 1),
    flat("flypg_archive_lag_seconds", N1, 60),
    flat("flypg_archive_gap", N1, 0),
    flat("flypg_snapshot_age_seconds", N1, 50000),
    flat("flypg_snapshot_last_success", N1, 1),
    flat("flypg_restore_verified_age_seconds", N1, 90000),
    flat("pg_stat_activity_count", f'{AT},datname="d",state="idle"', 20),
    flat("pg_settings_max_connections", AT, 100),
    flat("pg_settings_superuser_reserved_connections", AT, 3),
    flat("pg_stat_activity_max_tx_duration", f'{AT},datname="d",state="active"', 2),
    steps("pg_stat_database_deadlocks", f'{AT},datname="d",datid="5"', "0+1x200"),
    flat("pg_stat_database_checksum_failures", f'{AT},datname="d",datid="5"', 0),
    flat("flypg_database_xid_age", f'{N1},datname="d"', 1e6),
    flat("flypg_metrics_age_seconds", f'{N1},family="locks"', 5),
    flat("flypg_metrics_age_seconds", f'{N1},family="settings"', 50000),
    flat("pg_exporter_last_scrape_error", 'instance="h:1"', 0),
]


def run_promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def case(series: list[tuple[str, str]], expr: str, at: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [{"expr": expr, "eval_time": at, "exp_samples": samples}],
    }


def labelled(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"


def severities() -> dict[str, str]:
    return dict(re.findall(r"- alert: (\w+)\n.*?severity: (\w+)", RULES.read_text(), re.S))


def test_every_alert_is_tested_and_has_its_runbook() -> None:
    names = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert sorted(names) == sorted(name for name, *_ in FIRING)
    for name in names:
        assert f"### {name}\n" in RUNBOOKS
        assert f"runbook_url: docs/alerts.md#{name.lower()}\n" in RULES.read_text()


@needs_promtool
def test_rules_and_configuration_are_valid() -> None:
    run_promtool("check", "rules", str(RULES))
    run_promtool("check", "config", str(ROOT / "images" / "prometheus" / "prometheus.yml"))


@needs_promtool
def test_every_alert_fires_on_its_cause_and_a_healthy_cluster_is_silent(tmp_path: Path) -> None:
    of = severities()
    files = []
    for name, series, at, labels in FIRING:
        every = labels | {"alertname": name, "alertstate": "firing", "severity": of[name]}
        sample = {"labels": f"ALERTS{labelled(every)}", "value": 1}
        test = case(series, f'ALERTS{{alertname="{name}",alertstate="firing"}}', at, [sample])
        files.append(written(tmp_path, name, [test], step="10m" if at.endswith("h") else "1m"))
    healthy = [case(HEALTHY, "ALERTS", at, []) for at in ("10m", "60m")]
    files.append(written(tmp_path, "", healthy, step="1m"))
    run_promtool("test", "rules", *files)


def written(directory: Path, name: str, tests: list[dict[str, Any]], step: str) -> str:
    """A file of tests for promtool, with the rule called `name` alone ("": all), evaluated each `step`."""
    rules = RULES
    if name:
        rules = directory / f"{name}.rules.yml"
        rule = re.search(rf"      - alert: {name}\n(?:        .*\n)+", RULES.read_text())
        assert rule is not None
        rules.write_text(f"groups:\n  - name: one\n    rules:\n{rule[0]}")
    file = directory / f"{name or 'healthy'}.json"  # JSON is YAML too
    tests = [{**test, "interval": step} for test in tests]
    file.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": step, "tests": tests}))
    return str(file)


def metric_names(expr: str) -> set[str]:
    """Names in an expression: what stands before a brace, a bracket or an operator, and is no function or label."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\b(?:by|on|group_left|without|ignoring)\s*\([^)]*\)', "", expr)
    return {
        name
        for name in re.findall(r"\b([a-z_][a-z0-9_]*)\b(?!\s*\()", bare)
        if ("_" in name and name[0] != "_") or name == "up"
    } - {"group_left"}


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def known(name: str) -> bool:
    return name in NAMES or name.startswith("pg_settings_")


def test_rules_name_only_metrics_that_exist() -> None:
    for expr in re.findall(r"expr: ['\"](.*)['\"]\n", RULES.read_text()):
        names = metric_names(expr.replace('\\"', '"'))
        assert names and all(known(name) for name in names), expr


@pytest.mark.parametrize("path", DASHBOARDS, ids=[p.stem for p in DASHBOARDS])
def test_dashboards_name_only_metrics_that_exist(path: Path) -> None:
    for panel in panels(path):
        for target in panel["targets"]:
            names = metric_names(target["expr"].replace("$__rate_interval", "1m"))
            assert names and all(known(name) for name in names), (panel["title"], names)


@pytest.mark.parametrize("path", DASHBOARDS, ids=[p.stem for p in DASHBOARDS])
def test_dashboards_are_what_grafana_needs(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] and board["title"] and board["schemaVersion"] >= 36 and board["id"] if "id" in board else True
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} overlaps"
        taken |= cells
    variables = {variable["name"] for variable in board["templating"]["list"]}
    for panel in panels(path):
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [target["refId"] for target in panel["targets"]] == [chr(65 + i) for i in range(len(panel["targets"]))]
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables, (panel["title"], used)


def test_provisioning_finds_the_dashboards() -> None:
    provisioning = ROOT / "images" / "grafana" / "provisioning"
    assert "type: prometheus" in (provisioning / "datasources" / "prometheus.yml").read_text()
    assert "path: /etc/grafana/dashboards" in (provisioning / "dashboards" / "flypg.yml").read_text()
