"""Which version of the source a drill was run from."""

from __future__ import annotations

import subprocess


def commit() -> str:
    """The short name of the checked-out commit; "unknown" outside of a checkout or without git."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
