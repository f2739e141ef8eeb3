"""Which version of the source a drill was run from, and of PostgreSQL it ran."""

from __future__ import annotations

import subprocess
from pathlib import Path

from chaos.target import TestbedError
from chaos.testbed import binaries


def commit() -> str:
    """The short name of the checked-out commit; "unknown" outside of a checkout or without git."""
    try:
        ours = Path(__file__).parent
        command = ["git", "rev-parse", "--short", "HEAD"]
        found = subprocess.run(command, cwd=ours, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


def postgres_version() -> str:
    """Of the PostgreSQL that a testbed runs; "" where there is none."""
    try:
        command = [str(binaries() / "postgres"), "--version"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (TestbedError, OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.partition(" ")[2].removeprefix("(PostgreSQL) ").strip()
