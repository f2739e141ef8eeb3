"""A cluster that drills can be run against, whoever started it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from chaos.netns import Network
from chaos.places import Node, Place, environment
from chaos.watch import Watcher

HEALTHY_S = 120.0


class TestbedError(Exception):
    """The testbed could not be brought to where a drill can begin; the message carries the last words of its parts."""

    __test__ = False  # for pytest: not a class of tests


class Target:
    """Nodes, etcd members, and what is seen of them."""

    network: Network | None = None  # its cables, when its places have namespaces of their own

    def __init__(self, cluster: str, say: Callable[[str], None] = lambda _: None) -> None:
        self.cluster = cluster
        self.etcd: dict[str, Place] = {}
        self.nodes: dict[str, Node] = {}
        self.secrets: Mapping[str, str] = {}
        self._say = say
        self._watcher: Watcher | None = None

    @property
    def watch(self) -> Watcher:
        """What etcd says, from the first look on."""
        if self._watcher is None:
            self._watcher = Watcher(self.endpoints, self.cluster)
        return self._watcher

    def close(self) -> None:
        """Stop looking."""
        if self._watcher is not None:
            self._watcher.close()

    @property
    def endpoints(self) -> list[str]:
        return [place.endpoint for place in self.etcd.values()]

    def etcdctl(self, *arguments: str, endpoint: str = "", timeout_s: float = 5.0) -> str:
        """Ask etcd, or one member of it; "" when it gives no answer."""
        asked = endpoint or ",".join(self.endpoints)
        command = ["etcdctl", f"--endpoints={asked}", "--command-timeout=2s", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout if done.returncode == 0 else ""

    def flypg(self, *arguments: str, timeout_s: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `flypg` command against this cluster. Raises TestbedError when it fails and `check` is set."""
        env = environment(
            {"FLYPG_ETCD_ENDPOINTS": ",".join(self.endpoints), "FLYPG_CLUSTER": self.cluster, **self.secrets}
        )
        command = [sys.executable, "-m", "flypg", *arguments]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
        if check and done.returncode != 0:
            raise TestbedError(f"flypg {' '.join(arguments)}: exit {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def switchover(self) -> None:
        """Change the primary as an operator does, and wait until it is done."""
        self.flypg("switchover")

    @property
    def primary(self) -> Node:
        view = self.watch.view
        if view is None or view.primary is None:
            raise TestbedError(f"there is no primary: {view.why if view else 'no view yet'}")
        return self.nodes[view.primary]

    @property
    def standbys(self) -> list[Node]:
        primary = self.primary.name
        return [node for node in self.nodes.values() if node.name != primary]

    def wait_healthy(self, timeout_s: float = HEALTHY_S, nodes: Sequence[str] | None = None) -> None:
        """Wait until the cluster (or these nodes of it) is complete again. Raises TestbedError with what is missing."""
        names = list(self.nodes) if nodes is None else list(nodes)

        def missing() -> str:
            for name in names:
                if self.watch.reported_at(name) < self.nodes[name].started_at:
                    return f"{name} has not reported since its start"
            return self.watch.unhealthy(names)

        self._until(missing, timeout_s, [self.nodes[name] for name in names])

    def _until(self, missing: Callable[[], str], timeout_s: float, places: Collection[Place]) -> None:
        until = time.monotonic() + timeout_s
        told = ""
        while why := missing():
            if why != told:
                self._say(f"waiting: {why}")
                told = why
            dead = [place for place in places if place.process is not None and place.process.poll() is not None]
            if dead:
                words = "\n".join(f"--- {place.name}\n{place.last_words()}" for place in dead)
                raise TestbedError(f"{', '.join(place.name for place in dead)} ended by itself; {why}\n{words}")
            if time.monotonic() > until:
                said = [f"\n--- {place.name}\n{words}" for place in places if (words := place.last_words())]
                raise TestbedError(f"not ready after {timeout_s:g} s: {why}{''.join(said)}")
            time.sleep(0.05)
