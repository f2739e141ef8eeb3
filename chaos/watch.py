"""What happens in etcd, with the moment it became visible: the source of a drill's phases.

One `etcdctl watch` from the first revision on: it costs nothing while nothing happens, survives the loss of members,
and is another client than the one under test. During a full outage of etcd it is blind, and catches up afterwards.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TypeVar

from cluster.codec import decode
from cluster.keys import Keys
from cluster.model import Event, NodeId, NodeReport, Phase, Promise, ServerState, Spec, View

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """A key that changed. `value` None: it is gone."""

    at: float  # monotonic, when it became visible here
    key: str
    value: bytes | None


# a drill that is killed leaves no watch behind; it is tied to the thread that started it
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


class Watcher:
    """The state of one cluster in etcd, and every change since the watcher began."""

    def __init__(
        self, endpoints: Sequence[str], cluster: str, *, env: Mapping[str, str] | None = None, whole: bool = True
    ) -> None:
        """`env`: what lets etcdctl in; None: ours. `whole`: from the first revision on, which etcd must still
        have; else from now on."""
        self._env = dict(env) if env is not None else None
        self._whole = whole
        self.keys = Keys(cluster)
        self._endpoints = ",".join(endpoints)
        self._lock = threading.Lock()
        self._changes: list[Change] = []
        self._state: dict[str, bytes] = {}
        self._written: dict[str, float] = {}
        self._revision = 1
        self._closing = False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            if not self._whole and not self._load():
                time.sleep(0.2)
                continue
            command = ["etcdctl", f"--endpoints={self._endpoints}", "watch", "--prefix", self.keys.prefix]
            with subprocess.Popen(
                [*DIES_WITH_US, *command, f"--rev={self._revision}", "-w", "json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._env,
                text=True,
            ) as self._process:
                if self._closing:
                    self._process.kill()
                assert self._process.stdout is not None, "it was asked for"
                self._read(self._process.stdout)
            if not self._closing:
                time.sleep(0.2)

    def _load(self) -> bool:
        """Read everything as it is now; what is new counts as changed now, but for the history before our time."""
        command = ["etcdctl", f"--endpoints={self._endpoints}", "get", "--prefix", self.keys.prefix, "-w", "json"]
        try:
            done = subprocess.run(
                command, env=self._env, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL
            )
            answer = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError):
            return False
        now, first = time.monotonic(), self._revision == 1
        with self._lock:
            there = set()
            for entry in answer.get("kvs") or []:
                key = base64.b64decode(entry["key"]).decode()
                there.add(key)
                if not (first and key.startswith(self.keys.events)):
                    self._apply({"kv": entry}, now)
            for key in self._state.keys() - there:
                self._changes.append(Change(now, key, None))
                del self._state[key]
            self._revision = int(answer["header"]["revision"]) + 1
        return True

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            now = time.monotonic()
            try:
                answer = json.loads(line)
                revision = int(answer["Header"]["revision"])
            except (ValueError, KeyError, TypeError):  # cut short, or etcd's last words: the watch is taken up again
                if self._process is not None:
                    self._process.kill()
                return
            with self._lock:
                for event in answer.get("Events") or []:
                    self._apply(event, now)
                self._revision = max(self._revision, revision + 1)

    def _apply(self, event: dict[str, object], now: float) -> None:
        entry = event["kv"]
        assert isinstance(entry, dict), "etcdctl prints the key of every event"
        if int(entry.get("mod_revision", 0)) < self._revision:
            return  # seen before the watch was taken up again
        key = base64.b64decode(str(entry["key"])).decode()
        value = None if event.get("type") == 1 else base64.b64decode(str(entry.get("value", "")))
        self._changes.append(Change(now, key, value))
        self._written[key] = now
        if value is None:
            self._state.pop(key, None)
        else:
            self._state[key] = value

    def close(self) -> None:
        self._closing = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._thread.join(timeout=5)

    def changes(self) -> list[Change]:
        with self._lock:
            return list(self._changes)

    def _value(self, kind: type[T], key: str) -> T | None:
        with self._lock:
            value = self._state.get(key)
        return decode(kind, value, key) if value is not None else None  # type: ignore[type-var]

    @property
    def view(self) -> View | None:
        return self._value(View, self.keys.view)

    @property
    def spec(self) -> Spec | None:
        return self._value(Spec, self.keys.spec)

    def report(self, node: str) -> NodeReport | None:
        return self._value(NodeReport, self.keys.report(NodeId(node)))

    def reported_at(self, node: str) -> float:
        """When a node's report was last seen to change; 0 when it never was."""
        with self._lock:
            return self._written.get(self.keys.report(NodeId(node)), 0.0)

    @property
    def leader(self) -> str:
        """The raw value of the leader's key; "" when nobody leads."""
        with self._lock:
            return self._state.get(self.keys.leader, b"").decode(errors="replace")

    def views(self, since: float = 0.0) -> list[tuple[float, View]]:
        """Every view since then, with the moment it became visible."""
        return [
            (c.at, decode(View, c.value, c.key))
            for c in self.changes()
            if c.key == self.keys.view and c.value is not None and c.at >= since
        ]

    def reports(self, since: float = 0.0) -> list[tuple[float, NodeReport]]:
        return [
            (c.at, decode(NodeReport, c.value, c.key))
            for c in self.changes()
            if c.key.endswith("/report") and c.value is not None and c.at >= since
        ]

    def promises(self, since: float = 0.0) -> list[tuple[float, Promise]]:
        return [
            (c.at, decode(Promise, c.value, c.key))
            for c in self.changes()
            if c.key.endswith("/promise") and c.value is not None and c.at >= since
        ]

    def events(self, since: float = 0.0) -> list[tuple[float, Event]]:
        return [
            (c.at, decode(Event, c.value, c.key))
            for c in self.changes()
            if c.key.startswith(self.keys.events) and c.value is not None and c.at >= since
        ]

    def unhealthy(self, nodes: Sequence[str]) -> str:
        """Why these nodes are not yet a healthy cluster; "" when they are: open, all standbys stream and vote."""
        view = self.view
        if view is None:
            return "no view yet"
        if view.phase is not Phase.OPEN or view.primary is None:
            return f"term {view.term} is {view.phase}: {view.why}"
        reports = {node: self.report(node) for node in nodes}
        for node, report in reports.items():
            if report is None:
                return f"{node} does not report"
            wanted = ServerState.PRIMARY if node == view.primary else ServerState.STANDBY
            if report.state is not wanted:
                return f"{node} is {report.state}, not {wanted}: {report.problem}"
            if node != view.primary and not (report.streaming and report.following is not None):
                return f"{node} does not stream: {report.problem}"
            if report.term != view.term:
                return f"{node} acts on term {report.term}, not {view.term}"
        return _unprotected(view, reports, nodes)


def _unprotected(view: View, reports: dict[str, NodeReport | None], nodes: Sequence[str]) -> str:
    """Why the rule is not yet what these nodes allow."""
    primary = view.member(view.primary)
    mine = reports.get(view.primary or "")
    may_vote = {
        m.node
        for m in view.members
        if m.node in nodes and m.node != view.primary and not m.nosync and primary and m.region == primary.region
    }
    rule = view.rule
    if len(view.rules) != 1 or rule is None:
        return f"the rule is changing: {' and '.join(map(str, view.rules))}"
    if not may_vote <= rule.voters:
        return f"{', '.join(sorted(may_vote - rule.voters))} not yet in the rule {rule}"
    if mine is None or mine.applied != rule:
        return f"the primary does not run {rule} yet"
    return ""
