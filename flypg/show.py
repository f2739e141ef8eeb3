"""How a cluster looks on a terminal and as JSON. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cluster.model import Event, NodeId, NodeReport, Position, ServerState, Snapshot, View, format_lsn
from flypg.backup_look import (
    NONE,
    BackupLook,
    archive_words,
    backups_data,
    combined,
    next_words,
    size,
    snapshot_words,
)
from flypg.health import complaints, failover_without_loss, is_silent, role, serving, sync
from flypg.look import Looks, NodeLook, StandbyLag, lag_of

COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
MISSING = "-"
SILENT = "does not answer"


@dataclass(frozen=True, slots=True)
class Style:
    """Colour and wrapped lines on a terminal, plain text anywhere else."""

    colour: bool = False
    width: int = 0  # columns to wrap long lines at; 0: not at all

    def __call__(self, name: str, text: str) -> str:
        return f"\x1b[{COLOURS[name]}m{text}\x1b[0m" if self.colour and text else text


PLAIN = Style()


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One line of the table of members."""

    node: NodeId
    role: str
    state: str
    region: str
    position: Position | None
    lag_bytes: int | None
    lag_s: float | None
    sync: str
    problem: str

    @property
    def healthy(self) -> bool:
        wanted = "primary" if self.role == "primary" else "standby"
        return not self.problem and self.state in (wanted, "streaming")


def rows(snapshot: Snapshot, looks: Looks) -> list[NodeRow]:
    """A row for every member, the primary first, and for nodes that wait to become members."""
    view = snapshot.view
    if view is None:
        return [_row_without_view(report) for _, report in sorted(snapshot.reports.items())]
    nodes = {m.node for m in view.members} | set(snapshot.reports)
    first = looks.get(view.primary) if view.primary else None
    made = [_row(snapshot, view, node, looks, first) for node in nodes]
    return sorted(made, key=lambda r: (r.node != view.primary, r.node))


def _row_without_view(report: NodeReport) -> NodeRow:
    row = NodeRow(report.node, MISSING, report.state, report.member.region, None, None, None, "", complaints(report))
    return replace(row, position=report.position)


def _row(snapshot: Snapshot, view: View, node: NodeId, looks: Looks, primary: NodeLook | None) -> NodeRow:
    report, member, look = snapshot.reports.get(node), view.member(node), looks.get(node)
    is_primary = view.primary == node
    position = (look.position if look else None) or (report.position if report else None)
    lag = StandbyLag(None, None) if is_primary else lag_of(node, primary, look)
    return NodeRow(
        node=node,
        role=role(view, node) if member else "joining",
        state="silent" if is_silent(node, looks) else _state(report, look),
        region=member.region if member else report.member.region if report else "",
        position=position,
        lag_bytes=lag.bytes,
        lag_s=lag.s,
        sync=sync(view, node),
        problem=(look.problem if look else "") or complaints(report) or (SILENT if is_silent(node, looks) else ""),
    )


def _state(report: NodeReport | None, look: NodeLook | None) -> str:
    if look is not None and look.progress:
        return look.progress
    state = (look.state if look else "") or (str(report.state) if report else "unknown")
    streaming = look.streaming if look and look.streaming is not None else bool(report and report.streaming)
    return "streaming" if state == ServerState.STANDBY and streaming else state


def status_text(snapshot: Snapshot, looks: Looks, events: Sequence[Event], *, title: str, style: Style = PLAIN) -> str:
    """What `flypg status` prints."""
    serves, safe = serving(snapshot), failover_without_loss(snapshot, looks)
    parts = [style("bold", title)]
    view = snapshot.view
    table = rows(snapshot, looks)
    if table:
        parts += ["", member_table(table, style)]
    parts += [
        "",
        f"clients   {style('green' if serves.yes else 'red', 'served' if serves.yes else 'NOT SERVED')}: {serves.why}",
    ]
    verdict = style("green", "yes") if safe.yes else style("yellow", "no")
    parts.append(f"failover  without loss now: {verdict}, {safe.why}")
    if view is not None:
        parts.append(f"term      {view.term} {view.phase}, timeline {view.timeline}" + _cause(view))
        parts.append(
            "rule      " + " and ".join(str(rule) for rule in view.rules) + f", durability {snapshot.spec.durability}"
        )
        if view.handover is not None:
            parts.append(f"handover  to {view.handover.target}: {view.handover.stage}")
    parts.append(f"leader    {snapshot.leader.sentinel if snapshot.leader else style('red', 'none')}")
    parts += backup_lines(cluster_backups(snapshot, looks), looks, style)
    if snapshot.spec.paused:
        parts.append(style("yellow", "PAUSED    flypg changes nothing by itself; flypg resume ends that"))
    for request in snapshot.requests:
        if not request.outcome:
            parts.append(
                f"asked     {request.kind} {request.node or ''} by {request.asked_by}, under way".replace("  ", " ")
            )
    parts += certificate_lines(looks, style)
    if events:
        parts += ["", style("dim", "last events"), event_lines(events, style)]
    return "\n".join(parts)


def cluster_backups(snapshot: Snapshot, looks: Looks) -> BackupLook | None:
    """What the nodes that answer say of backups, as one."""
    primary = snapshot.view.primary if snapshot.view else None
    return combined({node: look.backups for node, look in looks.items() if look is not None}, primary)


