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
from cluster.endpoints import EtcdOptions
from cluster.errors import StoreUnavailable
from cluster.model import NodeId
from cluster.settings import cluster_name, etcd_options, load_values
from cluster.store import OperatorStore
from flypg import local
from flypg.local_layout import Layout
from flypg.reply import BadInput, Reply


@dataclass(frozen=True, slots=True)
class Target:
    """One cluster."""

    cluster: str
    etcd: EtcdOptions
    said: str  # for people, e.g. "local cluster in /var/lib/flypg/local"
    hint: str = ""  # what may help when its etcd does not answer


def find(args: argparse.Namespace) -> Target:
    """The cluster that options, environment or settings file name. Raises BadInput when they name none."""
    if args.dir and (args.etcd or args.cluster):
        raise BadInput("--dir names a local cluster; --etcd and --cluster name one that is not: give one or the other")
    if not args.dir:
        told = {"FLYPG_ETCD_ENDPOINTS": args.etcd, "FLYPG_CLUSTER": args.cluster}
        values = load_values(dict(os.environ) | {key: value for key, value in told.items() if value})
        if values.get("FLYPG_ETCD_ENDPOINTS"):
            etcd = etcd_options(values)
            name = cluster_name(values)
            return Target(name, etcd, f"cluster {name} in etcd at {', '.join(e.target for e in etcd.endpoints)}")
        if args.cluster:
            raise BadInput("--cluster needs etcd's address too: --etcd HOST:PORT or FLYPG_ETCD_ENDPOINTS")
    root = local.root_of(args.dir)
    layout = local.load(root)
    if layout is None:
        raise BadInput(
            f"there is no local cluster in {root}, and no other is named; start one with `flypg local up`, or name one"
            " with --etcd HOST:PORT --cluster NAME (FLYPG_ETCD_ENDPOINTS, FLYPG_CLUSTER)"
        )
    return local_target(layout)


def local_target(layout: Layout) -> Target:
    """A local cluster: its etcd has neither TLS nor a login, whatever the environment says of another."""
    etcd = etcd_options({"FLYPG_ETCD_ENDPOINTS": layout.endpoints})
    return Target(layout.cluster, etcd, f"local cluster in {layout.root}", "`flypg local up` starts what is missing")


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

    etcd = Etcd(target.etcd)
    try:
        return await work(EtcdStore(etcd, target.cluster, NodeId("operator"), clock=SystemClock()))
    finally:
        await etcd.close()


def with_store(args: argparse.Namespace, work: Callable[[OperatorStore, Target], Awaitable[Reply]]) -> Reply:
    """Run a command's `work` against the cluster it addresses."""
    target = find(args)
    try:
        return asyncio.run(connected(target, lambda store: work(store, target)))
    except StoreUnavailable as error:
        if not target.hint:
            raise
        raise StoreUnavailable(f"{error}; {target.hint}") from error
