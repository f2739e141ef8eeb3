"""flypg local: a whole cluster on this machine, for trying it out, for drills and for tests."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import sys
import time
from pathlib import Path

from cluster.store import OperatorStore
from flypg import local
from flypg.commands.change import confirm
from flypg.commands.status import once, terminal_style
from flypg.local_layout import DEFAULT_NODES, DEFAULT_PORT_BASE, HOST, Layout
from flypg.local_log import readable, tail
from flypg.local_processes import running_from
from flypg.local_programs import require
from flypg.local_wait import wait_healthy
from flypg.parsing import nearest
from flypg.progress import Progress
from flypg.reply import BadInput, Exit, Reply, done
from flypg.show import columns
from flypg.target import connected, local_target

LOWEST_BASE = 1100  # etcd's ports lie below it, and all of them above those only root may use
HIGHEST_NODES = 50
LENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def up(args: argparse.Namespace) -> Reply:
    """Start what is not running, wait until the cluster is healthy, say what to try next."""
    root = local.root_of(args.dir)
    layout = wanted_layout(args, root, local.load(root))
    programs = require()
    progress = Progress()
    with contextlib.suppress(OSError, ValueError):
        if args.port_base and (note := layout.lent_out(LENT_PORTS.read_text())):
            progress.done(note)
    for name in layout.names:
        local.check_settings(layout, name)
    local.prepare(layout, programs)
    with local.locked(root):
        local.check_ports(layout)
        local.save(layout)
        already = [m.name for m in [*local.etcd_members(layout), *local.nodes(layout)] if m.process is not None]
        everything = len(already) == layout.etcd_members + layout.nodes
        if not everything:
            local.start_etcd(layout, programs, progress)
            if args.from_snapshot:
                from flypg.local_restore import restore_first_node

                restore_first_node(args, layout, programs.user, progress)
            started = local.start_nodes(layout, programs)
            if started:
                progress.done(f"started {', '.join(started)}")
        return asyncio.run(
            connected(local_target(layout), lambda store: _settle(args, store, layout, progress, everything))
        )


def wanted_layout(args: argparse.Namespace, root: Path, found: Layout | None) -> Layout:
    """The cluster that the options describe, on top of the one that is there. Raises BadInput when they clash."""
    extra = tuple(sorted(_setting(text) for text in args.set))
    if found is None:
        layout = Layout(
            root,
            args.nodes or DEFAULT_NODES,
            args.etcd_members or 1,
            args.port_base or DEFAULT_PORT_BASE,
            settings=extra,
        )
        if layout.etcd_members not in (1, 3, 5):
            raise BadInput(f"--etcd-members {layout.etcd_members}: etcd needs an odd number, 1, 3 or 5")
        if layout.nodes > HIGHEST_NODES:
            raise BadInput(f"--nodes {layout.nodes}: at most {HIGHEST_NODES} on one machine")
        if layout.port_base < LOWEST_BASE or layout.port_base + 100 * layout.nodes > 65535:
            highest = 65535 - 100 * layout.nodes
            raise BadInput(f"--port-base {layout.port_base}: must be from {LOWEST_BASE} to {highest}")
        if problem := layout.too_long():
            raise BadInput(problem)
        return layout
    for option, asked, has in (
        ("--etcd-members", args.etcd_members, found.etcd_members),
        ("--port-base", args.port_base, found.port_base),
        ("--set", extra or None, found.settings),
    ):
        if asked is not None and asked != has:
            raise BadInput(
                f"{option}: the cluster in {root} was set up with other values; leave it out, choose another --dir, or"
                " begin anew: flypg local down --destroy"
            )
    return local.grown(found, args.nodes)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or name != name.upper():
        raise BadInput(f"--set {text}: expected NAME=VALUE, for example FLYPG_LEASE_TTL_S=10")
    if "PASSWORD" in name:
        raise BadInput(f"--set {name}: passwords are kept in secrets.json of the cluster's directory")
    return name, value


async def _settle(
    args: argparse.Namespace, store: OperatorStore, layout: Layout, progress: Progress, everything: bool
) -> Reply:
    said = f"the cluster in {layout.root} was running already" if everything else "started"
    if args.no_wait:
        return done(f"{said}; follow it with: flypg status --watch")
    began = time.monotonic()
    lacking = await wait_healthy(store, layout, progress, args.wait)
    if lacking:
        dead = [node.name for node in local.nodes(layout) if node.process is None]
        text = f"not healthy: {lacking}"
        if dead:
            text += f"\n{tail(layout.log(dead[0]), 12)}"
            return Reply(Exit.FAILED, text)
        return Reply(
            Exit.TIMED_OUT, f"{text}\n(after {args.wait:g} s; it goes on in the background: flypg status --watch)"
        )
    if everything:
        progress.done(f"{said}, and is healthy")
    else:
        progress.done(f"healthy, {time.monotonic() - began:.1f} s after the agents were started")
    look = argparse.Namespace(events=3, json=False)
    status_reply = await once(look, store, local_target(layout), terminal_style())
    return done(f"\n{status_reply.text}\n\n{next_steps(layout, args.dir)}")


def next_steps(layout: Layout, named: str | None) -> str:
    """Connection strings, and what to try."""
    me = _command()
    where = f" --dir {shlex.quote(str(layout.root))}" if named else ""
    first = layout.ports(layout.names[0])
    user = f"postgresql://postgres@{HOST}"
    victim = layout.names[0]
    return "\n".join(
        [
            "connect (the password is in the environment below)",
            f"  read and write  {user}:{first.proxy}/postgres   always leads to the primary",
            f"  read only       {user}:{first.read}/postgres   leads to standbys",
            f"  pooled          {user}:{first.pooler}/postgres",
            "try",
            f'  eval "$({me} local env{where})"; psql -c "select pg_is_in_recovery(), inet_server_port()"',
            f"  {me} status{where} --watch",
            f"  {me} switchover{where}",
            f"  {me} local node kill {victim}{where}; {me} local node start {victim}{where}",
            f"  {me} why{where}",
            f"  {me} local down{where}",
        ]
    )


def _command() -> str:
    """How this program was called, if that works again from here."""
    called = Path(sys.argv[0])
    if called.name == "flypg":
        relative = os.path.relpath(called)
        return relative if len(relative) < len(str(called)) else str(called)
    return ".venv/bin/flypg" if Path(".venv/bin/flypg").exists() else "flypg"


def _existing(args: argparse.Namespace) -> Layout:
    root = local.root_of(args.dir)
    layout = local.load(root)
    if layout is None:
        raise BadInput(f"there is no local cluster in {root}; start one with: flypg local up")
    return layout


def down(args: argparse.Namespace) -> Reply:
    """Stop the nodes, standbys first so that nothing is handed over needlessly, then etcd."""
    root = local.root_of(args.dir)
    layout = local.load(root)
    if layout is None:
        return done(f"there is no local cluster in {root}; nothing to do")
    if args.destroy and not args.yes:
        confirm(f"All data of the cluster in {root} is removed, its snapshots too.", typed="destroy", unless="--yes")
    progress = Progress()
    with local.locked(root):
        ran = local.stop_everything(layout, progress)
        if args.destroy:
            local.destroy(layout)
    progress.clear()
    stopped = f"stopped {', '.join(ran)}" if ran else "nothing was running"
    kept = "; its data is removed" if args.destroy else f"; data is kept in {root}, `flypg local up` starts it again"
    return done(stopped + kept)


def status(args: argparse.Namespace) -> Reply:
    layout = _existing(args)
    rows, data = [], []
    for member, etcd in zip(local.etcd_members(layout), layout.etcd(), strict=True):
        pid = member.process.pid if member.process else None
        rows.append(
            [member.name, "etcd", _running(pid), str(pid or "-"), str(etcd.client), str(layout.log(member.name))]
        )
        data.append({"name": member.name, "kind": "etcd", "running": pid is not None, "pid": pid, "port": etcd.client})
    for node in local.nodes(layout):
        pid = node.process.pid if node.process else None
        ports = layout.ports(node.name)
        state = _running(pid)
        if pid is None and running_from(layout.node_dir(node.name)):
            state = "agent dead, servers run"
        rows.append([node.name, "node", state, str(pid or "-"), str(ports.proxy), str(layout.log(node.name))])
        data.append({"name": node.name, "kind": "node", "running": pid is not None, "pid": pid, "port": ports.proxy})
    table = columns(["name", "kind", "state", "pid", "port", "log"], rows)
    return done(f"local cluster in {layout.root}\n\n{table}", {"dir": str(layout.root), "processes": data})


def _running(pid: int | None) -> str:
    return "running" if pid is not None else "stopped"


def env(args: argparse.Namespace) -> Reply:
    """Print what a client needs, for `eval`."""
    layout = _existing(args)
    running = [node.name for node in local.nodes(layout) if node.process is not None]
    name = _node(layout, args.node) if args.node else (running or layout.names)[0]
    values = {
        "PGHOST": HOST,
        "PGPORT": str(layout.ports(name).proxy),
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
        "PGPASSWORD": local.passwords(layout)["OPERATOR_PASSWORD"],
    }
    return done("\n".join(f"export {key}={shlex.quote(value)}" for key, value in values.items()))


def logs(args: argparse.Namespace) -> Reply:
    layout = _existing(args)
    known = [*layout.names, *(m.name for m in layout.etcd())]
    if args.name not in known:
        near = nearest(args.name, known)
        raise BadInput(
            f"{args.name}: no such process" + (f"; did you mean {near}?" if near else "") + f" ({', '.join(known)})"
        )
    file = layout.log(args.name)
    if not args.follow:
        return done(tail(file, args.lines))
    print(tail(file, args.lines), flush=True)
    with file.open("r", errors="replace") as log:
        log.seek(0, os.SEEK_END)
        while True:
            if line := log.readline():
                print(readable(line), flush=True)
            else:
                time.sleep(0.2)


def _node(layout: Layout, name: str) -> str:
    if name not in layout.names:
        raise BadInput(f"no node {name!r} in the cluster in {layout.root}; it has {', '.join(layout.names)}")
    return name


def node_start(args: argparse.Namespace) -> Reply:
    layout = _existing(args)
    name = _node(layout, args.name)
    programs = require()
    with local.locked(layout.root):
        if any(member.process is None for member in local.etcd_members(layout)):
            local.start_etcd(layout, programs, Progress())
        started = local.start_nodes(layout, programs, only=name)
    return done(f"started {name}; follow it with: flypg status --watch" if started else f"{name} runs already")


def node_stop(args: argparse.Namespace) -> Reply:
    layout = _existing(args)
    name = _node(layout, args.name)
    progress = Progress()
    with local.locked(layout.root):
        ran = local.stop_node(layout, name, progress)
    progress.clear()
    return done(f"stopped {name}" if ran else f"{name} was not running")


def node_kill(args: argparse.Namespace) -> Reply:
    layout = _existing(args)
    name = _node(layout, args.name)
    with local.locked(layout.root):
        killed = local.kill_node(layout, name)
    return done(f"killed {killed} processes of {name} with signal 9" if killed else f"{name} was not running")
