"""Every command and option of `flypg`, and nothing else: what they do is imported only once one of them was chosen."""

from __future__ import annotations

import argparse

from flypg import cli_access, cli_backups, cli_drill, cli_fly, cli_tls
from flypg.parsing import Parser, listing, positive, seconds
from flypg.reply import EXIT_CODES

TOP = """\
flypg: PostgreSQL with a primary that is replaced in about a second, without losing an acknowledged write.

{commands}

Which cluster: --etcd and --cluster, or FLYPG_ETCD_ENDPOINTS and FLYPG_CLUSTER; with none of these, the cluster that
`flypg local up` started on this machine. `flypg COMMAND --help` says more about each.

{codes}"""

GROUPS = (
    (
        "look",
        (
            ("status", "members, roles, lag, and whether a failover would lose anything"),
            ("why", "what was decided lately, and for which reason"),
            ("members", "how to reach each node, and what it may become"),
        ),
    ),
    (
        "change",
        (
            ("switchover", "hand the primary role over; nothing is lost"),
            ("failover", "replace the primary now"),
            ("pause, resume", "stop and restart automatic failover, for maintenance"),
            ("node", "restart, copy afresh, or remove one node"),
            ("spec", "show or change the cluster's wishes: durability, parameters, …"),
            ("init", "write the wishes of a cluster that does not exist yet"),
        ),
    ),
    (
        "use",
        (
            ("users", "list, create, set-role, set-password, drop"),
            ("databases", "list, create, drop"),
            ("pool", "show or change how pooled clients share connections"),
            ("attach, detach", "a database and a user for an application"),
            ("connect", "psql on the primary, or on a node"),
            ("connection-string", "how to reach it, with advice for client libraries"),
            ("tls", "certificates: show, ca (for clients), rotate, retire"),
        ),
    ),
    (
        "keep and restore",
        (
            ("snapshots", "list, create, verify, delete snapshots"),
            ("restore", "the data as it was at any moment, into a directory or in place"),
            ("backups", "status, check and sweep of the repository"),
        ),
    ),
    (
        "try it on this machine",
        (
            ("local", "a whole cluster on loopback: up, down, status, env, node, logs"),
            ("drill", "break a cluster on purpose and see what clients saw: list, run, soak, bench"),
        ),
    ),
    (
        "run",
        (
            ("agent", "run this node: PostgreSQL, its routers and checks"),
            ("sentinel", "run a witness: votes for a leader, holds no data"),
            ("config", "check this node's settings"),
            ("fly", "what flyctl runs over ssh: pg-role, stolonctl-run, …"),
            ("dev", "for work on flypg itself: replay a simulation"),
            ("version", "print the version"),
        ),
    ),
)


def build_parser() -> Parser:
    """The whole command line. Each command's `run` names its function as `module:function`."""
    top = TOP.format(commands=listing(GROUPS), codes=EXIT_CODES)
    parser = Parser(prog="flypg", usage="flypg COMMAND [options]", description=top, add_help=True)
    commands = parser.add_subparsers(
        prog="flypg", dest="command", metavar="COMMAND", help=argparse.SUPPRESS, required=True
    )
    _look(commands)
    _change(commands)
    _spec(commands)
    cli_access.add(commands)
    cli_tls.add(commands)
    cli_backups.add(commands)
    _local(commands)
    cli_drill.add(commands)
    cli_fly.add(commands)
    _run(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction[Parser], name: str, run: str, about: str, *, cluster: bool = False
) -> Parser:
    made = commands.add_parser(name, description=about)
    made.set_defaults(run=run)
    if cluster:
        _cluster_options(made)
    return made


def _cluster_options(parser: Parser) -> None:
    group = parser.add_argument_group("which cluster")
    group.add_argument("--etcd", metavar="HOST:PORT,…", help="etcd endpoints (FLYPG_ETCD_ENDPOINTS)")
    group.add_argument("--cluster", metavar="NAME", help="name of the cluster (FLYPG_CLUSTER)")
    group.add_argument("--dir", metavar="DIR", help="directory of a local cluster (FLYPG_LOCAL_DIR)")


