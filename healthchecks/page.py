"""The page that a person opens when it burns: who is primary, how each node is, what a failure now would cost. Pure.

It is complete without JavaScript; with it, the parts are replaced as the node learns of changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from cluster.model import Branch, Event, Member, NodeId, Phase, Snapshot, format_lsn
from healthchecks.outlook import outlook
from healthchecks.page_assets import SCRIPT, STYLE
from healthchecks.text import duration, size

Json = Mapping[str, Any]
REFRESH_S = 5  # without JavaScript
BEHIND_BYTES = 16 << 20  # more than this is worth a colour


@dataclass(frozen=True, slots=True)
class Seen:
    """What the page shows, gathered at `now` (seconds since 1970)."""

    cluster: str
    me: NodeId
    now: float
    snapshot: Snapshot | None
    snapshot_age_s: float
    looks: Mapping[NodeId, Json | None]  # each node's own word, as in GET /node; None: it did not answer
    events: tuple[Event, ...]  # oldest first


def parts(seen: Seen) -> dict[str, str]:
    """The pieces of the page by their ids."""
    return {
        "banner": _banner(seen),
        "cost": _cost(seen),
        "nodes": _nodes(seen),
        "agreed": _agreed(seen),
        "terms": _terms(seen),
        "history": _history(seen),
    }


def document(seen: Seen, nonce: str) -> str:
    """The whole page."""
    piece = parts(seen)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(seen.cluster)} on {escape(seen.me)}</title>
<noscript><meta http-equiv="refresh" content="{REFRESH_S}"></noscript>
<link rel="icon" href="data:,"><style nonce="{nonce}">{STYLE}</style></head>
<body><main>
<h1>{escape(seen.cluster)} <span class="dim">as seen by {escape(seen.me)} <span id="live"></span></span></h1>
<div id="banner" role="status">{piece["banner"]}</div>
<section aria-labelledby="h-cost"><h2 id="h-cost">If the primary failed now</h2><div id="cost">{piece["cost"]}</div>
</section>
<section aria-labelledby="h-nodes"><h2 id="h-nodes">Nodes</h2><div id="nodes">{piece["nodes"]}</div></section>
<section aria-labelledby="h-agreed"><h2 id="h-agreed">Agreed</h2><div id="agreed">{piece["agreed"]}</div></section>
<section aria-labelledby="h-terms"><h2 id="h-terms">Terms</h2><div id="terms">{piece["terms"]}</div></section>
<section aria-labelledby="h-history"><h2 id="h-history">Last events</h2><div id="history">{piece["history"]}</div>
</section>
<footer><a href="flycheck/pg">pg check</a><a href="flycheck/vm">vm check</a><a href="cluster">cluster as JSON</a>
<a href="history">history as JSON</a><a href="metrics">metrics</a><a href="openapi.json">commands</a></footer>
</main><script nonce="{nonce}">{SCRIPT}</script></body></html>
"""


def _box(kind: str, head: str, text: str) -> str:
    return f'<div class="banner {kind}"><strong>{escape(head)}</strong>{escape(text)}</div>'


def _banner(seen: Seen) -> str:
    snapshot, view = seen.snapshot, seen.snapshot.view if seen.snapshot is not None else None
    if snapshot is None or view is None:
        return _box("bad", "No cluster is known", "etcd has not been read yet, or no cluster was ever founded.")
    old = ""
    if seen.snapshot_age_s > 15:
        old = f" etcd has not answered this node for {ago(seen.snapshot_age_s)}: this may be old."
    if view.phase is not Phase.OPEN or view.primary is None:
        who = f"{view.primary} becomes primary" if view.primary else "There is no primary"
        reasons = "; ".join(dict.fromkeys(words for words in (view.cause, view.why) if words))
        return _box("bad", f"{who} (term {view.term}, {view.phase})", f"{reasons}.{old}")
    look = seen.looks.get(view.primary)
    if view.primary in seen.looks and (look is None or look.get("role") != "primary"):
        why = str(look.get("why", "")) if look is not None else "it does not answer"
        return _box("bad", f"{view.primary} should be primary (term {view.term})", f"It is not serving: {why}.{old}")
    if view.handover is not None:
        text = f"A switchover to {view.handover.target} is under way.{old}"
        return _box("warn", f"{view.primary} is primary (term {view.term})", text)
    paused = " Paused by an operator: nobody fails over." if snapshot.spec.paused else ""
    kind = "warn" if old or paused else "good"
    since = f"Since: {view.cause}" if view.cause else "Since the cluster was founded"
    return _box(kind, f"{view.primary} is primary (term {view.term})", f"{since}.{paused}{old}")


