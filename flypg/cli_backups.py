"""The commands around backups: snapshots, restore, backups. What they do is imported only once one was chosen."""

from __future__ import annotations

import argparse

from flypg.parsing import Parser, positive, seconds

Commands = argparse._SubParsersAction  # argparse has no public name for it

WHERE = """\
The repository is FLYPG_SNAPSHOT_URL (file:///DIRECTORY or s3://BUCKET/PREFIX; docs/backups.md), for a local cluster
the one its nodes use. Nothing here but `snapshots create` needs a running cluster."""


def add(commands: Commands[Parser]) -> None:
    _snapshots(commands)
    _restore(commands)
    _backups(commands)


def _where(parser: Parser) -> None:
    group = parser.add_argument_group("which repository")
    group.add_argument("--repository", metavar="URL", help="instead of FLYPG_SNAPSHOT_URL")
    group.add_argument("--path", metavar="CLUSTER/SYSTEM-INCARNATION", help="one history in it (default: the newest)")
    group.add_argument("--dir", metavar="DIR", help="directory of a local cluster (FLYPG_LOCAL_DIR)")
    parser.add_argument("--json", action="store_true", help="answer in JSON")


def _cluster(parser: Parser) -> None:
    """Whose agents are told."""
    parser.add_argument("--etcd", metavar="HOST:PORT,…", help="etcd endpoints (FLYPG_ETCD_ENDPOINTS)")
    parser.add_argument("--cluster", metavar="NAME", help="name of the cluster (FLYPG_CLUSTER)")


def _snapshots(commands: Commands[Parser]) -> None:
    snapshots = commands.add_parser("snapshots", description=f"Snapshots of the cluster's data.\n{WHERE}")
    actions = snapshots.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")

    def action(name: str, run: str, short: str, about: str) -> Parser:
        made = actions.add_parser(name, help=short, description=about)
        made.set_defaults(run=f"flypg.commands.snapshots:{run}")
        _where(made)
        return made

    action("list", "run_list", "list them, newest first", "List the snapshots, newest first.")
    create = action(
        "create",
        "create",
        "take one now",
        "Take a snapshot now, of the PostgreSQL on this machine, standby or primary. Agents take them by themselves,\n"
        "on FLYPG_SNAPSHOT_SCHEDULE. Fails without leaving anything listed.",
    )
    create.add_argument("--node", metavar="NODE", help="node of a local cluster to take it from (n1)")
    create.add_argument("--conninfo", metavar="CONNINFO", help="a server, instead of this node's")
    _cluster(create)
    for name, run, short, about in (
        ("show", "show", "everything recorded of one", "Print everything that is recorded of a snapshot."),
        ("delete", "delete", "delete one for good", "Delete a snapshot for good. WAL goes with the next sweep."),
        ("pin", "pin", "keep one, however old", "Keep a snapshot, however old it becomes; --off ends that."),
        (
            "verify",
            "verify",
            "restore one in a test",
            "Restore a snapshot into a scratch directory, start it, check every table and index (pg_amcheck) and\n"
            "page, remove it, and record the result with the time a restore takes. Ends with 1 when it fails.",
        ),
    ):
        one = action(name, run, short, about)
        default = {"nargs": "?", "default": "latest"} if name == "verify" else {}
        one.add_argument("id", metavar="ID", help="vs_… or latest", **default)  # type: ignore[arg-type]
        if name == "delete":
            one.add_argument("--yes", action="store_true", help="do not ask")
        if name == "pin":
            one.add_argument("--off", action="store_true", help="let retention have it again")
        if name == "verify":
            _cluster(one)
            one.add_argument("--scratch", metavar="DIR", help="where to restore (FLYPG_SNAPSHOT_SCRATCH)")
            one.add_argument("--node", metavar="NODE", help="recorded as where it was tried")
            one.add_argument("--programs", metavar="DIR", help="PostgreSQL's programs, if not in the usual place")


