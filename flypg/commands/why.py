"""flypg why: what was decided lately, and for which reason."""

from __future__ import annotations

import argparse

from cluster.model import Branch, Event, Promise, Snapshot, View, format_lsn
from cluster.quorum import binding, missing, needed
from cluster.store import OperatorStore
from flypg.commands.status import terminal_style
from flypg.reply import BadInput, Reply, done
from flypg.show import event_data, event_lines
from flypg.target import Target, with_store

MANY = 500  # events looked through for those of one term


def run(args: argparse.Namespace) -> Reply:
    return with_store(args, lambda store, target: why(args, store, target))


async def why(args: argparse.Namespace, store: OperatorStore, target: Target) -> Reply:
    snapshot = await store.read()
    if snapshot.view is None:
        return done(f"{target.said}\n\nthis cluster was never founded: start its first agent", {"founded": False})
    term = args.term or snapshot.view.term
    if term > snapshot.view.term:
        raise BadInput(f"term {term} has not come yet; the current one is {snapshot.view.term}")
    events = await store.read_events(MANY if args.term else args.events)
    chosen = [e for e in events if not args.term or e.term == args.term][-args.events :]
    text = "\n".join(
        [target.said, "", *term_lines(snapshot, snapshot.view, term), "", *_history(chosen, term, args.term)]
    )
    return done(text, {"term": term, **_data(snapshot, snapshot.view, term), "events": [event_data(e) for e in chosen]})


def _history(events: list[Event], term: int, only: int | None) -> list[str]:
    if not events:
        return [f"no event of term {term} is kept any more" if only else "no events are kept"]
    return ["decisions and events, oldest first", event_lines(events, terminal_style())]


def term_lines(snapshot: Snapshot, view: View, term: int) -> list[str]:
    """How a term came to be: its cause, the timeline it left, the promises it stands on. Pure."""
    branch = _branch(view, term)
    lines = [f"term {term}" + (f" is the current one: {view.phase}" if term == view.term else "")]
    if term == view.term:
        lines.append(f"  cause     {view.cause or 'not recorded'}")
        if view.deposed:
            lines.append(f"  replaced  {view.deposed}")
        lines.append(f"  now       {view.why or 'nothing is under way'}")
    if branch is not None:
        lines.append(
            f"  primary   {branch.primary}, timeline {branch.timeline}" + ("" if branch.opened else ", not opened")
        )
        if branch.parent:
            lines.append(f"  fork      left timeline {branch.parent} at {format_lsn(branch.fork)}")
    for promise in promises_of(snapshot, term):
        lines.append(f"  promise   {promise.node} had {promise.position}")
    if term == view.term:
        lines += _rule_lines(snapshot, view)
    return lines


def _rule_lines(snapshot: Snapshot, view: View) -> list[str]:
    """The rules in force, and what a failover would need of each."""
    promises = promises_of(snapshot, view.term)
    lines = []
    for rule in view.rules:
        if rule.lone:
            lines.append(f"  rule      {rule}: no failover without {rule.primary} itself")
        else:
            lines.append(f"  rule      {rule}: to replace it, {needed(rule)} of them must promise")
    lacking = missing(binding(view, promises), {p.node for p in promises})
    if view.primary is None and lacking is not None:
        lines.append(f"  missing   {lacking}")
    return lines


def promises_of(snapshot: Snapshot, term: int) -> list[Promise]:
    return sorted((p for p in snapshot.promises.values() if p.term == term), key=lambda p: p.node)


def _branch(view: View, term: int) -> Branch | None:
    return next((b for b in view.branches if b.term == term), None)


def _data(snapshot: Snapshot, view: View, term: int) -> dict[str, object]:
    branch = _branch(view, term)
    return {
        "founded": True,
        "current": term == view.term,
        "cause": view.cause if term == view.term else None,
        "why": view.why if term == view.term else None,
        "primary": branch.primary if branch else None,
        "timeline": branch.timeline if branch else None,
        "parent_timeline": branch.parent if branch else None,
        "fork": format_lsn(branch.fork) if branch else None,
        "rules": [str(rule) for rule in view.rules] if term == view.term else None,
        "promises": [
            {"node": p.node, "timeline": p.position.timeline, "lsn": format_lsn(p.position.lsn)}
            for p in promises_of(snapshot, term)
        ],
    }
