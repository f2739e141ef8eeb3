"""Cables that are cut, in one direction or both, by dropping packets where a place is plugged in. Each needs a testbed
with namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chaos.netns import Network
from chaos.places import Node
from chaos.target import Target, TestbedError

Undo = Callable[[], None]


def network_of(bed: Target) -> Network:
    if bed.network is None:
        raise TestbedError("this fault cuts cables: it needs a testbed with namespaces")
    return bed.network


def isolate(bed: Target, node: Node) -> Undo:
    network = network_of(bed)
    network.drop(node.name, chain="INPUT")
    network.drop(node.name, chain="OUTPUT")
    return lambda: network.heal(node.name)


def deaf(bed: Target, node: Node) -> Undo:
    network = network_of(bed)
    network.drop(node.name, chain="INPUT")
    return lambda: network.heal(node.name)


def mute(bed: Target, node: Node) -> Undo:
    network = network_of(bed)
    network.drop(node.name, chain="OUTPUT")
    return lambda: network.heal(node.name)


def cut_from(network: Network, place: str, others: Iterable[str]) -> None:
    for address in others:
        network.drop(place, chain="INPUT", match=["-s", address])
        network.drop(place, chain="OUTPUT", match=["-d", address])


def cut_etcd(bed: Target, node: Node) -> Undo:
    network = network_of(bed)
    cut_from(network, node.name, [member.address for member in bed.etcd.values()])
    return lambda: network.heal(node.name)


def cut_replication(bed: Target, node: Node) -> Undo:
    network = network_of(bed)
    cut_from(network, node.name, [other.address for other in bed.nodes.values() if other.name != node.name])
    return lambda: network.heal(node.name)


def cut_clients(bed: Target, node: Node) -> Undo:
    network = network_of(bed)
    cut_from(network, node.name, [network.host_address])
    return lambda: network.heal(node.name)


def lossy(bed: Target, node: Node) -> Undo:
    network = network_of(bed)
    network.lose(node.name, 0.2)
    return lambda: network.heal(node.name)


def bridge(bed: Target, node: Node) -> Undo:
    """Both still see everybody else, and etcd."""
    network, standby = network_of(bed), bed.standbys[0]
    cut_from(network, standby.name, [node.address])
    return lambda: network.heal(standby.name)


def halves(bed: Target, node: Node) -> Undo:
    """On one side this node and one member of etcd, on the other everybody else. Clients see both sides."""
    network = network_of(bed)
    if len(bed.etcd) < 3:
        raise TestbedError("halves needs three members of etcd: the other side must have a majority")
    side = [node.name, next(iter(bed.etcd))]
    others = [address for name, address in network.places.items() if name not in side]
    for name in side:
        cut_from(network, name, others)

    def undo() -> None:
        for name in side:
            network.heal(name)

    return undo
