"""Where the state of a cluster lies in etcd. Pure.

    /flypg/<cluster>/events/<revision>-<number>-<writer>    history, bounded; sorts before everything else
    /flypg/<cluster>/nodes/<node>/report                    under the node's lease
    /flypg/<cluster>/nodes/<node>/promise                   no lease
    /flypg/<cluster>/requests/<id>                          what an operator asked for
    /flypg/<cluster>/sentinel/leader                        under the leader's lease
    /flypg/<cluster>/spec                                   the operator's wishes
    /flypg/<cluster>/view                                   what the cluster has agreed on

The history sorts first, so one range from `nodes/` to the end of the prefix reads everything else at one revision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.model import NodeId

CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one cluster."""

    cluster: str

    def __post_init__(self) -> None:
        if not CLUSTER_NAME.match(self.cluster):
            raise ValueError(f"not a cluster name: {self.cluster!r}")

    @property
    def prefix(self) -> str:
        return f"/flypg/{self.cluster}/"

    @property
    def end(self) -> str:
        """The first key after everything of this cluster."""
        return f"/flypg/{self.cluster}0"  # "0" follows "/"

    @property
    def state(self) -> str:
        """Where everything but the history begins; it ends at `end`."""
        return self.prefix + "nodes/"

    @property
    def spec(self) -> str:
        return self.prefix + "spec"

    @property
    def view(self) -> str:
        return self.prefix + "view"

    @property
    def leader(self) -> str:
        return self.prefix + "sentinel/leader"

    def report(self, node: NodeId) -> str:
        return f"{self.prefix}nodes/{node}/report"

    def promise(self, node: NodeId) -> str:
        return f"{self.prefix}nodes/{node}/promise"

    @property
    def requests(self) -> str:
        return self.prefix + "requests/"

    @property
    def requests_end(self) -> str:
        return self.prefix + "requests0"

    def request(self, request: str) -> str:
        return self.requests + request

    @property
    def events(self) -> str:
        return self.prefix + "events/"

    @property
    def events_end(self) -> str:
        return self.prefix + "events0"

    def event(self, revision: int, number: int, writer: str) -> str:
        """A key that sorts after every event its writer had seen at `revision`, and that no other writer uses."""
        return f"{self.events}{revision:020d}-{number:03d}-{writer}"
