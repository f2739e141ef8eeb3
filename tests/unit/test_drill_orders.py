"""Orders of a drill to a live node: what is understood, who is believed, and what the helper does with each line."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import drill_helper, drill_network
from agent.drill_helper import Session, listen
from agent.drill_network import Facts, Failed, rules
from agent.drill_victims import Broken, left_behind, named
from chaos.drills import DRILLS
from chaos.live import fault_of, longest_s, why_not
from cluster.drill_orders import (
    FAULTS,
    LONGEST_S,
    BadOrder,
    Order,
    key_of,
    order_tag,
    read_order,
    same,
    session_key,
    tag,
    write_order,
)
from flypg.main import main

GOOD = '{"fault": "freeze-postgres", "for_s": 20, "asked_by": "root@ops"}'
BAD = [
    ("no JSON", "freeze-postgres", "not JSON"),
    ("no object", '["freeze-postgres"]', "fields"),
    ("a field is missing", '{"fault": "freeze-postgres", "for_s": 20}', "fields"),
    ("a field too many", GOOD[:-1] + ', "path": "/"}', "fields"),
    ("an unknown fault", GOOD.replace("freeze-postgres", "rm -rf"), "no fault"),
    ("a fault that is no string", GOOD.replace('"freeze-postgres"', '["kill-node"]'), "no fault"),
    ("longer than a node allows", GOOD.replace("20", "61"), "from 1 to 60"),
    ("no time at all", GOOD.replace("20", "0"), "from 1 to 60"),
    ("for ever", GOOD.replace("20", "Infinity"), "from 1 to 60"),
    ("not a number", GOOD.replace("20", "NaN"), "from 1 to 60"),
    ("true is no number", GOOD.replace("20", "true"), "from 1 to 60"),
    ("a name with a line break", GOOD.replace("root@ops", "a\\nb"), "asked_by"),
    ("nobody", GOOD.replace("root@ops", ""), "asked_by"),
    ("very long", GOOD + " " * 3000, "longer"),
    ("very deep", "[" * 2000, "not JSON"),
]


@pytest.mark.parametrize(("text", "why"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_an_order_is_read_strictly(text: str, why: str) -> None:
    with pytest.raises(BadOrder, match=why):
        read_order(text)


def test_an_order_is_read_as_it_was_written() -> None:
    order = Order("isolate", 12.5, "deploy@ci-7")
    assert read_order(write_order(order)) == order
    assert str(order) == "isolate for at most 12.5 s, asked by deploy@ci-7"


def test_a_tag_covers_everything() -> None:
    key = key_of("secret", "shop")
    right = order_tag(key, "begin", "n1", "7f", GOOD)
    assert same(right, order_tag(key_of("secret", "shop"), "begin", "n1", "7f", GOOD))
    others = [
        order_tag(key_of("Secret", "shop"), "begin", "n1", "7f", GOOD),
        order_tag(key_of("secret", "other"), "begin", "n1", "7f", GOOD),
        order_tag(key, "offer", "n1", "7f", GOOD),
        order_tag(key, "begin", "n2", "7f", GOOD),
        order_tag(key, "begin", "n1", "80", GOOD),
        order_tag(key, "begin", "n1", "7f", GOOD + " "),
        "",
        "é" * 64,
    ]
    assert not any(same(right, other) for other in others)


def test_every_drill_says_whether_it_can_be_had_over_a_cluster() -> None:
    can = {name for name, drill in DRILLS.items() if not why_not(drill)}
    assert {"kill-postgres", "freeze-node", "isolate", "kill-standby", "restart-agent", "switchover"} <= can
    assert not can & {"kill-etcd", "fill-wal", "fill-data", "lose-machine"}
    assert all(fault_of(DRILLS[name]) in FAULTS for name in can - {"switchover"})
    assert all(longest_s(DRILLS[name]) <= LONGEST_S for name in can)


WRONG = [
    ("two clusters", ["switchover", "--local", "--cluster"], "--local and --cluster"),
    ("a drill taken for a name", ["switchover", "--cluster", "kill-postgres"], "give --cluster after the drills"),
    ("namespaces are a testbed's", ["switchover", "--namespaces", "--cluster"], "--namespaces is for a testbed"),
    ("no port", ["switchover", "--through", "db", "--cluster"], "expected HOST:PORT"),
    ("a port that is none", ["switchover", "--through", "db:99999", "--cluster"], "expected HOST:PORT"),
    ("options without --cluster", ["switchover", "--etcd", "e1:2379"], "add --cluster"),
    ("an unknown drill", ["kill-postgers", "--cluster"], "did you mean kill-postgres"),
    ("no such cluster", ["switchover", "--dir", "/nonexistent", "--cluster"], "no local cluster"),
]


@pytest.mark.parametrize(("words", "why"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_makes_no_sense_breaks_nothing(
    words: list[str], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLYPG_ETCD_ENDPOINTS", raising=False)
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/usr/bin/{name}")
    assert main(["drill", "run", *words]) == 2
    assert why in capsys.readouterr().err


# --- the helper ---------------------------------------------------------------------------------------------------

KEY = session_key(b"key", "7f")
FACTS = Facts((1, 1), "/data", "/data/pgdata", "/nonexistent/drill.json")


class Fake(Broken):
    """Breaks nothing, and remembers what it was told."""

    def begin(self, fault: str, port: int) -> None:
        if fault == "kill-fence":
            raise Failed("fence does not run here")
        told.append(f"begin {fault}")

    def mend(self) -> str:
        told.append("mend")
        return ""


told: list[str] = []


@contextmanager
def helper(fault: str = "freeze-postgres", for_s: float = 30.0) -> Iterator[tuple[socket.socket, list[str]]]:
    """A session of its own thread, a connection to it, and why it was over."""
    told.clear()
    listeners = listen(["127.0.0.1"], 0)
    session = Session(Fake(FACTS), fault, for_s, KEY, listeners)
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(session.run()))
    thread.start()
    with socket.create_connection(listeners[0].getsockname(), timeout=10) as drill:
        yield drill, ended
    thread.join(20)
    assert not thread.is_alive() and told[-1] == "mend"


def line(word: str, number: int, key: str = KEY) -> bytes:
    return f"{word} {number} {tag(bytes.fromhex(key), word, str(number))}\n".encode()


def ask(drill: socket.socket, what: bytes) -> str:
    """The first line of the answer."""
    drill.sendall(what)
    return drill.recv(500).decode().split("\n")[0]


def test_the_helper_breaks_when_the_drill_has_come_and_mends_when_it_is_over() -> None:
    with helper() as (drill, ended):
        assert told == []
        assert ask(drill, line("go", 1)) == "broken"
        assert ask(drill, line("renew", 2)) == "ok"
        assert ask(drill, line("end", 5)) == "undone"
    assert (told, ended) == (["begin freeze-postgres", "mend"], ["the drill was over"])


def test_the_helper_believes_no_line_that_was_not_signed_for_this_session_or_came_before() -> None:
    with helper() as (drill, ended):
        assert ask(drill, line("go", 1)) == "broken"
        wrong = [line("renew", 1), line("end", 1), line("end", 2, session_key(b"key", "80")), line("renew", 3)[:20]]
        wrong += [b"end -5 x\n", b"end 2\n", b"\n", b"end \xff\xff x\n", b"end " + b"9" * 30 + b" x\n"]
        for one in wrong:
            answer = ask(drill, one if one.endswith(b"\n") else one + b"\n")
            assert answer.startswith("refused"), one
        assert ask(drill, line("go", 2)).startswith("refused: 'go'")
        assert ended == [] and told == ["begin freeze-postgres"]


def test_the_helper_mends_when_the_drill_dies() -> None:
    with helper() as (drill, ended):
        ask(drill, line("go", 1))
    assert ended == ["the drill died"]


def test_the_helper_mends_when_the_drill_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill_helper, "SILENCE_S", 0.3)
    with helper() as (drill, ended):
        ask(drill, line("go", 1))
        assert drill.recv(100) == b"undone\n"
    assert ended[0].startswith("the drill was silent")


def test_the_helper_mends_when_the_time_is_up_whatever_the_drill_says() -> None:
    with helper(for_s=0.5) as (drill, ended):
        ask(drill, line("go", 1))
        number, until = 2, time.monotonic() + 10
        while ask(drill, line("renew", number)) == "ok" and time.monotonic() < until:
            number += 1
    assert ended == ["its time was up"]


def test_the_helper_breaks_nothing_when_nobody_comes_and_says_what_it_cannot_break(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with helper("kill-fence") as (drill, ended):
        assert ask(drill, line("go", 1)) == "failed: fence does not run here"
    assert ended == ["it could not be broken: fence does not run here"]
    monkeypatch.setattr(drill_helper, "GO_S", 0.3)
    with helper() as (_, ended):
        pass
    assert told == ["mend"] and "nothing was broken" in ended[0]


# --- what is broken -----------------------------------------------------------------------------------------------


def test_a_directory_is_not_found_in_the_name_of_another() -> None:
    assert named("/data/n1", ["haproxy", "-f", "/data/n1/conf/haproxy.cfg"])
    assert not named("/data/n1", ["haproxy", "-f", "/data/n10/conf/haproxy.cfg"])


def test_only_packets_of_the_cluster_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill_network, "local", lambda address: address == "192.0.2.1")
    facts = Facts(
        (1, 1),
        "/data",
        "/data/pgdata",
        "/data/run/drill.json",
        peers=("192.0.2.2", "2001:db8::3"),
        etcd=(("192.0.2.1", 2379), ("192.0.2.9", 2379)),
        client_ports=(5432, 6432),
        ports=(5432, 5433, 6432),
    )
    assert rules("cut-etcd", facts) == {
        "iptables": {
            "INPUT": [["-s", "192.0.2.9", "-p", "tcp", "--sport", "2379"]],
            "OUTPUT": [["-d", "192.0.2.9", "-p", "tcp", "--dport", "2379"]],
        }
    }
    assert rules("cut-replication", facts)["ip6tables"] == {
        "INPUT": [["-s", "2001:db8::3"]],
        "OUTPUT": [["-d", "2001:db8::3"]],
    }
    assert rules("cut-clients", facts)["iptables"]["INPUT"] == [
        ["-p", "tcp", "--dport", "5432"],
        ["-p", "tcp", "--dport", "6432"],
    ]
    assert not rules("mute", facts)["iptables"]["INPUT"] and not rules("deaf", facts)["iptables"]["OUTPUT"]
    everything = rules("isolate", facts)["iptables"]["INPUT"]
    assert ["-s", "192.0.2.2"] in everything and ["-p", "tcp", "--dport", "5433"] in everything


def test_what_is_left_behind_is_mended_and_a_damaged_file_runs_no_program(tmp_path: Path) -> None:
    file = tmp_path / "drill.json"
    facts = Facts((1, 1), "/data", "/data/pgdata", str(file))
    assert left_behind(facts) is None
    file.write_text('{"frozen": [[4000000, 7]], "tools": ["iptables", "rm"]}')
    found = left_behind(facts)
    assert found is not None and found.frozen == {(4000000, 7)} and found.tools == ["iptables"]
    file.write_text("[1")
    found = left_behind(facts)
    assert found is not None and found.tools == ["iptables", "ip6tables"]
