"""The cluster that `flypg local up` started, as drills see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos.places import Node, Place
from chaos.processes import Process, descendants, everything, look
from chaos.target import Target
from flypg import local
from flypg.local_layout import HOST, Layout
from flypg.local_processes import recall
from flypg.local_programs import require


@dataclass(slots=True)
class LocalNode(Node):
    """A node whose agent is not our child: it is found by its pid file and started as `flypg local node start` does."""

    layout: Layout | None = None

    @property
    def _set_up(self) -> Layout:
        assert self.layout is not None, "given by LocalCluster"
        return self.layout

    @property
    def agent(self) -> Process | None:
        found = recall(self._set_up.pid_file(self.name))
        return look(found.pid) if found is not None else None

    @property
    def running(self) -> bool:
        return self.agent is not None

    def start(self) -> None:
        self.started_at = time.monotonic()
        local.start_nodes(self._set_up, require(), only=self.name)

    def kill(self) -> None:
        local.kill_node(self._set_up, self.name)

    def all(self) -> list[Process]:
        found = {p.pid: p for p in Node.all(self)}
        agent = self.agent
        if agent is not None:
            found |= {p.pid: p for p in descendants(agent.pid, everything())}
        return list(found.values())


class LocalCluster(Target):
    """A local cluster under drill."""

    def __init__(self, layout: Layout, say: Callable[[str], None]) -> None:
        super().__init__(layout.cluster, say)
        self.secrets = local.passwords(layout)
        for member in layout.etcd():
            directory = layout.etcd_dir(member.name)
            endpoint = f"{HOST}:{member.client}"
            log = layout.log(member.name)
            self.etcd[member.name] = Place(member.name, HOST, directory, log, endpoint)
        for name in layout.names:
            directory = layout.node_dir(name)
            node = LocalNode(name, HOST, directory, layout.log(name), ports=layout.ports(name), layout=layout)
            node.pgdata = Path(layout.environment(name).get("FLYPG_PGDATA", str(directory / "pgdata")))
            node.password = self.secrets["OPERATOR_PASSWORD"]
            self.nodes[name] = node
