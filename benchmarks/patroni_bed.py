"""Patroni on the testbed of our drills: the same namespaces, etcd, PostgreSQL and clients, another agent.

Each node has Patroni, its PostgreSQL on 5433, and HAProxy on 5432, which asks Patroni's REST interface who leads, as in
Patroni's sample configuration but five times as often. Patroni runs as `postgres`, under the system's Python or the
one of the environment that it was installed into.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chaos.places import USUAL, Node, environment
from chaos.target import HEALTHY_S, TestbedError
from chaos.testbed import Plan, Testbed, binaries

REST = 8008
HAPROXY = """\
global
    maxconn 2000
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout check 1s
listen primary
    bind {address}:{port}
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter 600ms fastinter 300ms fall 2 rise 1 on-marked-down shutdown-sessions
"""
# What flypg sets too; everything else is as PostgreSQL or Patroni sets it.
PARAMETERS: Mapping[str, object] = {
    "shared_buffers": "256MB",
    "max_connections": 300,
    "max_wal_senders": 16,
    "max_replication_slots": 16,
    "wal_keep_size": "1GB",
    "wal_compression": "on",
    "wal_log_hints": "on",
    "max_standby_streaming_delay": "5s",
}


@dataclass(frozen=True, slots=True)
class Profile:
    """How Patroni is configured. `mode`: its synchronous_mode; "off" is asynchronous."""

    name: str
    about: str
    ttl: int
    loop_wait: int
    retry_timeout: int
    mode: str
    failsafe: bool


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quorum", "as tight as it allows, quorum-synchronous, failsafe mode", 20, 1, 3, "quorum", True),
        Profile("odd", "a long loop for a short wait, quorum-synchronous, failsafe mode", 20, 14, 3, "quorum", True),
        Profile("async", "as tight as it allows, asynchronous", 20, 1, 3, "off", False),
        Profile("default", "its defaults: asynchronous, no failsafe mode", 30, 10, 10, "off", False),
    )
}


def program() -> Path:
    """Patroni as PATRONI names it, else as installed. Raises TestbedError."""
    told = os.environ.get("PATRONI") or shutil.which("patroni")
    if not told or not Path(told).exists():
        raise TestbedError("Patroni was not found: set PATRONI, or apt-get install patroni")
    return Path(told)


def version() -> str:
    done = subprocess.run([str(program()), "--version"], capture_output=True, text=True, timeout=20)
    found = re.search(r"\d[\d.]*", done.stdout)
    return found[0] if found else "?"


@dataclass(slots=True)
class PatroniNode(Node):
    """Patroni with its PostgreSQL, and an HAProxy that is started with it."""

    routing: tuple[str, ...] = ()  # how HAProxy is started
    router: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        Node.start(self)
        if self.routing and (self.router is None or self.router.poll() is not None):
            self.router = subprocess.Popen(
                self.routing,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def kill(self) -> None:
        Node.kill(self)
        if self.router is not None:
            self.router.kill()
            self.router.wait(timeout=10)


class PatroniBed(Testbed):
    """A running cluster under Patroni."""

    def __init__(self, plan: Plan, profile: Profile, say: Callable[[str], None] = lambda _: None) -> None:
        self.profile = profile
        self._leader = ""
        super().__init__(plan, say)

    def _names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.plan.nodes + 1)]

    def start(self) -> None:
        if self.network is None:
            raise TestbedError("Patroni is measured in namespaces: root is needed")
        self._say(f"starting {self.plan.etcd} etcd and {self.plan.nodes} nodes under Patroni in {self.directory}")
        self._start_etcd()
        places = {name: self._place(name) for name in self._names()}
        addresses = {name: address for name, (address, _) in places.items()}
        for name, (address, before) in places.items():
            self.nodes[name] = self._node(name, address, before, addresses)
        for node in self.nodes.values():
            node.start()
        self.wait_healthy()

    def _node(self, name: str, address: str, before: list[str], addresses: Mapping[str, str]) -> PatroniNode:
        directory = self.directory / name
        directory.mkdir()
        owner = pwd.getpwnam("postgres")
        os.chown(directory, owner.pw_uid, owner.pw_gid)
        node = PatroniNode(name, address, directory, self.directory / f"{name}.log", ports=USUAL)
        node.pgdata = directory / "pgdata"
        node.password = self.secrets["OPERATOR_PASSWORD"]
        config = directory / "patroni.json"  # JSON is YAML
        config.write_text(json.dumps(self._settings_of(name, address, directory)))
        config.chmod(0o600)
        os.chown(config, owner.pw_uid, owner.pw_gid)
        routes = directory / "haproxy.cfg"
        text = HAPROXY.format(address=address, port=USUAL.proxy)
        text += "".join(
            f"    server {other} {where}:{USUAL.postgres} check port {REST}\n" for other, where in addresses.items()
        )
        routes.write_text(text)
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        node.command = [*before, *as_postgres, str(program()), str(config)]
        node.routing = (*before, "haproxy", "-db", "-f", str(routes))
        node.env = environment({"HOME": str(directory)})
        node.env.pop("PYTHONPATH")  # Patroni's Python is not ours
        return node

    def _settings_of(self, name: str, address: str, directory: Path) -> dict[str, object]:
        p = self.profile
        mode: object = {"off": False, "on": True}.get(p.mode, p.mode)
        if mode == "quorum" and version().split(".")[0] < "4":
            mode = True  # an earlier Patroni knows no quorum: one standby is named
        users = {"postgres": "OPERATOR_PASSWORD", "replicator": "REPL_PASSWORD", "rewinder": "SU_PASSWORD"}
        roles = dict(zip(("superuser", "replication", "rewind"), users.items(), strict=True))
        return {
            "scope": self.cluster,
            "name": name,
            "restapi": {"listen": f"{address}:{REST}", "connect_address": f"{address}:{REST}"},
            "etcd3": {"hosts": self.endpoints},
            "bootstrap": {
                "dcs": {
                    "ttl": p.ttl,
                    "loop_wait": p.loop_wait,
                    "retry_timeout": p.retry_timeout,
                    "maximum_lag_on_failover": 1048576,
                    "synchronous_mode": mode,
                    "failsafe_mode": p.failsafe,
                    "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": dict(PARAMETERS)},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"{address}:{USUAL.postgres}",
                "connect_address": f"{address}:{USUAL.postgres}",
                "data_dir": str(directory / "pgdata"),
                "bin_dir": str(binaries()),
                "pgpass": str(directory / "pgpass"),
                "authentication": {
                    kind: {"username": user, "password": self.secrets[key]} for kind, (user, key) in roles.items()
                },
                "pg_hba": ["host all all 0.0.0.0/0 md5", "host replication replicator 0.0.0.0/0 md5"],
                "parameters": {"unix_socket_directories": str(directory)},
            },
            "watchdog": {"mode": "off"},
        }

    # --- what is seen of it ------------------------------------------------------------------------------------------

    @property
    def primary(self) -> Node:
        """Who leads, as etcd says; while etcd is silent, as it last said."""
        told = self.etcdctl("get", "--print-value-only", f"/service/{self.cluster}/leader").strip()
        self._leader = told or self._leader
        if self._leader not in self.nodes:
            raise TestbedError("nobody leads")
        return self.nodes[self._leader]

    def wait_healthy(self, timeout_s: float = HEALTHY_S, nodes: object = None) -> None:
        self._until(self._missing, timeout_s, list(self.nodes.values()))

    def _missing(self) -> str:
        told = self._ask("/cluster")
        members = {str(m["name"]): m for m in told.get("members", [])}
        for name in self.nodes:
            member = members.get(name)
            if member is None:
                return f"{name} is no member"
            if member.get("state") not in ("running", "streaming"):
                return f"{name} is {member.get('state')}"
        roles = [m.get("role") for m in members.values()]
        if roles.count("leader") != 1:
            return "nobody leads"
        if any(m.get("role") != "leader" and m.get("timeline") != _leads(members) for m in members.values()):
            return "a standby is on another timeline"
        if self.profile.mode != "off" and not {"sync_standby", "quorum_standby"} & set(roles):
            return "no standby is synchronous"
        return ""

    def _ask(self, path: str) -> dict[str, list[dict[str, object]]]:
        for node in self.nodes.values():
            try:
                with urllib.request.urlopen(f"http://{node.address}:{REST}{path}", timeout=1) as answer:
                    found: dict[str, list[dict[str, object]]] = json.load(answer)
                    return found
            except (OSError, ValueError):
                continue
        return {}

    def switchover(self) -> None:
        before = self.primary
        request = urllib.request.Request(
            f"http://{before.address}:{REST}/switchover",
            json.dumps({"leader": before.name}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60):
                pass
        except urllib.error.HTTPError as error:
            raise TestbedError(f"switchover: {error.code} {error.read().decode(errors='replace')[:200]}") from error
        until = time.monotonic() + 60
        while self.primary is before:
            if time.monotonic() > until:
                raise TestbedError("no switchover within 60 s")
            time.sleep(0.2)


def _leads(members: Mapping[str, dict[str, object]]) -> object:
    return next((m.get("timeline") for m in members.values() if m.get("role") == "leader"), None)
