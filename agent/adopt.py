"""What a server that was found running says of the rule it runs, before etcd could be asked. Pure."""

from __future__ import annotations

import re

from cluster.model import NodeId, Rule, unstamped

LIST = re.compile(r"ANY (\d+) \(([^()]*)\)\s*\Z")


def rule_of(names: str, me: NodeId) -> Rule | None:
    """The rule behind `synchronous_standby_names`; None when it is not one of ours. Empty names are a lone primary's.

    Its voters can vouch for their primary even when the view is not known: whoever wanted to replace it would need the
    promises of so many of them that fewer than k could still stream.
    """
    if not names.strip():
        return Rule(0, me, frozenset(), 0)
    found = LIST.match(names.strip())
    if found is None:
        return None
    stamps = [unstamped(name.strip().strip('"')) for name in found[2].split(",")]
    terms = {stamp[1] for stamp in stamps if stamp is not None}
    if None in stamps or len(terms) != 1:
        return None
    return Rule(terms.pop(), me, frozenset(stamp[0] for stamp in stamps if stamp is not None), int(found[1]))
