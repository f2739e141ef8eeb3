"""Which cluster a command addresses, and how it gets there.

In this order: --dir, then --etcd and --cluster, then FLYPG_ETCD_ENDPOINTS and FLYPG_CLUSTER, then the local cluster in
FLYPG_LOCAL_DIR or the default directory. Every command says which one it was.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.clock import SystemClock
from cluster.endpoints import EtcdOptions, parse_endpoint
from cluster.model import NodeId
from cluster.store import OperatorStore
from flypg import local
from flypg.reply import BadInput, Reply

DEFAULT_CLUSTER = "flypg"


@dataclass(frozen=True, slots=True)
class Target:
    """One cluster."""

    cluster: str
    endpoints: str  # comma-separated
    said: str  # for people, e.g. "local cluster in /var/lib/flypg/local"


def find(args: argparse.Namespace) -> Target:
    """The cluster that options and environment name. Raises BadInput when they name none."""
    if args.dir and (args.etcd or args.cluster):
        raise BadInput("--dir names a local cluster; --etcd and --cluster name one that is not: give one or the other")
    endpoints = args.etcd or os.environ.get("FLYPG_ETCD_ENDPOINTS", "")
    if endpoints and not args.dir:
        name = args.cluster or os.environ.get("FLYPG_CLUSTER") or os.environ.get("FLY_APP_NAME") or DEFAULT_CLUSTER
        return Target(name, endpoints, f"cluster {name} in etcd at {endpoints}")
    if args.cluster and not args.dir:
        raise BadInput("--cluster needs etcd's address too: --etcd HOST:PORT or FLYPG_ETCD_ENDPOINTS")
    root = local.root_of(args.dir)
    layout = local.load(root)
    if layout is None:
        raise BadInput(
            f"there is no local cluster in {root}, and no other is named; start one with `flypg local up`, or name one"
            " with --etcd HOST:PORT --cluster NAME (FLYPG_ETCD_ENDPOINTS, FLYPG_CLUSTER)"
        )
    return Target(layout.cluster, layout.endpoints, f"local cluster in {root}")


def options(target: Target) -> EtcdOptions:
    """How to reach the target's etcd: TLS and login are the settings an agent has. Raises BadInput."""
    try:
        endpoints = tuple(parse_endpoint(part) for part in target.endpoints.split(",") if part.strip())
    except ValueError as error:
        raise BadInput(f"etcd endpoint {error}") from None
    if not endpoints:
        raise BadInput("--etcd (FLYPG_ETCD_ENDPOINTS) is empty: expected HOST:PORT")
    return EtcdOptions(
        endpoints,
        ca_file=os.environ.get("FLYPG_ETCD_CA_FILE", ""),
        cert_file=os.environ.get("FLYPG_ETCD_CERT_FILE", ""),
        key_file=os.environ.get("FLYPG_ETCD_KEY_FILE", ""),
        user=os.environ.get("FLYPG_ETCD_USER", ""),
        password=os.environ.get("FLYPG_ETCD_PASSWORD", ""),
    )


def whoami() -> str:
    """Who asks, for the history: `user@machine`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


async def connected(target: Target, work: Callable[[OperatorStore], Awaitable[Reply]]) -> Reply:
    """Do `work` with the target's store."""
    from cluster.etcd import Etcd  # gRPC: most of a second on a small machine, for those that need it
    from cluster.etcd_store import EtcdStore

    etcd = Etcd(options(target))
    try:
        try:
            store = EtcdStore(etcd, target.cluster, NodeId("operator"), clock=SystemClock())
        except ValueError as error:
            raise BadInput(f"--cluster: {error}") from None
        return await work(store)
    finally:
        await etcd.close()


def with_store(args: argparse.Namespace, work: Callable[[OperatorStore, Target], Awaitable[Reply]]) -> Reply:
    """Run a command's `work` against the cluster it addresses."""
    target = find(args)
    return asyncio.run(connected(target, lambda store: work(store, target)))
