"""The files around one server: its configuration, its marks, and what they say to an agent that takes over.

Everything is derived from what is on disk here, so an agent that was restarted knows what the one before it had set:
the gate from pg_hba.conf, names and upstream from flypg.conf, the operator's settings from settings.json.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cluster.model import NodeId
from postgres import config as render
from postgres.command import Account
from postgres.config import NOBODY_NAMES, Dynamic, InstanceConfig
from postgres.defaults import machine_defaults, with_least
from postgres.files import (
    fsync_directory,
    make_directory,
    read_or_empty,
    remove,
    same_volume,
    size_bytes,
    write_atomically,
)

MB = 1 << 20
KEPT_LOGS = 5  # files of 10 MB


def machine_memory_mb() -> int:
    """Memory of this machine, or of our cgroup where that is less."""
    limits = []
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 1024)
    own = read_or_empty(Path("/proc/self/cgroup")).strip().rpartition("\n")[2].rpartition(":")[2].lstrip("/")
    group = Path("/sys/fs/cgroup") / own
    while True:
        text = read_or_empty(group / "memory.max").strip() or read_or_empty(group / "memory.limit_in_bytes").strip()
        if text.isdigit():
            limits.append(int(text))
        if group == Path("/sys/fs/cgroup"):
            break
        group = group.parent
    legacy = read_or_empty(Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")).strip()
    if legacy.isdigit():
        limits.append(int(legacy))
    return min(limits) // MB


class ServerFiles:
    """Reads and writes them. Values of the last write are kept in memory."""

    def __init__(self, config: InstanceConfig, me: NodeId, owner: Account | None) -> None:
        self.config = config
        self.me = me
        self.owner = owner
        self.dynamic_path = config.conf / "flypg.conf"
        self.main_path = config.conf / "postgresql.conf"
        self.hba_path = config.conf / "pg_hba.conf"
        self._settings_path = config.conf / "settings.json"
        self._mark_path = config.run / "server.mark"
        for directory in (config.conf, config.run, config.log):
            make_directory(directory, owner=owner, mode=0o755 if directory == config.run else 0o700)
        make_directory(config.pgdata.parent, owner=None, mode=0o755)
        self.dynamic = render.parse_dynamic(read_or_empty(self.dynamic_path))
        self.gate_open = render.parse_gate(read_or_empty(self.hba_path))
        stored = json.loads(read_or_empty(self._settings_path) or "{}")
        self.parameters: tuple[tuple[str, str], ...] = tuple((n, v) for n, v in stored.get("parameters", ()))
        self.hba: tuple[str, ...] = tuple(stored.get("hba", ()))
        self.generation: int = stored.get("generation", 0)
        self.mark: str = read_or_empty(self._mark_path).strip()

    @property
    def fingerprint(self) -> str:
        return render.settings_fingerprint(self.parameters, self.hba)

    def _write(self, path: Path, text: str) -> None:
        write_atomically(path, text, owner=self.owner, durable=False)

    def write_settings(
        self, parameters: Iterable[tuple[str, str]], hba: Iterable[str], *, generation: int | None = None
    ) -> None:
        """Remember the operator's wishes, and write postgresql.conf and pg_hba.conf for them."""
        self.parameters, self.hba = tuple(sorted(parameters)), tuple(hba)
        if generation is not None:
            self.generation = generation
        stored = {"parameters": self.parameters, "hba": self.hba, "generation": self.generation}
        self._write(self._settings_path, json.dumps(stored))
        self.write_main()
        self._write_hba(self.gate_open)

    def write_main(self) -> None:
        self._write(self.main_path, self.main_text(self.parameters))

    def write_tls(self) -> None:
        """What follows the node's TLS, and nothing else."""
        self.write_main()
        self._write_hba(self.gate_open)

    def _write_hba(self, gate_open: bool) -> None:
        everybody = render.ENCRYPTED if self.config.tls.required else render.EVERYBODY
        text = render.render_hba(gate_open=gate_open, lines=self.hba, everybody=everybody)
        self._write(self.hba_path, text)

    def main_text(self, parameters: Iterable[tuple[str, str]]) -> str:
        return render.render_main(self.config, with_least(self._machine_defaults() | dict(parameters), {}))

    def _machine_defaults(self) -> dict[str, str]:
        """WAL that was given a volume of its own is kept within that one."""
        memory_mb = self.config.memory_mb or machine_memory_mb()
        home, wal = self.config.pgdata.parent, self.config.pgdata / "pg_wal"
        apart = wal.exists() and not same_volume(home, wal)
        wal_mb = size_bytes(wal) // MB if apart else None
        return machine_defaults(memory_mb, size_bytes(home) // MB, os.cpu_count() or 1, wal_mb)

    def write_all(self, dynamic: Dynamic, *, gate_open: bool) -> None:
        """Everything a start needs, and postgresql.auto.conf without what is ours."""
        self.gate_open = gate_open
        self.write_settings(self.parameters, self.hba)
        people = {"root", "postgres", pwd.getpwuid(os.geteuid()).pw_name, *self.config.people}
        if self.config.user:
            people.add(self.config.user)
        self._write(self.config.conf / "pg_ident.conf", render.render_ident(people))
        self.write_passfile()
        self.write_dynamic(dynamic)
        auto = self.config.pgdata / "postgresql.auto.conf"
        before = read_or_empty(auto)
        if (kept := render.strip_auto_conf(before)) != before:
            self._write(auto, kept)
        self.prune_logs()

    def write_passfile(self) -> None:
        """For walreceivers, pg_basebackup and pg_rewind: passwords never appear in arguments."""
        self._write(render.passfile(self.config), render.render_passfile(self.config.passwords))

    def write_dynamic(self, dynamic: Dynamic) -> None:
        self._write(self.dynamic_path, render.render_dynamic(self.config, self.me, dynamic))
        self.dynamic = dynamic

    def write_gate(self, *, gate_open: bool) -> None:
        self._write_hba(gate_open)
        self.gate_open = gate_open

    def demands(self, at_least: dict[str, int]) -> tuple[tuple[str, str], ...]:
        """The settings that must be raised on a standby whose control file says `at_least`."""
        ours = self._machine_defaults() | dict(self.parameters)
        builtin = {"max_prepared_transactions": "0", "max_locks_per_transaction": "64"}
        raised = with_least({n: ours.get(n, builtin.get(n, "")) for n in at_least}, at_least)
        return tuple((n, raised[n]) for n in sorted(at_least) if raised[n] != ours.get(n, builtin.get(n)))

    def detached(self) -> Dynamic:
        return replace(self.dynamic, upstream=None)

    def without_rule(self) -> Dynamic:
        """A server that may not acknowledge anything by itself."""
        return Dynamic(NOBODY_NAMES, standing=True)

    def set_mark(self, mark: str) -> None:
        """`started` or `stopped`: was the server's absence asked for?"""
        self.mark = mark
        self._write(self._mark_path, mark)

    def write_signal(self, name: str) -> None:
        write_atomically(self.config.pgdata / name, "", owner=self.owner, durable=True)

    def remove_signals(self) -> None:
        for name in ("standby.signal", "recovery.signal", "promote", "recovery.done"):
            remove(self.config.pgdata / name)
        fsync_directory(self.config.pgdata)

    def prune_logs(self) -> None:
        """Keep the newest log files only; each ends at 10 MB."""
        logs = sorted(self.config.log.glob("postgresql-*.log"), key=lambda p: p.stat().st_mtime)
        for old in logs[:-KEPT_LOGS]:
            remove(old)
