"""Changing the operator's settings: PostgreSQL itself has to accept them before a running server sees them."""

from __future__ import annotations

import signal
from collections.abc import Iterable

from cluster.errors import CommandFailed, InstanceError, PostgresUnavailable
from postgres import command, queries
from postgres.config import check_parameters
from postgres.files import remove, write_atomically
from postgres.parts import Parts, reload

TRIAL_S = 10.0


async def set_parameters(
    parts: Parts, parameters: Iterable[tuple[str, str]], hba: Iterable[str], *, data: bool
) -> None:
    """Write them and reload. Raises InstanceError when PostgreSQL refuses them; the ones before stay then.

    `data`: is there a data directory to try them on?
    """
    files, before = parts.files, (parts.files.parameters, parts.files.hba)
    wanted, lines = tuple(sorted(parameters)), tuple(hba)
    check_parameters(wanted, lines)
    if data:
        if not files.dynamic_path.exists():
            files.write_dynamic(files.dynamic)
        await _try(parts, wanted)
    await parts.disk.do(lambda: files.write_settings(wanted, lines))
    if parts.postmaster.find() is None:
        return
    try:
        if problem := await parts.session.ask(queries.hba_error):
            files.write_settings(*before)
            raise InstanceError(f"pg_hba: {problem}")
        await reload(parts)
    except PostgresUnavailable:
        parts.postmaster.send(signal.SIGHUP)  # it reads them when it comes to itself


async def _try(parts: Parts, wanted: tuple[tuple[str, str], ...]) -> None:
    config, trial = parts.config, parts.config.conf / "trial.conf"
    write_atomically(trial, parts.files.main_text(wanted), owner=parts.owner, durable=False)
    try:
        await command.run(
            [config.binaries / "postgres", "-D", config.pgdata, "-c", f"config_file={trial}", "-C", "port"],
            timeout_s=TRIAL_S,
            user=parts.owner,
        )
    except CommandFailed as error:
        raise InstanceError(f"PostgreSQL refuses these settings: {error}") from error
    finally:
        remove(trial)