def _restore(commands: Commands[Parser]) -> None:
    restore = commands.add_parser(
        "restore",
        description="Restore a cluster's data as it was at any archived moment. Shows the plan (snapshot, timelines,\n"
        "WAL) and asks before anything is done; the recovery runs on a server that nobody can reach.\n"
        "  --into DIR   what comes out is the data directory of a primary, for the first node of a new cluster\n"
        "  --in-place   the whole cluster goes back to that moment, where it is: its agents stop, one of them\n"
        f"               restores, the others copy from it; old data is kept beside the new\n{WHERE}",
        epilog="examples:\n  flypg restore --in-place --to-time 2026-11-28T14:30:00Z\n"
        "  flypg restore --into /data/pgdata\n"
        "  flypg restore --into /tmp/yesterday --to-time 2026-11-28T14:30:00Z\n"
        "  flypg restore --into /tmp/before --to-name before_migration",
    )
    restore.set_defaults(run="flypg.commands.restore:run")
    restore.add_argument("--into", metavar="DIR", help="the data directory to make; must be empty")
    restore.add_argument(
        "--snapshot", metavar="ID", default="latest", help="vs_… or latest (default: what serves best)"
    )
    target = restore.add_argument_group("up to (default: the end of the archived WAL)")
    target.add_argument("--to-time", metavar="TIME", help="ISO 8601, UTC without a zone")
    target.add_argument("--to-lsn", metavar="LSN", help="a place in the WAL")
    target.add_argument("--to-name", metavar="NAME", help="a restore point (pg_create_restore_point)")
    target.add_argument("--to-xid", metavar="XID", help="a transaction")
    target.add_argument("--snapshot-only", action="store_true", help="the end of the snapshot, without archived WAL")
    target.add_argument("--exclusive", action="store_true", help="stop just before the target instead of after it")
    target.add_argument("--timeline", type=positive, metavar="N", help="along the line to this timeline (the newest)")
    place = restore.add_argument_group("in place")
    place.add_argument(
        "--in-place", action="store_true", help="the whole cluster; with --into: move aside what is in DIR"
    )
    place.add_argument("--node", metavar="NODE", help="the node that restores (default: the primary)")
    place.add_argument("--confirm", metavar="NAME", help="the cluster's name, instead of typing it")
    place.add_argument("--discard-old", action="store_true", help="remove the old data once the restore has worked")
    place.add_argument("--follow", action="store_true", help="watch the restore that was asked for")
    place.add_argument("--cancel", action="store_true", help="give it up, and start the cluster as it was")
    place.add_argument("--no-wait", action="store_true", help="do not wait until it is done")
    place.add_argument("--wait", type=seconds, metavar="SECONDS", default=86400.0, help="how long (a day)")
    place.add_argument("--etcd", metavar="HOST:PORT,…", help="etcd endpoints (FLYPG_ETCD_ENDPOINTS)")
    place.add_argument("--cluster", metavar="NAME", help="name of the cluster (FLYPG_CLUSTER)")
    restore.add_argument("--plan", action="store_true", help="show the plan and do nothing")
    restore.add_argument("--yes", action="store_true", help="do not ask")
    restore.add_argument("--programs", metavar="DIR", help="PostgreSQL's programs, if not in the usual place")
    _where(restore)


def _backups(commands: Commands[Parser]) -> None:
    backups = commands.add_parser("backups", description=f"The repository of snapshots and WAL as a whole.\n{WHERE}")
    actions = backups.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for name, short, about in (
        (
            "status",
            "last snapshot, last WAL, what can be restored",
            "The last snapshot, how old the newest archived WAL is, and what can be restored.",
        ),
        (
            "check",
            "is everything there that is listed",
            "Compare the catalogue with what is stored, look for gaps in the WAL. Ends with 1 when something is wrong.",
        ),
        (
            "sweep",
            "delete what is older than asked",
            "Delete snapshots past FLYPG_SNAPSHOT_KEEP_DAYS, WAL that no kept snapshot needs, and the garbage of\n"
            "snapshots that were never committed. Agents do this after each snapshot.",
        ),
    ):
        one = actions.add_parser(name, help=short, description=about)
        one.set_defaults(run=f"flypg.commands.backups:{name}")
        if name == "check":
            one.add_argument("--deep", action="store_true", help="fetch every part and check its checksum")
        if name == "sweep":
            one.add_argument("--dry-run", action="store_true", help="say what would be deleted, delete nothing")
        _where(one)
