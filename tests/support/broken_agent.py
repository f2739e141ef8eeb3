"""An agent with a planted bug, to prove that drills fail when they should.

`python -m tests.support.broken_agent agent` is `flypg agent` with that bug, which is named by BROKEN. Only this wrapper
knows that variable: nothing of it is in the product.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import postgres.launch
import postgres.promotion
import postgres.rules
import sentinel.candidates
import sentinel.decide
from flypg.main import main

VARIABLE = "BROKEN"


def rule_ignored() -> None:
    """Commits wait for nobody: `synchronous_standby_names` stays empty, and everybody is told that the rule runs."""
    for module in (postgres.launch, postgres.promotion, postgres.rules):
        module.standby_names = lambda rule: ""  # type: ignore[attr-defined]


def revocation_skipped() -> None:
    """A primary is chosen as soon as one node has promised, whoever else may have acknowledged for the old one."""
    for module in (sentinel.candidates, sentinel.decide):
        module.missing = lambda rules, promised: None  # type: ignore[attr-defined]


BUGS: dict[str, Callable[[], None]] = {"rule ignored": rule_ignored, "revocation skipped": revocation_skipped}

if __name__ == "__main__":
    BUGS[os.environ[VARIABLE]]()
    sys.exit(main())
