"""flypg spec, init: the cluster's wishes, checked and shown as a difference before anything is written."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from cluster import spec as wishes
from cluster.errors import StoreConflict
from cluster.model import Event, Snapshot, Spec
from cluster.store import OperatorStore
from flypg.editor import edited
from flypg.reply import BadInput, Exit, Refused, Reply, done
from flypg.target import Target, whoami, with_store
from postgres.config import OWNED


def show(args: argparse.Namespace) -> Reply:
    return with_store(args, _show)


async def _show(store: OperatorStore, target: Target) -> Reply:
    spec = (await store.read()).spec
    return done(f"# {target.said}\n{wishes.to_toml(spec).rstrip()}", {"spec": data(spec)})


def data(spec: Spec) -> dict[str, object]:
    """The spec as JSON. Pure."""
    plain: dict[str, object] = {name: getattr(spec, name) for name in wishes.WISHES}
    return plain | {"durability": str(spec.durability), "hba": list(spec.hba), "parameters": dict(spec.parameters)}


def change(args: argparse.Namespace) -> Reply:
    """flypg spec set KEY=VALUE…"""
    return with_store(args, lambda store, _: _change(args, store))


async def _change(args: argparse.Namespace, store: OperatorStore) -> Reply:
    snapshot = await store.read()
    return await _apply(args, store, snapshot, wishes.assign(snapshot.spec, args.changes, OWNED))


def edit(args: argparse.Namespace) -> Reply:
    """flypg spec edit [--file FILE]"""
    return with_store(args, lambda store, target: _edit(args, store, target))


async def _edit(args: argparse.Namespace, store: OperatorStore, target: Target) -> Reply:
    snapshot = await store.read()
    if args.file:
        return await _apply(args, store, snapshot, _read(args.file))
    if not sys.stdin.isatty():
        raise BadInput("nobody is here to edit; give --file FILE, or - for standard input")
    text = f"# {target.said}\n{wishes.to_toml(snapshot.spec)}"
    return await _apply(args, store, snapshot, wishes.from_toml(edited(text), OWNED))


def _read(file: str) -> Spec:
    """The spec in a file, TOML or JSON."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except OSError as error:
        raise BadInput(f"--file {file}: {error.strerror}") from None
    read = wishes.from_json if text.lstrip().startswith("{") else wishes.from_toml
    return read(text, OWNED)


async def _apply(args: argparse.Namespace, store: OperatorStore, snapshot: Snapshot, new: Spec) -> Reply:
    """Show what changes, ask on a terminal, write."""
    lines = wishes.diff(snapshot.spec, new)
    found: dict[str, object] = {"changes": lines, "applied": False, "spec": data(new)}
    if not lines:
        return done("nothing changes", found)
    text = "\n".join(f"  {line}" for line in lines)
    if args.dry_run:
        return done(f"{text}\nnot applied (--dry-run)", found)
    if not args.yes and sys.stdin.isatty() and not args.json:
        print(f"{text}\nApply? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return Reply(Exit.REFUSED, "not confirmed; nothing was changed", found)
    term = snapshot.view.term if snapshot.view else 0
    event = Event(time.time(), term, "spec", "; ".join(lines), by=whoami())
    await store.put_spec(new, read_at=snapshot.spec_revision, events=(event,))
    return done(f"{text}\napplied", found | {"applied": True})


def init(args: argparse.Namespace) -> Reply:
    """flypg init [KEY=VALUE…]: the wishes of a cluster before its first node starts."""
    return with_store(args, lambda store, target: _init(args, store, target))


async def _init(args: argparse.Namespace, store: OperatorStore, target: Target) -> Reply:
    snapshot = await store.read()
    if snapshot.view is not None:
        raise Refused(f"{target.said} exists already (term {snapshot.view.term}); change it with flypg spec set")
    if snapshot.spec_revision:
        raise Refused(f"{target.said} has been initialised already; change it with flypg spec set")
    new = wishes.assign(Spec(), args.changes, OWNED)
    event = Event(time.time(), 0, "spec", "initialised", by=whoami())
    try:
        await store.put_spec(new, read_at=0, events=(event,))
    except StoreConflict:
        raise Refused(f"{target.said} was initialised by somebody else at this moment") from None
    lines = [f"  {line}" for line in wishes.diff(Spec(), new)] or ["  all at their defaults"]
    text = "\n".join([f"initialised {target.said}", *lines, "the first agent that starts founds it"])
    return done(text, {"spec": data(new)})