def _wait_options(parser: Parser) -> None:
    group = parser.add_argument_group("waiting")
    group.add_argument("--wait", type=seconds, default=30.0, metavar="S", help="seconds to wait for the end (30)")
    group.add_argument("--no-wait", action="store_true", help="ask, and do not wait for the end")
    parser.add_argument("--json", action="store_true", help="answer in JSON")


def _look(commands: argparse._SubParsersAction[Parser]) -> None:
    status = _command(
        commands,
        "status",
        "flypg.commands.status:run",
        "Members, roles, lag and health; the term, its rule and primary; the last events.\n"
        "Lag is asked of each node as you look; a node that does not answer shows what it last reported.\n"
        "Ends with 1 when there is no primary that serves clients.",
        cluster=True,
    )
    status.add_argument("--watch", action="store_true", help="repeat until Ctrl-C")
    status.add_argument("--every", type=seconds, default=1.0, metavar="S", help="seconds between looks (1)")
    status.add_argument("--events", type=int, default=5, metavar="N", help="how many of the last events (5)")
    status.add_argument("--json", action="store_true", help="answer in JSON")

    why = _command(
        commands,
        "why",
        "flypg.commands.why:run",
        "What was decided lately and why. For a change of primary: its cause, the rules it had to satisfy, who\n"
        "promised what, and where the new timeline left the old one.",
        cluster=True,
    )
    why.add_argument("term", nargs="?", type=positive, help="only this term (default: the current one)")
    why.add_argument("--events", type=int, default=20, metavar="N", help="how many of the last events (20)")
    why.add_argument("--json", action="store_true", help="answer in JSON")

    members = _command(
        commands,
        "members",
        "flypg.commands.members:run",
        "Every node of the cluster: its addresses, region, priority, and whether it may vote or become primary.",
        cluster=True,
    )
    members.add_argument("--json", action="store_true", help="answer in JSON")


def _change(commands: argparse._SubParsersAction[Parser]) -> None:
    _switchover(commands)
    _failover(commands)
    for name, about in (
        ("pause", "Stop automatic failover and every other change by flypg, for maintenance. PostgreSQL runs on."),
        ("resume", "End a pause."),
    ):
        at_once = _command(commands, name, f"flypg.commands.change:{name}", about, cluster=True)
        at_once.add_argument("--json", action="store_true", help="answer in JSON")
    _node(commands)


def _switchover(commands: argparse._SubParsersAction[Parser]) -> None:
    switchover = _command(
        commands,
        "switchover",
        "flypg.commands.switchover:run",
        "Hand the primary role to another node. The old primary stops in order first, so nothing is lost; clients\n"
        "wait for a fraction of a second. Refused, without any effect, when the target cannot take over now.\n"
        "Transactions that have been open for a while are listed, and given a little time to end.",
        cluster=True,
    )
    switchover.add_argument("--to", metavar="NODE", help="the new primary (default: the best standby)")
    switchover.add_argument(
        "--wait-transactions",
        type=seconds,
        default=2.0,
        metavar="S",
        help="seconds for open transactions to end (2)",
    )
    switchover.add_argument(
        "--then",
        choices=("end", "call-off"),
        default="end",
        help="what becomes of those still open: they are ended (the default), or the switchover is called off",
    )
    _wait_options(switchover)


def _failover(commands: argparse._SubParsersAction[Parser]) -> None:
    failover = _command(
        commands,
        "failover",
        "flypg.commands.change:failover",
        "Replace the primary now, whether or not it answers. Without --accept-data-loss this is done only when every\n"
        "acknowledged write is known to survive; otherwise it is refused and says what is missing.",
        cluster=True,
    )
    failover.add_argument(
        "--accept-data-loss",
        action="store_true",
        help="promote even if acknowledged writes may be lost, and the old primary may still serve clients unseen",
    )
    failover.add_argument("--yes", action="store_true", help="do not ask")
    _wait_options(failover)


