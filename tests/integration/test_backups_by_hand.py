"""docs/restore-by-hand.md is true: its commands restore a cluster with standard tools only."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backups.codec import Codec, SealingKey
from tests.support.archive import Archived, directory, path_for, snapshot, until
from tests.support.pgserver import BIN, ENV, PgServer, as_postgres

PAGE = Path(__file__).resolve().parents[2] / "docs" / "restore-by-hand.md"
MISSING = [p for p in ("zstd", "tar", "bash") if shutil.which(p) is None]
pytestmark = [
    pytest.mark.timeout(400),  # on a machine that is busy with other tests
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason=f"no PostgreSQL in {BIN}"),
]


def blocks(language: str, label: str) -> list[str]:
    """The pieces of code on the page whose first line is a comment that begins with `label`."""
    found = re.findall(rf"```{language}\n(# {label}.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, f"the page has no {language} block {label!r}"
    return found


def test_the_page_restores_a_cluster(server: PgServer) -> None:
    codec = Codec()
    path = path_for(server, directory(server.root), codec)
    archived = Archived(server, path)
    archived.archiver.stand(1)
    server.sql("CREATE TABLE t AS SELECT 1 AS n")
    record = snapshot(server, path, codec, "a")
    server.sql("INSERT INTO t VALUES (2)")
    archived.flush()
    server.stop()
    repository = server.root / "repository" / str(path.name)
    by_hand = PgServer(server.root / "by-hand")
    subprocess.run(["chmod", "-R", "a+rX", str(server.root / "repository")], check=True)
    environment = ENV | {
        "REPOSITORY": str(repository),
        "SNAPSHOT": record.id,
        "TARGET": str(by_hand.data),
        "TIMELINE": "1",
        "SEGMENT_BYTES": str(1 << 20),
        "PGBIN": str(BIN),
        "SOCKETS": str(by_hand.sockets),
        "PORT": str(by_hand.port),
    }
    script = "set -euo pipefail\n" + "\n".join(blocks("bash", "restore:"))
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
            **as_postgres(),
        )
        log = by_hand.data / "restore.log"
        assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
        asked = [str(BIN / "psql"), "-h", str(by_hand.sockets), "-p", str(by_hand.port), "-U", "postgres", "-Atc"]

        def answer(query: str) -> str:
            return subprocess.run(
                [*asked, query], env=ENV, cwd="/", capture_output=True, text=True, timeout=60, **as_postgres()
            ).stdout.strip()

        until(lambda: answer("SELECT pg_is_in_recovery()") == "f", "promoted")
        assert answer("SELECT sum(n) FROM t") == "3"
    finally:
        subprocess.run(
            [str(BIN / "pg_ctl"), "-D", str(by_hand.data), "-m", "immediate", "-w", "stop"],
            env=ENV, cwd="/", capture_output=True, timeout=60, **as_postgres(),
        )  # fmt: skip
        archived.stop()
        by_hand.remove()


def test_the_page_opens_what_was_sealed(tmp_path: Path) -> None:
    secret = bytes(range(32))
    (tmp_path / "key").write_text(secret.hex())
    plain = b"some WAL " * 300_000
    name = "wal/00000001/000000010000000000000003.zst.enc"
    sealed = SealingKey(secret).seal(plain, name)
    (script,) = blocks("python", "open:")
    (tmp_path / "open.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "open.py"), str(tmp_path / "key"), name],
        input=sealed,
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == plain, done.stderr
