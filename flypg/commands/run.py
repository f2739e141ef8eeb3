"""flypg agent, sentinel, config check, version: what runs on a node."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from dataclasses import fields
from importlib import metadata
from pathlib import Path

from cluster import settings
from cluster.clock import SystemClock
from cluster.endpoints import EtcdOptions
from cluster.model import Ports
from cluster.settings import Settings
from flypg.reply import Exit, Reply, done
from flypg.show import columns

SECRET = "(set)"


def _load(args: argparse.Namespace) -> Settings:
    """The settings as an agent reads them; the file is read again on every call, and so at SIGHUP."""
    return settings.load(os.environ, Path(args.config) if args.config else None)


def agent(args: argparse.Namespace) -> Reply:
    """flypg agent: run this node until it is told to end."""
    from agent import daemon  # everything an agent needs is imported only by an agent
    from cluster import logs

    found = _load(args)
    logs.setup(json_lines=found.log_format == "json", level=found.log_level, secrets=found.secrets)
    return Reply(_code(daemon.run(found, lambda: _load(args))))


def sentinel(args: argparse.Namespace) -> Reply:
    """flypg sentinel: run a witness until it is told to end."""
    from cluster import logs
    from cluster.etcd import Etcd
    from cluster.etcd_store import EtcdStore
    from sentinel.daemon import run_witness

    found = _load(args)
    logs.setup(json_lines=found.log_format == "json", level=found.log_level, secrets=found.secrets)

    async def witness() -> int:
        etcd = Etcd(found.etcd)
        store = EtcdStore(etcd, found.cluster, found.node, clock=SystemClock(), sentinel_ttl_s=found.sentinel_ttl_s)
        try:
            return await run_witness(store, found.node, found.sentinel_ttl_s)
        finally:
            await etcd.close()

    return Reply(_code(asyncio.run(witness())))


def _code(code: int) -> Exit:
    return Exit(code) if code in {e.value for e in Exit} else Exit.FAILED


def config_check(args: argparse.Namespace) -> Reply:
    """flypg config check: read the settings, print them without passwords."""
    found = _load(args)
    _check_tls(found)
    rows = settings_rows(found)
    text = columns(["setting", "value"], [list(row) for row in rows])
    missing = [name for name, path in (("PostgreSQL", found.pg_bin_dir), ("HAProxy", found.haproxy)) if path is None]
    if missing:
        text += f"\n\nnot found: {' and '.join(missing)}: an agent would not start, a witness would"
    return done(text, {"settings": dict(rows), "not_found": missing})


def _check_tls(found: Settings) -> None:
    """As an agent does. Raises SettingsError."""
    from agent.tls import read_own, read_settings

    tls = read_settings(found.values)
    if tls.own:
        read_own(tls, time.time())


def settings_rows(found: Settings) -> list[tuple[str, str]]:
    """Every setting in force as text; of a secret only whether it is set. Pure."""
    rows = []
    for field in fields(found):
        value = getattr(found, field.name)
        if field.name == "values":
            continue
        if not field.repr:
            rows.append((field.name, SECRET if value else "(not set)"))
        elif isinstance(value, Ports):
            rows += [(f"port {p.name}", str(getattr(value, p.name))) for p in fields(value)]
        elif isinstance(value, EtcdOptions):
            rows.append(("etcd", ", ".join(str(endpoint) for endpoint in value.endpoints)))
            rows.append(("etcd user", value.user or "(none)"))
        elif isinstance(value, tuple):
            rows.append((field.name, ", ".join(value)))
        else:
            rows.append(
                (
                    field.name,
                    "(none)" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value),
                )
            )
    return rows


def version(args: argparse.Namespace) -> Reply:
    """flypg version: print it."""
    found = metadata.version("flypg")
    return done(f"flypg {found}", {"version": found})
