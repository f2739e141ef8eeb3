"""`flypg fly NAME …`: the programs that flyctl and Fly's documentation run on a machine over ssh."""

from __future__ import annotations

import argparse

from flypg.parsing import Parser

ABOUT = """\
The programs that flyctl and people run over ssh on a machine of Fly's own Postgres app, under the same names and with
the same answers. In the image each is in PATH under its own name: `pg-role` is `flypg fly pg-role`."""
NAMES = (
    ("connect", "[DATABASE [USER [PASSWORD]]]: psql to the primary"),
    ("flyadmin", "COMMAND [JSON]: databases and users"),
    ("pg-failover", "hand the primary role over"),
    ("pg-restart", "restart this machine's PostgreSQL"),
    ("pg-role", "leader or replica"),
    ("pg-settings", "[BASE64]: settings by name, comma separated"),
    ("stolonctl", "status, spec, update --patch, clusterdata read, failkeeper, removekeeper, promote, version"),
    ("stolonctl-run", "BASE64: the arguments of stolonctl"),
)


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    listing = "\n".join(f"  {name:<14} {what}" for name, what in NAMES)
    fly = commands.add_parser("fly", description=f"{ABOUT}\n\n{listing}")
    fly.set_defaults(run="flypg.commands.fly:run")
    fly.add_argument("name", metavar="NAME", choices=[name for name, _ in NAMES])
    fly.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…")
