"""The programs a local cluster needs, and whom they run as. Says exactly what to install when one is missing."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from flypg.reply import BadInput

SERVER_USER = "postgres"  # whom servers run as when we are root: PostgreSQL refuses to run as root
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # not in an ordinary user's PATH, and haproxy and pgbouncer live there
PACKAGES = {"etcd": "etcd-server", "haproxy": "haproxy", "pgbouncer": "pgbouncer", "postgres": "postgresql"}
POSTGRES_DIRS = Path("/usr/lib/postgresql")


def search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{SBIN}"


def find(program: str) -> str | None:
    return shutil.which(program, path=search_path())


def find_postgres() -> str | None:
    """`postgres` of the newest version that Debian's packages installed, else the one in PATH."""
    if named := os.environ.get("FLYPG_PG_BIN_DIR"):
        return shutil.which("postgres", path=named)
    versions = [d for d in POSTGRES_DIRS.glob("*") if d.name.isdigit() and (d / "bin" / "postgres").exists()]
    if versions:
        return str(max(versions, key=lambda d: int(d.name)) / "bin" / "postgres")
    return find("postgres")


@dataclass(frozen=True, slots=True)
class Programs:
    etcd: str
    user: str | None  # None: servers run as the caller


def require() -> Programs:
    """Find everything a local cluster needs. Raises BadInput that says what to install."""
    found = {name: find_postgres() if name == "postgres" else find(name) for name in PACKAGES}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise BadInput(missing_text(missing, root=os.geteuid() == 0))
    user = None
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(SERVER_USER)
        except KeyError:
            raise BadInput(
                f"there is no user {SERVER_USER!r}, as whom PostgreSQL would run; install the package postgresql"
            ) from None
        user = SERVER_USER
    etcd = found["etcd"]
    assert etcd is not None, "checked above"
    return Programs(etcd, user)


def missing_text(missing: list[str], *, root: bool) -> str:
    """What is not there, and how to get it on Debian and Ubuntu."""
    packages = " ".join(PACKAGES[name] for name in missing)
    sudo = "" if root else "sudo "
    return f"not installed: {', '.join(missing)}\n  install: {sudo}apt-get install {packages}"


def default_root() -> Path:
    """Where a local cluster lives unless told: below /var/lib for root, since nobody else may enter /root."""
    if named := os.environ.get("FLYPG_LOCAL_DIR"):
        return Path(named).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/flypg/local")
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data).absolute() / "flypg" / "local"


def make_reachable(directory: Path, user: str | None) -> None:
    """Create `directory` so that the servers' user can pass through it; raises BadInput where it cannot be."""
    for parent in reversed([directory, *directory.parents]):
        if not parent.exists():
            try:
                parent.mkdir(mode=0o755)
            except OSError as error:
                raise BadInput(f"cannot create {parent}: {error.strerror}; choose another --dir") from None
            if user is not None:
                parent.chmod(0o755)  # whatever the umask is: the servers' user must pass
        elif not parent.is_dir():
            raise BadInput(f"{parent} is not a directory; choose another --dir")
        elif user is not None and not parent.stat().st_mode & stat.S_IXOTH and not _owned_by(parent, user):
            raise BadInput(f"user {user} cannot enter {parent}, so it cannot hold a cluster; choose another --dir")
    if not os.access(directory, os.W_OK):
        raise BadInput(f"{directory} is not writable for us; choose another --dir")


def _owned_by(path: Path, user: str) -> bool:
    return path.stat().st_uid == pwd.getpwnam(user).pw_uid


def give(path: Path, user: str | None) -> None:
    """Make `path` belong to the servers' user."""
    if user is not None:
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