def _node(commands: argparse._SubParsersAction[Parser]) -> None:
    node = commands.add_parser("node", description="One node of the cluster.")
    actions = node.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for name, short, about in (
        ("restart", "restart its PostgreSQL", "Restart PostgreSQL on NODE, e.g. to apply pending parameters."),
        (
            "reclone",
            "copy its data afresh",
            "Copy the data of NODE afresh from another node. Refused for the primary. What it had is kept aside.",
        ),
        (
            "remove",
            "take it out of the cluster",
            "Take NODE out of the cluster and drop its replication slots. Stop its agent first, else it joins again.",
        ),
    ):
        action = actions.add_parser(name, help=short, description=about)
        action.set_defaults(run=f"flypg.commands.change:node_{name}")
        if name == "restart":
            action.add_argument("node", metavar="NODE", nargs="?")
            action.add_argument(
                "--pending",
                action="store_true",
                help="every node with parameters that wait for a restart: standbys first, then the primary",
            )
        else:
            action.add_argument("node", metavar="NODE")
            action.add_argument("--yes", action="store_true", help="do not ask")
        _wait_options(action)
        _cluster_options(action)


def _spec(commands: argparse._SubParsersAction[Parser]) -> None:
    spec = commands.add_parser(
        "spec", description="The cluster's wishes, kept in etcd: durability, timing, PostgreSQL parameters, pg_hba."
    )
    actions = spec.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    show = actions.add_parser("show", help="print it", description="Print the cluster's wishes.")
    change = actions.add_parser(
        "set",
        help="change single keys",
        description="Change single keys. Shows what changes, then applies it; nodes follow at once.\n"
        "`flypg spec show` explains every key.",
        epilog="examples:\n  flypg spec set durability=strict k=2\n  flypg spec set parameters.work_mem=16MB\n"
        "  flypg spec set parameters.work_mem=      back to the default",
    )
    change.add_argument("changes", nargs="+", metavar="KEY=VALUE")
    edit = actions.add_parser(
        "edit",
        help="open it in $EDITOR",
        description="Open the wishes in $EDITOR (or read them from --file), check them, show what changes, apply it.",
    )
    edit.add_argument("--file", metavar="FILE", help="read from FILE instead, - for standard input")
    for action, name in ((show, "show"), (change, "change"), (edit, "edit")):
        action.set_defaults(run=f"flypg.commands.spec:{name}")
        if action is not show:
            action.add_argument("--dry-run", action="store_true", help="show what would change, change nothing")
            action.add_argument("--yes", action="store_true", help="do not ask")
        action.add_argument("--json", action="store_true", help="answer in JSON")
        _cluster_options(action)
    init = _command(
        commands,
        "init",
        "flypg.commands.spec:init",
        "Write the wishes of a new cluster before its first node starts. The first agent to come then founds it: with\n"
        "a new database, or with the data directory it already has (adoption). Refused when the cluster exists.",
        cluster=True,
    )
    init.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="wishes that differ from the defaults")
    init.add_argument("--json", action="store_true", help="answer in JSON")


