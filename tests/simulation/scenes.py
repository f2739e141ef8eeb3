"""Misfortunes in a given order, for bugs that only show when several things go wrong at just the wrong moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.model import NodeId

if TYPE_CHECKING:
    from tests.simulation.sim import Simulation
    from tests.simulation.sim_node import SimNode


@dataclass(frozen=True)
class Scene:
    """When `on` happens ("start", "3 revoking", "n1 rewind"), `after_s` later, `fault` strikes `node` for `for_s`.

    `node`: a name, or a role at that moment: "primary", "leader" (its sentinel leads), or "other"
    (neither n1 nor the primary).
    """

    on: str
    fault: str
    node: str
    for_s: float
    after_s: float = 0.0


class Stage:
    """Plays scenes, each once."""

    def __init__(self, sim: Simulation, scenes: tuple[Scene, ...]) -> None:
        self.sim = sim
        self.left = list(scenes)
        self.open = False

    def happened(self, what: str) -> None:
        if not self.open:
            return
        for scene in [scene for scene in self.left if scene.on == what]:
            self.left.remove(scene)
            self.sim.world.after(scene.after_s, self._play, scene)

    def _play(self, scene: Scene) -> None:
        faults = self.sim.faults
        faults.strike_with(getattr(faults, scene.fault), self._cast(scene.node), scene.for_s)

    def _cast(self, role: str) -> SimNode:
        view = self.sim.store.view
        primary = view.primary if view is not None and view.primary is not None else None
        if role == "primary" and primary is not None:
            return self.sim.nodes[primary]
        leader = self.sim.store.leader
        if role == "leader" and leader is not None:
            return self.sim.nodes[NodeId(leader.sentinel)]
        if role == "other":
            return next(n for n in self.sim.nodes.values() if n.name not in ("n1", primary))
        return next(n for n in self.sim.nodes.values() if n.name == role)
