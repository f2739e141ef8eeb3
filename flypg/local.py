"""A whole cluster on this machine: starts and stops etcd and one agent per node. Safe to repeat at any point.

What runs is recorded in pid files with start times (local_processes), what was chosen in local.json (local_layout).
Everything here is level-triggered, too: `up` looks at what runs and starts the rest, so it also repairs what a crash or
a reboot has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from cluster import settings
from cluster.errors import CommandFailed
from flypg.local_layout import HOST, EtcdMember, Layout, parse_layout
from flypg.local_log import tail
from flypg.local_processes import Process, is_alive, postmaster, recall, remember, running_from, send, start, wait_gone
from flypg.local_programs import Programs, default_root, give, make_reachable, search_path
from flypg.progress import Progress
from flypg.reply import BadInput

PASSWORDS = ("SU_PASSWORD", "OPERATOR_PASSWORD", "REPL_PASSWORD")
ETCD_START_S = 20.0
STOP_S = 60.0  # an agent that hands over, then stops PostgreSQL in order
KILL_S = 10.0
HEAD_START_S = 10.0


def root_of(named: str | None) -> Path:
    """The directory of the cluster that --dir, FLYPG_LOCAL_DIR or the default name."""
    return Path(named).absolute() if named else default_root()


def load(root: Path) -> Layout | None:
    """The cluster set up in `root`; None when there is none. Raises BadInput for a file that cannot be read."""
    try:
        return parse_layout(root, (root / "local.json").read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise BadInput(f"{root} is not a directory") from None
    except PermissionError:
        raise BadInput(f"{root / 'local.json'} belongs to another user; choose another --dir") from None
    except (ValueError, KeyError) as error:
        raise BadInput(f"{root / 'local.json'} cannot be read: {error}") from error


def save(layout: Layout) -> None:
    """Readable by nobody else: among the settings of the nodes may be secrets, of an S3 service, say."""
    temporary = layout.file.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(layout.dump())
    temporary.replace(layout.file)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One `up`, `down` or `node` at a time; raises BadInput when another is at work."""
    with (root / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"another flypg local command is at work in {root}; wait for it") from None
        yield


