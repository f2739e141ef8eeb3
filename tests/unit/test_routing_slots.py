"""Slots of a backend: the commands of a switch, step by step."""

from __future__ import annotations

from agent.routing.slots import REFUSING, Slots
from agent.routing.target import Address

A, B, C = (Address(f"10.0.0.{i}", 5433) for i in (1, 2, 3))


def fresh() -> Slots:
    return Slots("pg", ("p1", "p2"))


def test_a_switch_takes_the_other_slot() -> None:
    slots = fresh()
    assert slots.lead([A], [A]) == ["set server pg/p1 addr 10.0.0.1 port 5433", "set server pg/p1 state ready"]
    assert slots.lead([A], [A]) == []
    assert slots.lead([B], [B]) == [
        "set server pg/p1 state maint",
        "set server pg/p2 addr 10.0.0.2 port 5433",
        "set server pg/p2 state ready",
    ]
    assert slots.to_cut([B]) == ["p1"]
    assert slots.cut(["p1"]) == ["shutdown sessions server pg/p1", "set server pg/p1 addr 127.0.0.1 port 1"]
    assert slots.to_cut([B]) == []
    assert slots.opened() == [B]


def test_called_off_means_the_same_slot_again() -> None:
    slots = fresh()
    slots.lead([A], [A])
    assert slots.lead([], [A]) == ["set server pg/p1 state maint"]
    assert slots.to_cut([A]) == [], "its sessions may go on"
    assert slots.lead([A], [A]) == ["set server pg/p1 state ready"]


def test_a_third_server_within_the_delay_cuts_the_first_at_once() -> None:
    slots = fresh()
    slots.lead([A], [A])
    slots.lead([B], [B])
    commands = slots.lead([C], [C])
    assert commands[0] == "set server pg/p2 state maint"
    assert "shutdown sessions server pg/p1" in commands
    assert slots.opened() == [C]


def test_more_servers_than_slots_are_left_out() -> None:
    slots = fresh()
    slots.lead([A, B, C], [A, B, C])
    assert slots.opened() == [A, B]


def test_learns_what_haproxy_says() -> None:
    line = "4 pg 1 {} {} {} {} 1 1 10 1 0 0 0 0 0 0 - {} - 0 0 - - 0"
    slots = fresh()
    slots.learn(
        "\n".join(["1", "# be_id …", line.format("p1", A.host, 0, 1, A.port), line.format("p2", B.host, 2, 0, B.port)])
    )
    assert slots.opened() == [B]
    assert slots.to_cut([B]) == ["p1"]
    slots.learn(line.format("p1", REFUSING.host, 0, 1, REFUSING.port))
    assert slots.opened() == [] and slots.to_cut([]) == []
