"""Drills against a live cluster: who may, what they break, and that it mends itself when the drill dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos.places import environment
from chaos.processes import look
from chaos.remote import Held, Refused, Remote
from chaos.testbed import Plan, Testbed
from chaos.wire import connect
from cluster.drill_orders import Order, key_of, order_tag, session_key, tag, write_order
from tests.support.drills import testbed

ON = {"FLYPG_DRILLS": "on"}


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with testbed(Plan(etcd=1, env=ON, node_env={"n3": {"FLYPG_DRILLS": "off"}})) as made:
        yield made


def command(bed: Testbed, *arguments: str, **env: str) -> subprocess.Popen[str]:
    settings = {
        "FLYPG_ETCD_ENDPOINTS": ",".join(bed.endpoints),
        "FLYPG_CLUSTER": bed.cluster,
        "OPERATOR_PASSWORD": bed.secrets["OPERATOR_PASSWORD"],
    }
    return subprocess.Popen(
        [sys.executable, "-m", "flypg", "drill", "run", *arguments, "--cluster"],
        env=environment(settings | env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def drilled(bed: Testbed, *arguments: str, **env: str) -> tuple[int, str, str]:
    process = command(bed, *arguments, **env)
    out, told = process.communicate(timeout=240)
    print(told, out, flush=True)
    return process.returncode, out, told


def until(what: Callable[[], object], within_s: float = 90.0) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, f"not within {within_s:g} s"
        time.sleep(0.02)


def remote(bed: Testbed, name: str, password: str = "") -> Remote:
    node = bed.nodes[name]
    key = key_of(password or bed.secrets["OPERATOR_PASSWORD"], bed.cluster)
    return Remote(name, node.address, node.ports.http, key, "", "a test")


def frozen(bed: Testbed) -> bool:
    return any(p.state == "T" for node in bed.nodes.values() for p in node.postgres())


def databases(bed: Testbed) -> list[str]:
    wire = connect(bed.primary.direct, timeout_s=10)
    try:
        return [name for (name,) in wire.execute("SELECT datname FROM pg_database", timeout_s=10)]
    finally:
        wire.close()


def history(bed: Testbed) -> str:
    return "\n".join(event.text for _, event in bed.watch.events())


def test_nothing_is_broken_while_one_node_has_them_switched_off(bed: Testbed) -> None:
    code, _, told = drilled(bed, "kill-postmaster")
    assert code == 3 and "drills are switched off on n3: set FLYPG_DRILLS=on" in told
    node = bed.nodes["n3"]
    assert node.process is not None
    node.process.send_signal(signal.SIGUSR1)  # its PostgreSQL runs on
    node.process.wait(timeout=30)
    node.env["FLYPG_DRILLS"] = "on"
    node.start()
    bed.wait_healthy()


def test_who_does_not_know_the_password_breaks_nothing(bed: Testbed) -> None:
    code, _, told = drilled(bed, "kill-postmaster", OPERATOR_PASSWORD="guessed")
    assert code == 3 and "not signed with the OPERATOR_PASSWORD of n1" in told
    with pytest.raises(Refused, match="not signed"):
        remote(bed, "n2", "guessed").begin("kill-postmaster", 5)
    assert "kill-postmaster" not in history(bed)


def test_an_order_counts_once_on_one_node_and_only_as_it_was_signed(bed: Testbed) -> None:
    asker = remote(bed, "n1")
    text = write_order(Order("freeze-haproxy", 5, "a test"))
    nonce = asker._challenge()
    body = {"nonce": nonce, "text": text, "tag": order_tag(asker.key, "begin", "n1", nonce, text)}
    assert asker._post("begin", body)["port"] > 0  # nobody comes to the port: nothing is broken
    with pytest.raises(Refused, match="used up"):
        asker._post("begin", body)
    with pytest.raises(Refused, match=r"under way on n1: freeze-haproxy for at most 5 s, asked by a test"):
        asker.begin("kill-fence", 5)
    elsewhere = remote(bed, "n2")
    nonce = elsewhere._challenge()
    with pytest.raises(Refused, match="not signed"):
        elsewhere._post("begin", {**body, "nonce": nonce, "tag": order_tag(asker.key, "begin", "n1", nonce, text)})
    nonce = elsewhere._challenge()
    with pytest.raises(Refused, match="not signed"):
        other = write_order(Order("kill-node", 60, "a test"))
        elsewhere._post(
            "begin", {"nonce": nonce, "text": other, "tag": order_tag(asker.key, "begin", "n2", nonce, text)}
        )
    for asked, why in (("kill-everything", "no fault"), ("kill-fence", "from 1 to 60")):
        with pytest.raises(Refused, match=why):
            elsewhere.begin(asked, 61)
    with pytest.raises(Refused, match="body must be"):
        elsewhere._post("begin", {"nonce": nonce})
    until(lambda: free(asker))


def free(node: Remote) -> bool:
    """Is no drill under way there? Leaves none."""
    try:
        node.begin("freeze-haproxy", 5).end()
    except Refused:
        return False
    return True


def test_a_line_that_was_overheard_is_worth_nothing(bed: Testbed) -> None:
    asker = remote(bed, "n2")
    nonce = asker._challenge()
    text = write_order(Order("freeze-haproxy", 20, "a test"))
    port = asker._signed("begin", nonce, text)["port"]
    held = Held(asker, "freeze-haproxy", port, session_key(asker.key, nonce))
    with pytest.raises(Refused, match="signed by this drill"):
        Held(asker, "freeze-haproxy", port, session_key(asker.key, nonce))  # the same `go` once more
    with pytest.raises(Refused, match="signed by this drill"):
        Held(asker, "freeze-haproxy", port, tag(b"guessed", "session"))
    assert all(p.state == "T" for p in bed.nodes["n2"].helpers("haproxy"))
    held.end()
    assert not any(p.state == "T" for p in bed.nodes["n2"].helpers("haproxy"))


def test_what_a_killed_drill_has_frozen_wakes_by_itself(bed: Testbed) -> None:
    before = bed.primary.name
    process = command(bed, "freeze-postgres")
    try:
        until(lambda: frozen(bed))
    finally:
        process.send_signal(signal.SIGKILL)
        print(process.communicate(timeout=10))
    until(lambda: not frozen(bed), 20)
    bed.wait_healthy()
    assert f"drill: freeze-postgres on {before} for at most 42 s, asked by" in history(bed)
    until(lambda: f"drill: freeze-postgres on {before}: undone, the drill died" in history(bed))


def test_what_a_killed_helper_has_frozen_its_agent_wakes(bed: Testbed) -> None:
    held = remote(bed, "n3").begin("freeze-pgbouncer", 30)
    helper = next(p for p in bed.nodes["n3"].all() if any("drill_helper" in word for word in p.argv))
    assert any(p.state == "T" for p in bed.nodes["n3"].helpers("pgbouncer"))
    os.kill(helper.pid, signal.SIGKILL)
    until(lambda: not any(p.state == "T" for p in bed.nodes["n3"].helpers("pgbouncer")))
    with pytest.raises(Refused, match="before the drill was over"):
        held.end()


def test_an_agent_that_is_frozen_is_woken_and_one_that_is_killed_is_started_again(bed: Testbed) -> None:
    node = bed.standbys[0]
    first = node.agent
    assert first is not None
    held = remote(bed, node.name).begin("freeze-agent", 30)
    assert (now := look(first.pid)) is not None and now.state == "T"
    held._socket.close()  # as when the drill is killed
    until(lambda: (now := look(first.pid)) is not None and now.state != "T", 10)
    bed.wait_healthy()
    told = remote(bed, node.name).begin("kill-agent", 30).end()
    word, _, pid = told.partition(" ")
    try:
        assert word == "agent" and int(pid) != first.pid
        until(lambda: bed.watch.unhealthy(list(bed.nodes)) == "", 60)
    finally:
        os.kill(int(pid), signal.SIGUSR1)
        assert node.process is not None
        node.process.wait(timeout=10)
        until(lambda: look(int(pid)) is None, 30)
        node.start()
        bed.wait_healthy()


def test_a_used_cluster_is_broken_only_when_its_owner_says_so(bed: Testbed) -> None:
    wire = connect(bed.primary.direct, timeout_s=10)
    wire.execute("CREATE DATABASE shop", timeout_s=20)
    wire.close()
    code, _, told = drilled(bed, "switchover", "kill-etcd")
    assert code == 3 and "shop" in told and "switchover" in told and "--yes" in told
    bed.flypg("pause")
    code, _, told = drilled(bed, "switchover", "--yes")
    assert code == 3 and "paused" in told
    bed.flypg("resume")


@pytest.mark.timeout(300)  # four drills; the pooler may take a minute to let anybody into a new database
def test_drills_pass_and_leave_nothing(bed: Testbed, tmp_path: Path) -> None:
    files = [f"--junit={tmp_path}/j.xml", f"--html={tmp_path}/r.html", f"--output={tmp_path}/r.json"]
    wanted = ("kill-postmaster", "switchover", "kill-standby", "restart-agent")
    code, out, _ = drilled(bed, *wanted, "kill-etcd", "fill-wal", "--yes", "--json", *files)
    found = json.loads(out)
    for result in found["results"]:
        bad = [v for v in result["verdicts"] if v["ok"] is False and v["checker"] not in ("outage", "pooled clients")]
        assert not bad, bad
        assert result["lost"] == 0 and result["acknowledged"] > 50
    assert tuple(r["drill"] for r in found["results"]) == wanted
    assert set(found["skipped"]) == {"kill-etcd", "fill-wal"} and not found["problem"]
    assert code == (0 if found["passed"] else 1)
    assert all((tmp_path / name).stat().st_size for name in ("j.xml", "r.html", "r.json"))
    assert "flypg_drill" not in databases(bed) and "shop" in databases(bed)


def test_nodes_that_share_a_network_are_not_cut_off(bed: Testbed) -> None:
    offer = remote(bed, "n1").offer()
    assert offer["isolate"] in (
        "the node shares its network with another node",
        "the agent may not change the firewall: it needs root or the capability NET_ADMIN",
    )
    assert offer["kill-node"] == offer["freeze-fence"] == ""


def test_a_node_that_was_cut_off_comes_back_when_the_drill_dies() -> None:
    with testbed(Plan(namespaces=True, env=ON)) as bed:
        victim = bed.primary
        rules = [*bed.network.inside(victim.name), "iptables", "-S"] if bed.network is not None else []

        def firewall() -> str:
            return subprocess.run(rules, capture_output=True, text=True, check=True).stdout

        asker = remote(bed, victim.name)
        assert not [fault for fault, why in asker.offer().items() if why]
        for fault in ("cut-etcd", "cut-clients", "cut-replication", "lossy", "deaf", "mute"):
            held = asker.begin(fault, 20)
            assert "DROP" in firewall(), fault
            held.end()
            assert "flypg-drill" not in firewall(), fault
        bed.wait_healthy()
        held = asker.begin("isolate", 60)
        until(lambda: bed.watch.view is not None and bed.watch.view.primary not in (None, victim.name), 40)
        assert not held.lost, "a node that is cut off still hears its drill"
        held._socket.close()  # as when the drill is killed
        until(lambda: "flypg-drill" not in firewall(), 10)
        bed.wait_healthy()
