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
    if tables := differing(contents):
        return Verdict("convergence", False, f"{', '.join(tables)} differs between {', '.join(nodes)}")
    return Verdict("convergence", True, f"{len(contents[nodes[0]])} tables are identical on {', '.join(nodes)}")


def differing(contents: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Tables that are not the same everywhere, or not there everywhere."""
    tables = {table for sums in contents.values() for table in sums}
    return sorted(t for t in tables if len({sums.get(t) for sums in contents.values()}) > 1)
