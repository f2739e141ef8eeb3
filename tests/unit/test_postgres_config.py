"""What flypg writes for PostgreSQL: owned settings win, secrets stay out, nothing is acknowledged by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InstanceError
from cluster.model import NodeId, Position, Rule, Upstream, lone_rule
from postgres import config as render
from postgres.config import NOBODY_NAMES, Dynamic, InstanceConfig, Passwords
from postgres.defaults import LEAST, machine_defaults, with_least
from postgres.detach import furthest
from postgres.rules import count_of
from postgres.tls import built_with_tls

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
UPSTREAM = Upstream(N2, "fdaa::2", 5433, 7)
CONFIG = InstanceConfig(
    pgdata=Path("/data/pgdata"),
    conf=Path("/data/conf"),
    run=Path("/data/run"),
    log=Path("/data/log"),
    binaries=Path("/usr/lib/postgresql/15/bin"),
    port=5433,
    passwords=Passwords("super-secret", "operator-secret", "repl:sec\\ret"),
    listen=("127.0.0.1", "fdaa::1"),
)


def values(text: str) -> dict[str, str]:
    """Settings by name, the last wins, unquoted."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition(" = ")
        if equals and not line.startswith("#"):
            found[name] = value[1:-1].replace("''", "'").replace("\\\\", "\\")
    return found


def test_owned_settings_win_and_are_never_taken_from_the_operator() -> None:
    written = values(
        render.render_main(CONFIG, {"fsync": "off", "port": "1", "work_mem": "9MB", "primary_conninfo": "x"})
    )
    assert written["fsync"] == "on"
    assert written["port"] == "5433"
    assert written["work_mem"] == "9MB"
    assert "primary_conninfo" not in written
    assert written["listen_addresses"] == "127.0.0.1,fdaa::1"
    assert written["restart_after_crash"] == "off"


def test_nothing_secret_is_in_the_configuration() -> None:
    everything = (
        render.render_main(CONFIG, {})
        + render.render_dynamic(CONFIG, N1, Dynamic(NOBODY_NAMES, UPSTREAM))
        + repr(CONFIG)
    )
    assert "secret" not in everything
    assert "sec\\ret" not in everything


def test_passfile_escapes() -> None:
    assert render.render_passfile(CONFIG.passwords).splitlines() == [
        "*:*:*:repluser:repl\\:sec\\\\ret",
        "*:*:*:flypgadmin:operator-secret",
    ]


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (lone_rule(3, N1), ""),
        (Rule(7, N1, frozenset({N3, N2}), 1), "ANY 1 (n2_t7, n3_t7)"),
        (Rule(12, N1, frozenset({N2, N3}), 2), "ANY 2 (n2_t12, n3_t12)"),
        (Rule(1, N1, frozenset({NodeId("3b_x")}), 1), 'ANY 1 ("3b_x_t1")'),
    ],
)
def test_standby_names(rule: Rule, names: str) -> None:
    assert render.standby_names(rule) == names
    assert count_of(names) == rule.k


@pytest.mark.parametrize(
    "dynamic",
    [
        Dynamic(NOBODY_NAMES),
        Dynamic("", standing=False),
        Dynamic("ANY 1 (n2_t7)", UPSTREAM, standing=True, demands=(("max_connections", "300"),)),
    ],
)
def test_an_agent_that_takes_over_reads_what_the_last_one_set(dynamic: Dynamic) -> None:
    assert render.parse_dynamic(render.render_dynamic(CONFIG, N1, dynamic)) == dynamic


def test_without_a_note_nobody_acknowledges() -> None:
    assert render.parse_dynamic("") == Dynamic(NOBODY_NAMES)


def test_upstream() -> None:
    written = values(render.render_dynamic(CONFIG, N1, Dynamic(NOBODY_NAMES, UPSTREAM)))
    conninfo = written["primary_conninfo"]
    assert "host=fdaa::2 port=5433 user=repluser" in conninfo
    assert "application_name=n1_t7" in conninfo
    assert "passfile=/data/conf/passfile" in conninfo
    assert written["primary_slot_name"] == "flypg_n1"
    detached = values(render.render_dynamic(CONFIG, N1, Dynamic(NOBODY_NAMES)))
    assert detached["primary_conninfo"] == detached["primary_slot_name"] == ""


def test_gate() -> None:
    closed = render.render_hba(gate_open=False, lines=())
    opened = render.render_hba(gate_open=True, lines=())
    assert not render.parse_gate(closed) and render.parse_gate(opened)
    assert not any(" all all " in line for line in closed.splitlines())
    assert "host all all ::/0 scram-sha-256" in opened
    mine = render.render_hba(gate_open=True, lines=("hostssl app app 10.0.0.0/8 scram-sha-256",))
    assert "hostssl app app" in mine and "host all all 0.0.0.0/0" not in mine
    assert "host replication repluser 0.0.0.0/0 scram-sha-256" in mine


