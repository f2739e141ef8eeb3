"""Wall clocks that jump, by libfaketime: of the agent, its helpers and PostgreSQL of one node. What decides in flypg is
CLOCK_BOOTTIME, which goes on as it did, as on a machine whose wall clock was set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from chaos.places import Node
from chaos.target import Target, TestbedError

Undo = Callable[[], None]
JUMPS = ("+3600", "-3600")
STAY_S = 6.0


def library() -> Path | None:
    """libfaketime for programs with threads; None when it is not installed."""
    found = sorted(Path("/usr/lib").glob("**/libfaketimeMT.so.1"))
    return found[0] if found else None


def settings(directory: Path, binaries: Path) -> dict[str, str]:
    """The environment of a node whose wall clock is as its clock file says. PostgreSQL gets a clean environment, so its
    programs are wrapped."""
    preload = library()
    if preload is None:
        raise TestbedError("clocks that jump need libfaketime: apt-get install faketime")
    clock = file_of(directory)
    _write(clock, "+0")
    faked = {
        "LD_PRELOAD": str(preload),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    wrapped = directory.with_suffix(".bin")
    wrapped.mkdir(exist_ok=True)
    for program in binaries.iterdir():
        mine = wrapped / program.name
        if program.name == "postgres":
            words = " ".join(f"{key}={value}" for key, value in faked.items())
            mine.write_text(f'#!/bin/sh\nexec env {words} {program} "$@"\n')
            mine.chmod(0o755)
        else:
            mine.symlink_to(program)
    sites = Path(__file__).parent / "jumping"
    return {**faked, "FLYPG_PG_BIN_DIR": str(wrapped), "PYTHONPATH": f"{sites}:{sites.parent.parent}"}


def file_of(directory: Path) -> Path:
    """Where a node's clock is set: beside its directory, which may be a volume that hangs."""
    return directory.with_suffix(".clock")


def _write(clock: Path, offset: str) -> None:
    other = clock.with_suffix(".next")
    other.write_text(f"{offset}\n")
    other.chmod(0o644)
    other.rename(clock)


def jump(target: Target, node: Node) -> Undo:
    """The node's wall clock jumps an hour ahead, then an hour behind."""
    clock = file_of(node.directory)
    if not clock.exists():
        raise TestbedError("the clock of this node cannot be moved: it was not started for that")
    for offset in JUMPS:
        _write(clock, offset)
        time.sleep(STAY_S)
    return lambda: _write(clock, "+0")
