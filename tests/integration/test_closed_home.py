"""Root's home, its temporary files and its Python are closed to everybody else: servers do not need them.

The agents run as root from there, PostgreSQL and the routers as `postgres`. It is so wherever /root has mode 0700; this
test makes it so wherever it runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from backups.wire import reachable
from chaos.places import Node
from chaos.testbed import Plan, Testbed
from tests.support.drills import PROGRAMS, testbed
from tests.support.pgserver import BIN

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root starts servers as somebody else"),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="PostgreSQL 15 (Debian) is not installed"),
    pytest.mark.skipif(any(shutil.which(name) is None for name in PROGRAMS), reason=f"needs {', '.join(PROGRAMS)}"),
]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with mode 0700: where we are, with the Python that runs us and TMPDIR in it."""
    with tempfile.TemporaryDirectory(prefix="fphome", dir="/tmp") as name:  # mode 0700
        home = Path(name)
        (home / "tmp").mkdir()
        venv = [sys.executable, "-m", "venv", "--copies", "--without-pip", str(home / "venv")]
        subprocess.run(venv, check=True, timeout=60)
        (packages,) = (home / "venv").glob("lib/python3*/site-packages")
        ours = [path for path in sys.path if path.endswith("-packages")]
        (packages / "ours.pth").write_text("\n".join(ours) + "\n")
        monkeypatch.setattr(sys, "executable", str(home / "venv" / "bin" / "python"))
        assert not reachable(Path(sys.executable))
        monkeypatch.setenv("HOME", name)
        monkeypatch.setenv("TMPDIR", str(home / "tmp"))
        monkeypatch.chdir(home)
        yield home


def archived(bed: Testbed) -> str:
    """ "" once a WAL file has reached the archive."""
    with psycopg.connect(bed.primary.direct, autocommit=True) as connection:
        connection.execute("SELECT pg_switch_wal()")
        row = connection.execute("SELECT archived_count, failed_count FROM pg_stat_archiver").fetchone()
    assert row is not None
    assert row[1] == 0, "archive_command fails"
    return "" if row[0] > 0 else "nothing was archived"


def flypg(bed: Testbed, node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As an operator on that node."""
    command = [sys.executable, "-m", "flypg", *arguments]
    return subprocess.run(command, env=node.env, capture_output=True, text=True, timeout=120, check=False)


def test_a_cluster_runs_out_of_a_closed_home(home: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="fprep", dir="/tmp") as place:
        Path(place).chmod(0o711)
        settings = {
            "FLYPG_SNAPSHOT_URL": f"file://{place}/repository",
            "FLYPG_WAL_ARCHIVE": "on",
            "FLYPG_SNAPSHOT_SCHEDULE": "off",
            "FLYPG_SNAPSHOT_MIN_FREE_PERCENT": "0",
        }
        with testbed(Plan(nodes=2, etcd=1, env=settings)) as bed:
            first, second = bed.primary, bed.standbys[0]
            with psycopg.connect(first.through_proxy, autocommit=True) as connection:
                connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id")
            pooled = first.conninfo(first.ports.pooler)
            with psycopg.connect(pooled, autocommit=True) as connection:
                assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
            until = time.monotonic() + 60
            while why := archived(bed):
                assert time.monotonic() < until, why
                time.sleep(0.5)

            made = flypg(bed, first, "snapshots", "create")
            assert made.returncode == 0, made.stderr
            checked = flypg(bed, first, "snapshots", "verify")
            assert checked.returncode == 0, checked.stderr + checked.stdout
            restored = flypg(bed, first, "restore", "--into", f"{place}/restored", "--yes")
            assert restored.returncode == 0, restored.stderr
            refused = flypg(bed, first, "restore", "--into", str(home / "restored"), "--yes")
            assert refused.returncode != 0 and f"cannot enter {home}" in refused.stderr, refused.stderr

            # the old primary comes back: pg_rewind and walreceiver speak to the new one
            first.kill()
            until = time.monotonic() + 60
            while bed.watch.view is None or bed.watch.view.primary != second.name:
                assert time.monotonic() < until, "no failover"
                time.sleep(0.1)
            with psycopg.connect(second.through_proxy, autocommit=True) as connection:
                connection.execute("INSERT INTO kept VALUES (1001)")
            first.start()
            bed.wait_healthy()
            with psycopg.connect(first.direct) as connection:
                assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1001,)


def test_an_agent_says_which_place_the_servers_cannot_reach(home: Path) -> None:
    for key, path in (("FLYPG_DATA_DIR", "data"), ("FLYPG_PGDATA", "pg"), ("FLYPG_SNAPSHOT_SCRATCH", "scratch")):
        with tempfile.TemporaryDirectory(prefix="fpdir", dir="/tmp") as place:
            Path(place).chmod(0o711)
            env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "FLYPG_DATA_DIR": place}
            env |= {"FLYPG_ETCD_ENDPOINTS": "http://127.0.0.1:1", key: str(home / path)}
            command = [sys.executable, "-m", "flypg", "agent"]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
            said = done.stderr + done.stdout
            assert done.returncode == 1 and f"cannot enter {home}" in said and key in said, said


def test_another_user_with_roots_home_gets_its_own(home: Path) -> None:
    """`setpriv --reuid`, `su -m` and their like leave HOME as it is."""
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if reachable(Path(path))), None)
    if python is None:
        pytest.skip("every user's Python is not installed")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from flypg.home import settle_home; settle_home()"
    done = subprocess.run(
        [python, "-B", "-c", f"{code}; import os; print(os.environ['HOME'])"],
        user="postgres",
        cwd="/",
        env={"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if "Permission denied" in done.stderr or "No module named 'flypg'" in done.stderr:
        pytest.skip("this checkout is closed to other users")
    assert done.stdout.strip() == os.path.expanduser("~postgres"), done.stderr
