"""A node's backups as a process of their own, which a test can kill as a machine is lost: `python -m` this.

Arguments: the node, the cluster, etcd's port, the directory of its server, the server's port, how many nodes the
cluster has, and the seconds of the lease to work under. Settings come from the environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from backups import notes, service
from backups.config import read_config
from backups.facts import NodeFacts
from cluster.endpoints import Endpoint, EtcdOptions
from cluster.etcd import Etcd
from cluster.model import NodeId
from postgres.basebackup import server_facts
from tests.support.archive import OWNER
from tests.support.backing import alone, with_standby
from tests.support.pgserver import BIN


async def work(node: NodeId, cluster: str, etcd_port: int, root: Path, port: int, nodes: int) -> None:
    user = "postgres" if OWNER else None
    facts = NodeFacts(node, cluster, root, root / "data", root / "s", port, user, str(BIN))
    system_id = server_facts(facts.conninfo).system_id
    state = with_standby(system_id) if nodes > 1 else alone(system_id)
    etcd = Etcd(EtcdOptions((Endpoint("127.0.0.1", etcd_port, False),)))
    config = read_config(os.environ, root)
    await service.BackupService(config, facts, notes.Notes(etcd, cluster), lambda: state).run()


def main() -> None:
    node, cluster, etcd_port, root, port, nodes, lease_s = sys.argv[1:]
    notes.LEASE_S = service.LEASE_S = float(lease_s)
    asyncio.run(work(NodeId(node), cluster, int(etcd_port), Path(root), int(port), int(nodes)))


if __name__ == "__main__":
    main()
