"""The commands around TLS. What they do is imported only once one was chosen."""

from __future__ import annotations

from flypg.cli_access import Commands, finish
from flypg.parsing import Parser, seconds

RUN = "flypg.commands.tls:"


def add(commands: Commands[Parser]) -> None:
    tls = commands.add_parser(
        "tls",
        description="Certificates: each node's is made, signed by the cluster's own authority, and renewed by itself.",
    )
    actions = tls.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    show = actions.add_parser(
        "show",
        help="who signs, and what each node shows",
        description="The authority, and each node's certificate: what it should show, and what its ports show now.",
    )
    finish(show, RUN + "show")
    ca = actions.add_parser(
        "ca",
        help="print the authority's certificate",
        description="Print what clients need to verify the servers: the certificates of all authorities that are\n"
        "trusted, in PEM. The file is no secret:\n  flypg tls ca > root.crt\n"
        "  psql 'host=… sslmode=verify-full sslrootcert=root.crt …'",
    )
    finish(ca, RUN + "ca")
    rotate = actions.add_parser(
        "rotate",
        help="new certificates for every node",
        description="New keys and certificates for every node. No connection is dropped: new ones see the new\n"
        "certificate. With --ca, a new authority too: the old one is trusted until `flypg tls retire`, and clients\n"
        "that know only the old one can still verify every node.",
    )
    rotate.add_argument("--ca", action="store_true", help="a new authority as well")
    retire = actions.add_parser(
        "retire",
        help="trust an old authority no more",
        description="End what `flypg tls rotate --ca` began: the old authority is not trusted any more. Clients must\n"
        "have been given the new one before (flypg tls ca).",
    )
    retire.add_argument("--yes", action="store_true", help="do not ask")
    for action, name in ((rotate, "rotate"), (retire, "retire")):
        action.add_argument("--wait", type=seconds, default=60.0, metavar="S", help="seconds to wait for the end (60)")
        action.add_argument("--no-wait", action="store_true", help="ask, and do not wait for the end")
        finish(action, RUN + name)
