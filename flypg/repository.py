"""Which repository a command works on, and how it gets there.

For a local cluster: the settings its nodes were given. Otherwise this machine's environment, as an agent here would
read it. `--repository` names another; `--path` another history in it. Without etcd it works just as well: that is when
one restores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

from backups.config import BackupConfig, read_config
from backups.errors import ObjectMissing, RepositoryError
from backups.layout import PathName, parse_path
from backups.memory import few_arenas
from backups.repository import Path, PathInfo, Repository
from cluster.errors import FlypgError, SettingsError
from cluster.settings import load_values
from flypg import local
from flypg.local_layout import Layout
from flypg.reply import BadInput, Exit, Refused, Reply

DATA_DIR = "/data"


@dataclass(frozen=True, slots=True)
class Opened:
    """A repository and the path that a command is about."""

    config: BackupConfig
    repository: Repository
    path: Path
    layout: Layout | None  # of a local cluster
    said: str  # for people

    @property
    def cluster(self) -> str:
        return self.path.name.cluster


def environment(args: argparse.Namespace) -> tuple[dict[str, str], Layout | None]:
    """The settings a command works with, and the local cluster they are of. Raises BadInput, SettingsError."""
    values = {k: v for k, v in os.environ.items() if k.startswith("AWS_") or k == "S3_ARCHIVE_CONFIG"}
    values |= load_values()
    layout = None
    if args.dir or not os.environ.get("FLYPG_DATA_DIR"):
        layout = local.load(local.root_of(args.dir))
        if layout is not None:
            values |= layout.environment(layout.names[0])
    if args.dir and layout is None:
        raise BadInput(f"there is no local cluster in {args.dir}")
    if getattr(args, "repository", None):
        values["FLYPG_SNAPSHOT_URL"] = args.repository
    return values, layout


def configured(values: Mapping[str, str]) -> BackupConfig:
    """What every command begins with that works on a repository. Raises SettingsError."""
    few_arenas()
    config = read_config(values, FilePath(values.get("FLYPG_DATA_DIR") or DATA_DIR))
    if not config.url and config.s3 is None:
        raise SettingsError("FLYPG_SNAPSHOT_URL", "off", "backups are off; name a repository with --repository")
    return config


def open_path(args: argparse.Namespace) -> Opened:
    """The repository and path that `args` name. Raises BadInput, Refused, SettingsError, RepositoryError."""
    values, layout = environment(args)
    config = configured(values)
    repository = Repository(config.store(), config.codec())
    where = repository.store.describe()
    try:
        repository.open(create=False)
    except ObjectMissing:
        raise Refused(f"{where} holds no snapshots yet: no repository was begun there") from None
    chosen = choose(repository, args.path, values.get("FLYPG_CLUSTER", ""))
    return Opened(config, repository, repository.path(chosen), layout, f"{where}/{chosen}")


def path_name(text: str) -> PathName:
    """What --path says. Raises BadInput."""
    try:
        return parse_path(text)
    except ValueError as error:
        raise BadInput(f"--path: {error}") from None


def choose(repository: Repository, named: str | None, cluster: str) -> PathName:
    """The path that was named, else the newest of the cluster, else the only one there is."""
    if named:
        wished = path_name(named)
        known = [str(p.name) for p in repository.paths(wished.cluster)]
        if str(wished) not in known and not any(True for _ in repository.path(wished).stored("")):
            there = ", ".join(str(p.name) for p in repository.paths()) or "none"
            raise BadInput(f"--path: {repository.store.describe()} has no {wished}; there are: {there}")
        return wished
    found: list[PathInfo] = repository.paths(cluster) if cluster else []
    everything = found or repository.paths()
    if not everything and (lost := repository.unlisted()):
        names = ", ".join(map(str, lost))
        raise Refused(
            f"{repository.store.describe()}: no path is listed in _paths/, but there are snapshots: choose with --path:"
            f" {names}; the next snapshot lists its own again"
        )
    if not everything:
        raise Refused(f"{repository.store.describe()} holds no snapshots yet")
    if not found and len({p.cluster for p in everything}) > 1:
        names = ", ".join(str(p.name) for p in everything)
        raise BadInput(f"the repository holds several clusters; choose one with --path: {names}")
    return everything[-1].name


def failed(error: FlypgError) -> Reply:
    """A repository's complaint as a reply."""
    unreachable = isinstance(error, RepositoryError)
    return Reply(Exit.UNREACHABLE if unreachable else Exit.FAILED, str(error))