def passwords(layout: Layout) -> dict[str, str]:
    """The cluster's passwords, generated once into a file that only we can read."""
    try:
        found = json.loads(layout.secrets.read_text())
        return {name: str(found[name]) for name in PASSWORDS}
    except FileNotFoundError:
        made = {name: secrets.token_urlsafe(18) for name in PASSWORDS}
        descriptor = os.open(layout.secrets, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(made, file, indent=2)
        return made
    except (ValueError, KeyError) as error:
        raise BadInput(f"{layout.secrets} cannot be read ({error}); put back what it was") from error


@dataclass(frozen=True, slots=True)
class Member:
    """A part of the cluster: an etcd member or a node. `process` None: it does not run."""

    name: str
    process: Process | None


def etcd_members(layout: Layout) -> list[Member]:
    return [Member(m.name, recall(layout.pid_file(m.name))) for m in layout.etcd()]


def nodes(layout: Layout) -> list[Member]:
    return [Member(name, recall(layout.pid_file(name))) for name in layout.names]


def prepare(layout: Layout, programs: Programs) -> None:
    """Create the directories that a cluster needs."""
    make_reachable(layout.root, programs.user)
    for directory in (layout.root / "log", layout.root / "pids"):
        directory.mkdir(exist_ok=True)
    (layout.root / "log").chmod(0o750)


def check_ports(layout: Layout) -> None:
    """Raise BadInput when a port that we are about to use is taken by somebody else."""
    wanted: dict[int, str] = {}
    for member, etcd in zip(etcd_members(layout), layout.etcd(), strict=True):
        if member.process is None:
            wanted |= {etcd.client: f"etcd {etcd.name}", etcd.peer: f"etcd {etcd.name}"}
    for node in nodes(layout):
        if node.process is None and not running_from(layout.node_dir(node.name)):  # else its own servers hold them
            ports = layout.ports(node.name)
            wanted |= {getattr(ports, field.name): f"{node.name} ({field.name})" for field in fields(ports)}
    for port, whose in wanted.items():
        if port > 65535:
            raise BadInput(f"port {port} for {whose} is no port; choose a lower --port-base")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                raise BadInput(f"port {port} for {whose} is in use; choose another --port-base") from None


def start_etcd(layout: Layout, programs: Programs, progress: Progress) -> None:
    """Start the etcd members that do not run, and wait until each answers."""
    for found, member in zip(etcd_members(layout), layout.etcd(), strict=True):
        if found.process is not None:
            continue
        directory = layout.etcd_dir(member.name)
        for made in (directory.parent, directory):
            made.mkdir(exist_ok=True)
            made.chmod(0o700)
            give(made, programs.user)
        argv = [programs.etcd, *etcd_arguments(layout, member)]
        env = {"PATH": search_path(), "LC_ALL": "C"}
        log = layout.log(member.name)
        remember(layout.pid_file(member.name), start(argv, env=env, log=log, cwd=layout.root, user=programs.user))
    for member in layout.etcd():
        progress.now(f"starting etcd {member.name}")
        _wait_port(layout, member)
    progress.done(f"etcd answers at {layout.endpoints}")


def etcd_arguments(layout: Layout, member: EtcdMember) -> list[str]:
    everyone = ",".join(f"{m.name}={m.peer_url}" for m in layout.etcd())
    return [
        f"--name={member.name}",
        f"--data-dir={layout.etcd_dir(member.name)}",
        f"--listen-client-urls={member.client_url}",
        f"--advertise-client-urls={member.client_url}",
        f"--listen-peer-urls={member.peer_url}",
        f"--initial-advertise-peer-urls={member.peer_url}",
        f"--initial-cluster={everyone}",
        "--initial-cluster-state=new",
        f"--initial-cluster-token=flypg-{layout.cluster}-{layout.port_base}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        "--log-level=warn",
        "--logger=zap",
    ]


def _wait_port(layout: Layout, member: EtcdMember) -> None:
    until = time.monotonic() + ETCD_START_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((HOST, member.client), timeout=1):
            return
        if recall(layout.pid_file(member.name)) is None:
            break
        time.sleep(0.05)
    raise CommandFailed(f"etcd {member.name} does not answer; its last words:\n{tail(layout.log(member.name), 5)}")


def start_nodes(layout: Layout, programs: Programs, only: str | None = None) -> list[str]:
    """Start the agents that do not run; returns their names."""
    words = passwords(layout)
    started: list[str] = []
    last = last_primary(layout)
    for node in sorted(nodes(layout), key=lambda node: node.name != last):
        if node.process is None and only in (None, node.name):
            if last is not None and started == [last]:
                _wait_listening(layout, last)
            directory = layout.node_dir(node.name)
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755 if programs.user else 0o700)
            argv = [sys.executable, "-m", "flypg", "agent"]
            env = agent_environment(layout, node.name, words)
            process = start(argv, env=env, log=layout.log(node.name), cwd=layout.root, user=None)
            remember(layout.pid_file(node.name), process)
            started.append(node.name)
    return sorted(started)


def _wait_listening(layout: Layout, node: str) -> None:
    """Give a primary a head start: standbys that come first find nobody listening there, and replace it."""
    until = time.monotonic() + HEAD_START_S
    while time.monotonic() < until and recall(layout.pid_file(node)) is not None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, layout.ports(node).postgres), timeout=1):
            return
        time.sleep(0.05)


def agent_environment(layout: Layout, node: str, words: Mapping[str, str]) -> dict[str, str]:
    """What an agent is started with: our environment without what is flypg's or a client's, then its settings."""
    ours = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("FLYPG_", "FLY_", "PG", "NOTIFY_")) and key not in (*PASSWORDS, "PRIMARY_REGION")
    }
    checkout = str(Path(__file__).resolve().parent.parent)  # `python -m flypg` must find us from any directory
    return ours | {"PATH": search_path(), "PYTHONPATH": checkout} | layout.environment(node) | dict(words)


def check_settings(layout: Layout, node: str) -> None:
    """Raise SettingsError when an agent would refuse the settings that this node gets."""
    settings.load(agent_environment(layout, node, {}))