def _cost(seen: Seen) -> str:
    found = outlook(seen.snapshot)
    if found.safe:
        return _box("good", "Nothing would be lost", f"{found.why}.")
    return _box("warn", "The cluster could not fail over by itself without loss", f"{found.why}.")


def _table(heads: tuple[str, ...], rows: list[str], caption: str) -> str:
    if not rows:
        return f'<p class="dim">{escape(caption)}: none.</p>'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return f'<table aria-label="{escape(caption)}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _cell(label: str, text: str, kind: str = "") -> str:
    return f'<td data-label="{escape(label)}" class="{kind}">{escape(text)}</td>'


def _nodes(seen: Seen) -> str:
    view = seen.snapshot.view if seen.snapshot is not None else None
    if seen.snapshot is None or view is None:
        return '<p class="dim">Not known.</p>'
    lags = _lags(seen.looks.get(view.primary) if view.primary is not None else None)
    rows = [_node(seen, member, lags) for member in view.members]
    return _table(("Node", "Role", "State", "Behind", "Position", "Region", "Note"), rows, "Nodes of the cluster")


def _lags(primary: Json | None) -> dict[str, Json]:
    postgres = primary.get("postgres") if primary is not None else None
    return {row["node"]: row for row in (postgres or {}).get("standbys", ())}


def _node(seen: Seen, member: Member, lags: Mapping[str, Json]) -> str:
    assert seen.snapshot is not None and seen.snapshot.view is not None
    view, report, look = seen.snapshot.view, seen.snapshot.reports.get(member.node), seen.looks.get(member.node)
    postgres: Json = (look.get("postgres") or {}) if look is not None else {}
    role = "primary" if view.primary == member.node else "standby"
    if view.rule is not None and member.node in view.rule.voters:
        role += ", voter"
    state, kind = _state(report is not None, postgres, str(report.state) if report is not None else "")
    position = f"{postgres['lsn']} / {postgres.get('timeline')}" if postgres.get("lsn") else ""
    if not position and report is not None and report.position is not None:
        position = f"{format_lsn(report.position.lsn)} / {report.position.timeline}"
    behind, lag_kind = _behind(lags.get(member.node)) if view.primary != member.node else ("", "")
    note = "; ".join(_notes(member, postgres, str((look or {}).get("problem", "")), report.problem if report else ""))
    mine = " (this node)" if member.node == seen.me else ""
    cells = (
        _cell("Role", role),
        _cell("State", state, kind),
        _cell("Behind", behind, f"num {lag_kind}"),
        _cell("Position", position, "num"),
        _cell("Region", member.region),
        _cell("Note", note),
    )
    return f'<tr><th scope="row">{escape(member.node)}{mine}</th>{"".join(cells)}</tr>'


def _state(reports: bool, postgres: Json, reported: str) -> tuple[str, str]:
    if not reports:
        return "no report", "bad"
    if not postgres:
        return f"{reported}, does not answer us", "warn"
    if postgres.get("state") != "up":
        return str(postgres.get("state")), "bad"
    if postgres.get("in_recovery"):
        return ("streaming", "good") if postgres.get("streaming") else ("not streaming", "warn")
    return "up", "good"


