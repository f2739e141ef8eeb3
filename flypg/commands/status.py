"""flypg status: how the cluster is, now."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
from datetime import datetime

from cluster.errors import StoreUnavailable
from cluster.store import OperatorStore
from flypg.gather import look_at
from flypg.health import serving
from flypg.reply import Exit, Reply
from flypg.show import PLAIN, Style, status_data, status_text
from flypg.target import Target, with_store

CLEAR = "\x1b[H\x1b[J"


def terminal_style() -> Style:
    """Long lines are wrapped on a terminal, and there is colour unless NO_COLOR is set."""
    if not sys.stdout.isatty():
        return PLAIN
    width = max(60, shutil.get_terminal_size().columns)
    return Style(not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb", width)


def run(args: argparse.Namespace) -> Reply:
    if args.watch:
        return with_store(args, lambda store, target: watch(args, store, target))
    return with_store(args, lambda store, target: once(args, store, target, terminal_style()))


async def once(args: argparse.Namespace, store: OperatorStore, target: Target, style: Style) -> Reply:
    """One look."""
    snapshot = await store.read()
    looks, events = await asyncio.gather(look_at(snapshot), store.read_events(max(args.events, 0)))
    code = Exit.OK if serving(snapshot).yes else Exit.FAILED
    if args.json:
        return Reply(code, data=status_data(snapshot, looks, events, cluster=target.cluster))
    return Reply(code, status_text(snapshot, looks, events, title=target.said, style=style), data={})


async def watch(args: argparse.Namespace, store: OperatorStore, target: Target) -> Reply:
    """Look again and again. On a terminal the screen is redrawn; with --json there is one document per line."""
    style = terminal_style()
    redraw = CLEAR if sys.stdout.isatty() else ""
    while True:
        try:
            reply = await once(args, store, target, style)
            text = json.dumps(reply.data, ensure_ascii=False) if args.json else reply.text
        except StoreUnavailable as error:
            text = (
                json.dumps({"error": str(error)}) if args.json else f"{target.said}\n\netcd cannot be reached: {error}"
            )
        stamp = "" if args.json else f"{datetime.now():%H:%M:%S}  every {args.every:g} s, Ctrl-C ends\n"
        print(f"{redraw}{stamp}{text}", flush=True)
        await asyncio.sleep(max(args.every, 0.1))