def backup_lines(backups: BackupLook | None, looks: Looks, style: Style = PLAIN) -> list[str]:
    """The last snapshot, the next, the archive; then what is wrong."""
    if backups is None:
        answered = any(look is not None for look in looks.values())
        return [f"backups   {style('yellow', NONE)}"] if answered else []
    lines = [f"backups   {snapshot_words(backups)}; {next_words(backups)}; {archive_words(backups)}"]
    lines += [style("red", f"          {problem}") for problem in backups.problems]
    return lines + [style("yellow", f"          {warning}") for warning in backups.warnings]


def _cause(view: View) -> str:
    return f", opened because: {view.cause}" if view.cause else ""


def certificate_lines(looks: Looks, style: Style) -> list[str]:
    """What is to be said of certificates; none while all is well."""
    said = [(node, look.certificate) for node, look in sorted(looks.items()) if look is not None and look.certificate]
    return [style("yellow", f"tls       {node}: {text}") for node, text in said]


def member_table(table: Iterable[NodeRow], style: Style) -> str:
    head = ["node", "role", "state", "region", "timeline", "position", "lag", "commits wait", "health"]
    body = [
        [
            row.node,
            row.role,
            row.state,
            row.region or MISSING,
            str(row.position.timeline) if row.position else MISSING,
            format_lsn(row.position.lsn) if row.position else MISSING,
            lag_text(row),
            row.sync or MISSING,
            row.problem or ("ok" if row.healthy else MISSING),
        ]
        for row in table
    ]
    colours = [("green" if row.healthy else "red" if row.problem else "yellow") for row in table]
    return columns(head, body, style, last_colours=colours)


def lag_text(row: NodeRow) -> str:
    """`0 B`, `1.2 MB, 0.4 s`; `-` for the primary, `?` when it is not known."""
    if row.role in ("primary", "founding", "promoting"):
        return MISSING
    parts = [size(row.lag_bytes)] if row.lag_bytes is not None else []
    if row.lag_s is not None:
        parts.append(f"{row.lag_s:.1f} s")
    return ", ".join(parts) or "?"


def columns(
    head: Sequence[str], body: Sequence[Sequence[str]], style: Style = PLAIN, last_colours: Sequence[str] = ()
) -> str:
    """A table with a heading, two spaces between columns; columns that say nothing in any row are left out."""
    keep = [i for i in range(len(head)) if i == 0 or any(line[i] not in ("", MISSING) for line in body)]
    widths = [max(len(line[i]) for line in [head, *body]) for i in keep]
    lines = [style("dim", "  ".join(head[i].ljust(w) for i, w in zip(keep, widths, strict=True)).rstrip())]
    for number, line in enumerate(body):
        cells = [line[i].ljust(w) for i, w in zip(keep, widths, strict=True)]
        cells[-1] = cells[-1].rstrip()
        if last_colours:
            cells[-1] = style(last_colours[number], cells[-1])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def event_lines(events: Iterable[Event], style: Style = PLAIN) -> str:
    """An event each, oldest first; times are UTC, by the clock of the node that wrote it. Wrapped on a terminal."""
    lines = []
    for event in events:
        when = datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S")
        about = f" {event.node}:" if event.node and event.node not in event.text else ""
        by = f" [{event.by}]" if event.by else ""
        line = f"  {when}  term {event.term}  {event.kind}:{about} {event.text}{by}"
        lines += textwrap.wrap(line, style.width, subsequent_indent=" " * 12) if style.width else [line]
    return "\n".join(lines)


def status_data(snapshot: Snapshot, looks: Looks, events: Sequence[Event], *, cluster: str) -> dict[str, object]:
    """What `flypg status --json` prints. Keys are only ever added."""
    view, serves, safe = snapshot.view, serving(snapshot), failover_without_loss(snapshot, looks)
    return {
        "cluster": cluster,
        "founded": view is not None,
        "serving": serves.yes,
        "serving_why": serves.why,
        "primary": view.primary if view else None,
        "term": view.term if view else 0,
        "phase": str(view.phase) if view else None,
        "timeline": view.timeline if view else None,
        "rules": [
            {"term": r.term, "primary": r.primary, "voters": sorted(r.voters), "k": r.k}
            for r in (view.rules if view else ())
        ],
        "durability": str(snapshot.spec.durability),
        "paused": snapshot.spec.paused,
        "leader": snapshot.leader.sentinel if snapshot.leader else None,
        "failover_without_loss": safe.yes,
        "failover_why": safe.why,
        "certificates": {n: look.certificate for n, look in looks.items() if look is not None and look.certificate},
        "cause": view.cause if view else "",
        "why": view.why if view else "",
        "backups": backups_data(cluster_backups(snapshot, looks)),
        "nodes": [_node_data(row, snapshot) for row in rows(snapshot, looks)],
        "events": [event_data(event) for event in events],
    }


def _node_data(row: NodeRow, snapshot: Snapshot) -> dict[str, object]:
    member = (snapshot.view.member(row.node) if snapshot.view else None) or snapshot.reports[row.node].member
    return {
        "node": row.node,
        "role": row.role,
        "state": row.state,
        "region": row.region,
        "host": member.host,
        "port": member.ports.postgres,
        "timeline": row.position.timeline if row.position else None,
        "lsn": format_lsn(row.position.lsn) if row.position else None,
        "lag_bytes": row.lag_bytes,
        "lag_s": row.lag_s,
        "sync": row.sync,
        "healthy": row.healthy,
        "problem": row.problem,
    }


def event_data(event: Event) -> dict[str, object]:
    return {
        "at": event.at,
        "term": event.term,
        "kind": event.kind,
        "node": event.node,
        "text": event.text,
        "by": event.by,
    }