def _local(commands: argparse._SubParsersAction[Parser]) -> None:
    local = commands.add_parser(
        "local",
        description="A whole cluster on this machine: etcd, and one agent with PostgreSQL and its routers per node,\n"
        "all on loopback. For trying flypg out, for drills and for tests.",
    )
    actions = local.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")

    def action(name: str, short: str, about: str = "") -> Parser:
        made = actions.add_parser(name, help=short, description=about or short[0].upper() + short[1:] + ".")
        made.set_defaults(run=f"flypg.commands.local:{name}")
        made.add_argument("--dir", metavar="DIR", help="directory of the cluster (FLYPG_LOCAL_DIR)")
        return made

    up = action(
        "up",
        "start a cluster, or what is missing of it",
        "Start a cluster and wait until it is healthy. Safe to repeat: what runs is left alone, what is missing is\n"
        "started, after a reboot too. More --nodes than before adds nodes.",
    )
    up.add_argument("--nodes", type=positive, metavar="N", help="number of nodes (3)")
    up.add_argument("--etcd-members", type=positive, metavar="N", help="number of etcd members: 1, 3 or 5 (1)")
    up.add_argument("--port-base", type=positive, metavar="PORT", help="first port of the first node's hundred (15400)")
    up.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting for every node's environment"
    )
    begin = up.add_argument_group("begin with the data of a snapshot (a new cluster only)")
    begin.add_argument("--from-snapshot", metavar="ID", help="vs_… or latest, and all WAL archived after it")
    begin.add_argument("--repository", metavar="URL", help="where it is: file:///DIRECTORY or s3://BUCKET/PREFIX")
    begin.add_argument("--path", metavar="CLUSTER/SYSTEM-INCARNATION", help="one history in it (the newest)")
    up.add_argument("--wait", type=seconds, default=120.0, metavar="S", help="seconds to wait until healthy (120)")
    up.add_argument("--no-wait", action="store_true", help="start everything and do not wait")

    down = action("down", "stop everything that up started", "Stop everything that `up` started. Data is kept.")
    down.add_argument("--destroy", action="store_true", help="remove the data as well, after asking")
    down.add_argument("--yes", action="store_true", help="do not ask")
    status = action("status", "which of its processes run, and where")
    status.add_argument("--json", action="store_true", help="answer in JSON")
    action(
        "env",
        "print PGHOST, PGPORT, … for psql",
        'Print the environment for psql and other clients: eval "$(flypg local env)"; psql\n'
        "It leads to port 5432 of the first node, which always leads to the primary.",
    ).add_argument("--node", metavar="NAME", help="through this node instead of the first that runs")
    logs = action("logs", "print what one node, or etcd, has logged")
    logs.add_argument("name", metavar="NAME", help="n1, n2, … or e1, e2, … for etcd")
    logs.add_argument("--lines", type=positive, default=50, metavar="N", help="how many of the last lines (50)")
    logs.add_argument("--follow", action="store_true", help="go on until Ctrl-C")

    node = actions.add_parser("node", help="start, stop or kill one node", description="One node of a local cluster.")
    node_actions = node.add_subparsers(dest="node_action", metavar="ACTION", required=True, title="actions")
    for name, short in (
        ("start", "start it again"),
        ("stop", "stop it in order; a primary hands over first"),
        ("kill", "kill -9 its agent, PostgreSQL, routers and fence, as if the machine were lost"),
    ):
        one = node_actions.add_parser(name, help=short, description=short[0].upper() + short[1:] + ".")
        one.set_defaults(run=f"flypg.commands.local:node_{name}")
        one.add_argument("name", metavar="NAME", help="n1, n2, …")
        one.add_argument("--dir", metavar="DIR", help="directory of the cluster (FLYPG_LOCAL_DIR)")


def _run(commands: argparse._SubParsersAction[Parser]) -> None:
    settings = "Settings come from the environment, over the file named by --config: docs/settings.md lists them."
    for name, about in (
        ("agent", "Run this node in the foreground: keeper, sentinel, PostgreSQL, HAProxy, checks and metrics."),
        ("sentinel", "Run a witness in the foreground: it can lead the cluster, and has no PostgreSQL."),
    ):
        made = _command(commands, name, f"flypg.commands.run:{name}", f"{about}\n{settings}")
        made.add_argument("--config", metavar="FILE", help="settings file, TOML (FLYPG_CONFIG)")
    config = commands.add_parser("config", description="This node's settings.")
    actions = config.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    check = actions.add_parser(
        "check",
        help="read the settings and say what is wrong",
        description=f"Read the settings as an agent would, print them without passwords, name any error.\n{settings}",
    )
    check.set_defaults(run="flypg.commands.run:config_check")
    check.add_argument("--config", metavar="FILE", help="settings file, TOML (FLYPG_CONFIG)")
    check.add_argument("--json", action="store_true", help="answer in JSON")
    dev = commands.add_parser("dev", description="For work on flypg itself; needs a checkout of the source.")
    tools = dev.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    simulate = tools.add_parser(
        "simulate", help="replay one simulated run", description="Replay the simulated run of SEED, step by step."
    )
    simulate.set_defaults(run="flypg.commands.dev:simulate")
    simulate.add_argument("seed", type=int, metavar="SEED")
    simulate.add_argument("--trace", action="store_true", help="print every step")
    version = _command(commands, "version", "flypg.commands.run:version", "Print the version.")
    version.add_argument("--json", action="store_true", help="answer in JSON")
