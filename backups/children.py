"""The processes that do the work: what they are started with, and what they answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

from backups.config import BackupConfig
from backups.facts import NodeFacts
from backups.layout import PathName
from postgres.command import run

RUN_S = 24 * 3600.0  # the longest a snapshot, a restore or a restore test may take


class Children:
    """Starts `python -m backups.run` for one node."""

    def __init__(self, config: BackupConfig, facts: NodeFacts) -> None:
        self._config = config
        self._facts = facts

    async def run(
        self, work: str, path: PathName, *more: str, on_stderr: Callable[[bytes], None] | None = None
    ) -> dict[str, Any]:
        """Do some work and hear the result. Raises CommandFailed with the reason it gives, CommandTimedOut."""
        argv = [sys.executable, "-m", "backups.run", work, *self.arguments(path, *more)]
        output = await run(argv, timeout_s=RUN_S, env=self.environment(), on_stderr=on_stderr)
        result: dict[str, Any] = json.loads(output.decode().strip().rpartition("\n")[2])
        return result

    def arguments(self, path: PathName, *more: str | FilePath) -> list[str]:
        facts = self._facts
        own = ["--path", path, "--node", facts.node, "--data-dir", facts.data_dir, "--socket", facts.socket]
        own += ["--user", facts.user or "", "--programs", facts.programs]
        return [str(a) for a in (*own, *more)]

    def environment(self) -> Mapping[str, str]:
        """What they need beyond the plain environment: settings, and how to find this code."""
        here = str(FilePath(__file__).resolve().parent.parent)
        return {**self._config.values, "PYTHONPATH": here}
