"""Do all nodes hold the same in the end? Pure."""

from __future__ import annotations

from collections.abc import Mapping

from chaos.history import Verdict


def converged(contents: Mapping[str, Mapping[str, str]], damage: Mapping[str, str]) -> Verdict:
    """`contents`: node -> table -> checksum. `damage`: node -> what pg_amcheck said, "" when nothing."""
    if len(contents) < 2:
        return Verdict("convergence", None, f"only {len(contents)} node could be read")
    for node, text in sorted(damage.items()):
        if text:
            return Verdict("convergence", False, f"pg_amcheck on {node}: {text}")
    nodes = sorted(contents)
    model = contents[nodes[0]]
    for node in nodes[1:]:
        for table in sorted(model.keys() | contents[node].keys()):
            if model.get(table) != contents[node].get(table):
                return Verdict("convergence", False, f"{table} differs between {nodes[0]} and {node}")
    return Verdict("convergence", True, f"{len(model)} tables are identical on {', '.join(nodes)}")