def test_auto_conf_loses_what_is_ours() -> None:
    text = "# Do not edit\nwork_mem = '4MB'\nprimary_conninfo = 'host=x'\nSynchronous_Standby_Names = ''\nport=7\n"
    assert render.strip_auto_conf(text) == "# Do not edit\nwork_mem = '4MB'\n"
    assert render.strip_auto_conf("") == ""


@pytest.mark.parametrize(
    ("parameters", "hba", "problem"),
    [
        ([("synchronous_standby_names", "")], [], "belongs to flypg"),
        ([("Work Mem", "1")], [], "not the name"),
        ([("work_mem", "1\nport=2")], [], "one line"),
        ([("wal_level", "minimal")], [], "replica or logical"),
        ([], ["host all all trust"], "not a pg_hba line"),
        ([], ["host all all 0.0.0.0/0 hope"], "not a pg_hba line"),
        ([], ["local all all trust\nhost x"], "not a pg_hba line"),
    ],
)
def test_wishes_that_cannot_be_granted(parameters: list[tuple[str, str]], hba: list[str], problem: str) -> None:
    with pytest.raises(InstanceError, match=problem):
        render.check_parameters(parameters, hba)


def test_wishes_that_can() -> None:
    render.check_parameters(
        [("work_mem", "8MB"), ("pg_stat_statements.max", "100"), ("wal_level", "logical")],
        ["hostssl all all 10.0.0.0 255.0.0.0 cert clientcert=verify-full", "local all app scram-sha-256"],
    )


def test_fingerprint_does_not_depend_on_order_of_settings() -> None:
    one = render.settings_fingerprint([("a", "1"), ("b", "2")], ["x"])
    assert one == render.settings_fingerprint([("b", "2"), ("a", "1")], ["x"])
    assert one != render.settings_fingerprint([("a", "1"), ("b", "2")], ["y"])


@pytest.mark.parametrize(
    ("memory_mb", "shared", "connections"),
    [
        (256, "32MB", "100"),
        (512, "128MB", "100"),
        (1024, "256MB", "150"),
        (8192, "2048MB", "300"),
        (262144, "16384MB", "500"),
    ],
)
def test_defaults_fit_the_machine(memory_mb: int, shared: str, connections: str) -> None:
    found = machine_defaults(memory_mb, 10_000, 2)
    assert found["shared_buffers"] == shared
    assert found["max_connections"] == connections
    assert not found.keys() & render.OWNED


@pytest.mark.parametrize("volume_mb", [500, 1000, 10_000, 1_000_000])
def test_wal_leaves_room_on_the_volume(volume_mb: int) -> None:
    found = machine_defaults(256, volume_mb, 1)
    kept = sum(int(found[name].removesuffix("MB")) for name in ("max_wal_size", "max_slot_wal_keep_size"))
    assert kept <= max(volume_mb * 0.6, 256)


@pytest.mark.parametrize("wal_volume_mb", [200, 400, 2000, 100_000])
def test_wal_leaves_room_on_a_volume_of_its_own(wal_volume_mb: int) -> None:
    """However large that of the data is."""
    found = machine_defaults(256, 1_000_000, 1, wal_volume_mb)
    sizes = {name: int(found[name].removesuffix("MB")) for name in ("max_wal_size", "max_slot_wal_keep_size")}
    assert sum(sizes.values()) <= wal_volume_mb * 0.7
    assert int(found["wal_keep_size"].removesuffix("MB")) <= wal_volume_mb * 0.2
    assert sizes["max_wal_size"] >= 2 * 16, "PostgreSQL wants two segments at least"


def test_a_standby_never_has_less_than_its_control_file_demands() -> None:
    assert with_least({"max_connections": "100"}, {"max_connections": 300})["max_connections"] == "300"
    assert with_least({"max_connections": "400"}, {"max_connections": 300})["max_connections"] == "400"
    assert with_least({"max_wal_senders": "0"}, {})["max_wal_senders"] == str(LEAST["max_wal_senders"])
    assert with_least({}, {"max_prepared_transactions": 0})["max_prepared_transactions"] == "0"


def test_position_is_the_greatest_of_received_and_replayed() -> None:
    at = Position
    assert furthest(at(4, 100), None, 0) == at(4, 100)
    assert furthest(at(4, 100), 90, 4) == at(4, 100), "a receiver that re-attached reports the start of its segment"
    assert furthest(at(4, 100), 120, 4) == at(4, 120)
    assert furthest(at(4, 100), 120, 5) == at(5, 120), "received on a newer timeline, not replayed yet"
    assert furthest(at(4, 100), 100, 5) == at(4, 100), "nothing of the newer timeline is here"


@pytest.mark.parametrize(
    ("code", "can"),
    [(b"\x7fELF..libssl.so.3..", True), (b"\x7fELF..OpenSSL 3.0.15..", True), (b"\x7fELF SSL is not supported", False)],
)
def test_a_server_built_without_openssl_is_known(tmp_path: Path, code: bytes, can: bool) -> None:
    """With `ssl = on` it would not start."""
    (tmp_path / "postgres").write_bytes(code)
    assert built_with_tls(tmp_path) is can
    assert built_with_tls(tmp_path / "nowhere"), "that nothing is there is said elsewhere"
