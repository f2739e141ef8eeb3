"""Clients that write all the time: through the routes of the nodes (old ones too), and straight to any open server."""

from __future__ import annotations

from collections.abc import Callable

from cluster.model import NodeId
from tests.simulation.server import Ledger, Server
from tests.simulation.world import World


class Clients:
    """Writers without patience: each write is sent and forgotten; what counts is what a server acknowledged."""

    def __init__(self, world: World, ledger: Ledger, route: Callable[[NodeId], NodeId | None]) -> None:
        self.world = world
        self.ledger = ledger
        self.route = route
        self.every_s = 0.15
        self.nodes = list(ledger.servers)
        self.invoked = 0
        self.acknowledged = 0
        self.last_acknowledged_at = 0.0
        self.longest_gap_s = 0.0  # between two acknowledgements

    def start(self) -> None:
        self.world.after(0.1, self._write)

    def _write(self) -> None:
        world = self.world
        world.after(self.every_s * (0.2 + 1.6 * world.random.random()), self._write)
        home = world.random.choice(self.nodes)
        targets = [self.route(home)] if world.chance(0.5) else list(self.nodes)
        for target in targets:
            if target is not None and world.talk(home, target):
                server = self.ledger.servers[target]
                if server.gate_open and server.writable:
                    server.ice.call(self._arrive, server, server.run)

    def _arrive(self, server: Server, run: int) -> None:
        if server.run == run and server.gate_open and server.writable:
            self.invoked += 1
            server.insert("client", self._returned)

    def _returned(self, count: int) -> None:
        self.acknowledged += 1
        self.longest_gap_s = max(self.longest_gap_s, self.world.now - self.last_acknowledged_at)
        self.last_acknowledged_at = self.world.now