def _behind(row: Json | None) -> tuple[str, str]:
    if row is None or row.get("lag_bytes") is None:
        return "unknown", "dim"
    text = size(int(row["lag_bytes"]))
    if row.get("lag_s") is not None:
        text += f", {duration(float(row['lag_s']))}"
    return text, "warn" if int(row["lag_bytes"]) > BEHIND_BYTES else ""


def _notes(member: Member, postgres: Json, problem: str, reported: str) -> list[str]:
    notes = [problem or reported] if problem or reported else []
    job = postgres.get("job")
    if job and job.get("running"):
        notes.append(f"{job['kind']} {job.get('progress', '')}".strip())
        notes += [job["note"]] if job.get("note") else []
    if postgres.get("pending_restart"):
        notes.append(f"restart pending for {', '.join(postgres['pending_restart'])}")
    if member.nofailover or member.priority == 0:
        notes.append("never primary")
    if member.nosync:
        notes.append("never a voter")
    return notes


def _agreed(seen: Seen) -> str:
    snapshot, view = seen.snapshot, seen.snapshot.view if seen.snapshot is not None else None
    if snapshot is None or view is None:
        return '<p class="dim">Not known.</p>'
    rules = " and ".join(str(rule) for rule in view.rules) or "none"
    mine = seen.looks.get(seen.me) or {}
    pairs = [
        ("A commit waits for", rules),
        ("Durability", str(snapshot.spec.durability)),
        ("Term, timeline", f"{view.term}, {view.timeline}"),
        ("Last change", view.why or "none"),
        ("Leading sentinel", snapshot.leader.sentinel if snapshot.leader is not None else "none: nobody would decide"),
        ("etcd last confirmed this", f"{ago(seen.snapshot_age_s)} ago"),
    ]
    if mine.get("role") == "primary":
        left = mine.get("authority_s")
        pairs.append(("Authority of this node", "as long as it lives" if left is None else f"{left:.1f} s left"))
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>"


def _terms(seen: Seen) -> str:
    view = seen.snapshot.view if seen.snapshot is not None else None
    branches = view.branches if view is not None else ()
    rows = [_term(branch) for branch in reversed(branches[-12:])]
    return _table(("Term", "Primary", "Timeline", "Left its parent at", ""), rows, "Terms, newest first")


def _term(branch: Branch) -> str:
    fork = f"{format_lsn(branch.fork)} of timeline {branch.parent}" if branch.parent else "the beginning"
    opened = "" if branch.opened else "never opened"
    return (
        f'<tr><th scope="row">{branch.term}</th>{_cell("Primary", branch.primary)}'
        f"{_cell('Timeline', str(branch.timeline), 'num')}{_cell('Left its parent at', fork, 'num')}"
        f"{_cell('', opened, 'warn')}</tr>"
    )


def _history(seen: Seen) -> str:
    rows = [_event(event, seen.now) for event in reversed(seen.events[-20:])]
    return _table(("When", "Term", "What", "Why", "By"), rows, "Last events, newest first")


def _event(event: Event, now: float) -> str:
    about = f"{event.kind} {event.node}".strip()
    when = f'<td data-label="When" class="num"><time datetime="{stamp(event.at)}">{stamp(event.at)}</time> '
    when += f'<span class="dim">({ago(now - event.at)} ago)</span></td>'
    return (
        f"<tr>{when}{_cell('Term', str(event.term), 'num')}{_cell('What', about)}{_cell('Why', event.text)}"
        f"{_cell('By', event.by)}</tr>"
    )


def ago(seconds: float) -> str:
    """`3 s`, `12 min`, `5 h`, `4 days`: as coarse as a person wants it."""
    if seconds == float("inf"):
        return "ever"
    seconds = max(0.0, seconds)
    for limit, unit, word in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {word}"
    return f"{seconds / 86400:.0f} days"


def stamp(seconds: float) -> str:
    """`2026-11-29T06:38:18Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
