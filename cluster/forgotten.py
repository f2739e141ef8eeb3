"""A cluster that etcd has lost: all of etcd's data is gone, the nodes have theirs. Pure.

What was agreed on is lost with it: the rule, so who must have the last acknowledged writes, and who belongs to the
cluster. Nodes know only for themselves which term they last served, and where their WAL ends. So nothing is founded and
nobody is promoted before an operator, who knows how many nodes there were, says that all of them are there.
"""

from __future__ import annotations

from cluster.model import Snapshot

COMMAND = "flypg failover --accept-data-loss"


def lost_term(snap: Snapshot) -> int:
    """The last term that a node which is there has served of a cluster that etcd knows nothing of; 0: no such thing."""
    if snap.view is not None:
        return 0
    return max((max(r.served, r.term) for r in snap.reports.values()), default=0)


def told(snap: Snapshot) -> str:
    """What to tell people of a cluster that was lost."""
    witnesses = ", ".join(sorted(n for n, r in snap.reports.items() if max(r.served, r.term)))
    return (
        f"etcd has lost this cluster, which {witnesses} served up to term {lost_term(snap)}: nobody is promoted; once"
        f" every node is there: {COMMAND}"
    )