def stop_node(layout: Layout, name: str, progress: Progress, how: signal.Signals = signal.SIGTERM) -> bool:
    """Stop a node in order: its agent, which stops the rest, then whatever is left. False: it did not run.

    `how`: SIGTERM lets a primary hand over first, SIGQUIT does not.
    """
    process = recall(layout.pid_file(name))
    ran = process is not None
    if process is not None:
        progress.now(f"stopping {name}")
        send(process, how)
        if wait_gone([process], STOP_S):
            progress.done(f"{name}: the agent did not end within {STOP_S:g} s and is killed")
            send(process, signal.SIGKILL)
            wait_gone([process], KILL_S)
    left = running_from(layout.node_dir(name))
    if left:
        ran = True
        _stop_left(layout, name, left)
    layout.pid_file(name).unlink(missing_ok=True)
    return ran


def _stop_left(layout: Layout, name: str, left: list[Process]) -> None:
    """End what an agent left behind: PostgreSQL in order, everything else at once."""
    server = postmaster(layout.node_dir(name))
    if server is not None:
        send(server, signal.SIGINT)  # fast: sessions end, a checkpoint is written
        wait_gone([server], STOP_S)
    for process in left:
        if is_alive(process):
            send(process, signal.SIGTERM)
    for process in wait_gone(left, KILL_S):
        send(process, signal.SIGKILL)
    wait_gone(left, KILL_S)


def kill_node(layout: Layout, name: str) -> int:
    """kill -9 everything of a node, as if its machine were lost; returns how many processes that were."""
    killed: set[Process] = set()
    agent = recall(layout.pid_file(name))
    if agent is not None:
        send(agent, signal.SIGKILL)  # first, so that it restarts nothing
        killed.add(agent)
    for _ in range(20):  # again, for what was being started meanwhile
        left = running_from(layout.node_dir(name))
        for process in left:
            send(process, signal.SIGKILL)
        killed |= set(left)
        if not wait_gone(killed, KILL_S) and not running_from(layout.node_dir(name)):
            break
    layout.pid_file(name).unlink(missing_ok=True)
    return len(killed)


def stop_etcd(layout: Layout, progress: Progress) -> bool:
    running = [m.process for m in etcd_members(layout) if m.process is not None]
    if running:
        progress.now("stopping etcd")
        for process in running:
            send(process, signal.SIGTERM)
        for process in wait_gone(running, KILL_S):
            send(process, signal.SIGKILL)
        wait_gone(running, KILL_S)
    for member in layout.etcd():
        layout.pid_file(member.name).unlink(missing_ok=True)
    return bool(running)


def stop_everything(layout: Layout, progress: Progress) -> list[str]:
    """Stop the nodes without handing anything over, then etcd; returns the names of what ran.

    Standbys end first, all at once: the primary then ends last, and is the one that a later `up` starts with.
    """
    last = last_primary(layout)
    running = [node for node in nodes(layout) if node.process is not None]
    for node in running:
        if node.process is not None and node.name != last:
            send(node.process, signal.SIGQUIT)
    ran = {node.name for node in running}
    for name in sorted(layout.names, key=lambda name: name == last):
        if stop_node(layout, name, progress, how=signal.SIGQUIT):
            ran.add(name)
    etcd = ["etcd"] if stop_etcd(layout, progress) else []
    return sorted(ran) + etcd


def last_primary(layout: Layout) -> str | None:
    """The node whose data was last started as a primary's; None when there is none, or it cannot be told."""
    found = [n for n in layout.names if _was_primary(layout.node_dir(n) / "pgdata")]
    return found[0] if len(found) == 1 else None


def _was_primary(pgdata: Path) -> bool:
    try:
        return (pgdata / "PG_VERSION").exists() and not (pgdata / "standby.signal").exists()
    except PermissionError:
        return False


def destroy(layout: Layout) -> None:
    """Remove what `up` created in the directory, and nothing else that may lie there."""
    for path in [layout.node_dir(name) for name in layout.names] + [
        layout.root / d for d in ("etcd", "log", "pids", "snapshots")
    ]:
        if path.exists():
            shutil.rmtree(path)
    for file in (layout.secrets, layout.file, layout.root / "lock"):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else lies there, and stays
        layout.root.rmdir()


def grown(layout: Layout, wanted: int | None) -> Layout:
    """The layout with as many nodes as asked for. Raises BadInput when that would be fewer."""
    if wanted is None or wanted == layout.nodes:
        return layout
    if wanted < layout.nodes:
        raise BadInput(
            f"the cluster in {layout.root} has {layout.nodes} nodes; to take one out: flypg local node stop"
            f" n{layout.nodes}, then flypg node remove n{layout.nodes}"
        )
    return replace(layout, nodes=wanted)
