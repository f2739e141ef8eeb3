"""Passwords are looked for everywhere they must not be, after the commands that make them."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from flypg.local import load
from postgres.roles import pooler_password
from tests.support.local import NEEDED, PATH, Local, cluster

pytestmark = [
    pytest.mark.skipif(
        any(shutil.which(program, path=PATH) is None for program in NEEDED), reason=f"needs {' and '.join(NEEDED)}"
    ),
    pytest.mark.timeout(400),
]
VERIFIER = re.compile(r"SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]{8,}\$")
PAGES = (
    "/",
    "/node",
    "/cluster",
    "/history",
    "/openapi.json",
    "/flycheck/vm",
    "/flycheck/pg",
    "/flycheck/role",
    "/commands/admin/dbuid",
    "/commands/users/list",
)
COMMANDS = (
    ("status", "--json"),
    ("why", "--json"),
    ("members", "--json"),
    ("spec", "show"),
    ("users", "list", "--json"),
    ("databases", "list", "--json"),
    ("pool", "show", "--json"),
    ("tls", "show", "--json"),
    ("local", "status", "--json"),
    ("local", "logs"),
)


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with cluster(1) as flypg:
        yield flypg


@pytest.fixture(scope="module")
def secrets(local: Local) -> Mapping[str, str]:
    """Every password there is, by what it is of; the commands that make them have just run."""
    local.until(lambda s: bool(s["serving"]))
    local.ok("spec", "set", "parameters.shared_preload_libraries=pg_stat_statements")
    local.until(lambda s: local.query("SELECT count(*) FROM pg_settings WHERE pending_restart") > 0)
    local.ok("node", "restart", "n1", "--wait", "90")
    local.until(lambda s: bool(s["serving"]))
    assert local.query("SHOW shared_preload_libraries") == "pg_stat_statements"
    local.query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    local.ok("databases", "create", "shop")
    found = {
        "a user": local.ok("users", "create", "ada", "--role", "writer", "--json").json()["password"],
        "a new password": local.ok("users", "set-password", "ada", "--json").json()["password"],
        "an app": local.ok("attach", "store", "--json").json()["password"],
        "an app's new password": local.ok("attach", "store", "--new-password", "--json").json()["password"],
    }
    with pytest.raises(psycopg.OperationalError):
        login(local, "ada", "a password that is wrong")
    login(local, "ada", found["a new password"])
    cluster = json.loads((local.root / "secrets.json").read_text())
    found |= {name: value for name, value in cluster.items() if isinstance(value, str) and len(value) >= 8}
    found["the pooler"] = pooler_password(cluster["OPERATOR_PASSWORD"])
    return found


def login(local: Local, user: str, password: str) -> None:
    port = local.ok("members", "--json").json()["members"][0]["ports"]["pooler"]
    with psycopg.connect(
        host="127.0.0.1", port=port, user=user, password=password, dbname="shop", connect_timeout=30
    ) as connection:
        connection.execute("SELECT 1")


def unseen(text: str, secrets: Mapping[str, str], where: str) -> None:
    for name, secret in secrets.items():
        assert secret not in text, f"the password of {name} is in {where}"


def test_process_list(local: Local, secrets: Mapping[str, str]) -> None:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            unseen(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"), secrets, str(entry))
        except OSError:
            continue  # it has ended


def test_logs_and_files(local: Local, secrets: Mapping[str, str]) -> None:
    """Logs have no password and no verifier; what has a password is readable by its owner only."""
    looked_at = logs = 0
    for directory, _, names in os.walk(local.root):
        for path in (Path(directory) / name for name in names):
            if "/base/" in str(path) or "/pg_wal/" in str(path) or not path.is_file() or path.is_symlink():
                continue  # PostgreSQL's own files hold verifiers, in a directory of its own
            text = path.read_bytes().decode(errors="replace")
            looked_at += 1
            if path.suffix == ".log" or "/log/" in str(path):
                logs += 1
                unseen(text, secrets, str(path))
                assert not VERIFIER.search(text), f"a verifier is in {path}"
            elif any(secret in text for secret in secrets.values()):
                assert hidden(path, local.root), f"{path} can be read by others"
    assert looked_at > 20 and logs > 2


def hidden(path: Path, root: Path) -> bool:
    """Can nobody but the owner read it? By its own mode, or by that of a directory above it."""
    return any(
        not stat.S_IMODE(at.stat().st_mode) & 0o077 for at in (path, *path.parents) if at == root or root in at.parents
    )


def test_what_commands_print(local: Local, secrets: Mapping[str, str]) -> None:
    for words in COMMANDS:
        ran = local(*words)
        text = ran.out + ran.err
        unseen(text, secrets, f"flypg {' '.join(words)}")
        assert not VERIFIER.search(text), f"a verifier is in flypg {' '.join(words)}"


def test_errors(local: Local, secrets: Mapping[str, str]) -> None:
    for words in (("users", "create", "ada", "--role", "writer"), ("attach", "store"), ("users", "drop", "nobody")):
        ran = local(*words)
        assert ran.code != 0
        unseen(ran.out + ran.err, secrets, f"the error of flypg {' '.join(words)}")


def test_pages_and_metrics(local: Local, secrets: Mapping[str, str]) -> None:
    ports = local.ok("members", "--json").json()["members"][0]["ports"]
    urls = [f"http://127.0.0.1:{ports['http']}{page}" for page in PAGES]
    urls.append(f"http://127.0.0.1:{ports['metrics']}/metrics")
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                text = answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
        unseen(text, secrets, url)
        assert not VERIFIER.search(text), f"a verifier is in {url}"


def test_what_the_server_remembers(local: Local, secrets: Mapping[str, str]) -> None:
    """Neither the statistics of statements, nor sessions, nor settings tell. A verifier is not for reading either."""
    for view in ("pg_stat_activity", "pg_settings", "pg_stat_replication", "pg_file_settings", "pg_db_role_setting"):
        text = str(local.query(f"SELECT coalesce(string_agg(v::text, ' '), '') FROM {view} v"))
        unseen(text, secrets, view)
    text = str(local.query("SELECT coalesce(string_agg(query, ' '), '') FROM pg_stat_statements"))
    assert "ROLE" in text, "the commands were seen"
    unseen(text, secrets, "pg_stat_statements")


def test_etcd(local: Local, secrets: Mapping[str, str]) -> None:
    layout = load(local.root)
    assert layout is not None
    env = {**os.environ, "ETCDCTL_API": "3"}
    asked = ["etcdctl", f"--endpoints={layout.endpoints}", "get", "", "--prefix"]
    dump = subprocess.run(asked, env=env, capture_output=True, text=True, errors="replace", timeout=60, check=True)
    assert "/flypg/" in dump.stdout
    unseen(dump.stdout, secrets, "etcd")
    assert not VERIFIER.search(dump.stdout)
