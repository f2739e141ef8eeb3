"""A drill as a picture: lanes over one axis of time, as SVG without scripts. Pure.

Shape and colour tell the same, so that it reads in grey too: acknowledged is solid, waiting dotted, failed hatched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from chaos.history import NEVER, Write
from chaos.phases import Band

WIDTH, LEFT, LANE, GAP = 1040, 96, 22, 7
COLUMN_S = 0.1  # a column of a short picture; a long one has COLUMNS
COLUMNS = 900
IDLE_S = 0.3  # a client that writes rarely has its pauses: they are no gaps

STYLE = """
.axis{stroke:#c9ced6;stroke-width:1}.label{font:12px system-ui,sans-serif;fill:#333}
.small{font:10px system-ui,sans-serif;fill:#555}.inside{font:11px system-ui,sans-serif;fill:#fff}
.ok{fill:#2166ac}.waiting{fill:url(#dots)}.failed{fill:url(#hatch)}.unknown{fill:#b58900}
.fault{fill:#c0392b;fill-opacity:.85}.fault-shade{fill:#c0392b;fill-opacity:.08}.gone{fill:#fff;stroke:#c0392b}
.red{font:700 12px system-ui,sans-serif;fill:#c0392b}.mark{fill:#c0392b}.dot{fill:#2166ac;fill-opacity:.45}
.primary{fill:#1b7837}.standby{fill:#a6c8e8}.detached{fill:url(#light)}.down{fill:#6b6b6b}.busy{fill:#8e6bbf}
.phase0{fill:#7b3294}.phase1{fill:#c2a5cf}.phase2{fill:#5e4fa2}.phase3{fill:#1b7837}.phase4{fill:#a6dba0}.phase5{fill:#2166ac}
"""
PATTERNS = """<defs>
<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="6" height="6" fill="#f6c9c3"/><rect width="3" height="6" fill="#c0392b"/></pattern>
<pattern id="dots" width="6" height="6" patternUnits="userSpaceOnUse">
<rect width="6" height="6" fill="#fdf3d8"/><circle cx="3" cy="3" r="1.6" fill="#b58900"/></pattern>
<pattern id="light" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="6" height="6" fill="#e4edf6"/><rect width="2" height="6" fill="#a6c8e8"/></pattern></defs>"""


@dataclass(frozen=True, slots=True)
class Span:
    """A labelled stretch of a lane. `style` is a class of STYLE."""

    began: float
    ended: float
    text: str
    style: str
    hover: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """From moments to places in the picture. Zero is the fault."""

    began: float
    ended: float
    zero: float

    def x(self, moment: float) -> float:
        share = (min(max(moment, self.began), self.ended) - self.began) / max(0.001, self.ended - self.began)
        return LEFT + share * (WIDTH - LEFT - 10)


def columns(
    writes: Sequence[Write], began: float, ended: float, column_s: float = COLUMN_S
) -> list[tuple[int, int, int, int]]:
    """Per column: acknowledged, failed, unknown answers, and operations that waited throughout it."""
    count = max(1, int((ended - began) / column_s) + 1)
    ok, failed, unknown, waiting = ([0] * count for _ in range(4))
    for w in writes:
        at = int((w.done - began) / column_s)
        if 0 <= at < count:
            (ok if w.acknowledged else unknown if w.outcome.value == "unknown" else failed)[at] += 1
        first = int((w.invoked - began) / column_s) + 1
        for column in range(max(0, first), min(count, at)):
            waiting[column] += 1
    return list(zip(ok, failed, unknown, waiting, strict=True))


def _kinds(writes: Sequence[Write], axis: Axis, column_s: float) -> list[str]:
    """How each column is drawn: words of STYLE, "" where nothing went on."""
    kinds = []
    for ok, failed, unknown, waiting in columns(writes, axis.began, axis.ended, column_s):
        if ok and (failed or unknown):
            kinds.append("failed ok" if failed else "unknown ok")
        else:
            kinds.append("ok" if ok else "unknown" if unknown else "failed" if failed else "waiting" if waiting else "")
    last = -1  # the last column in which something was acknowledged
    for at, kind in enumerate(kinds):
        if kind.endswith("ok"):
            if last >= 0 and (at - last) * column_s <= IDLE_S and not any(kinds[last + 1 : at]):
                kinds[last + 1 : at] = ["ok"] * (at - last - 1)
            last = at
    return kinds


def _lane_of_writes(writes: Sequence[Write], axis: Axis, y: int) -> list[str]:
    """Runs of like columns: a rectangle each."""
    column_s = max(COLUMN_S, (axis.ended - axis.began) / COLUMNS)
    kinds = _kinds(writes, axis, column_s)
    parts, start = [], 0
    for at in range(1, len(kinds) + 1):
        if at < len(kinds) and kinds[at] == kinds[start]:
            continue
        kind = kinds[start]
        x0, x1 = axis.x(axis.began + start * column_s), axis.x(axis.began + at * column_s)
        since, until = (column * column_s + axis.began - axis.zero for column in (start, at))
        for number, style in enumerate(kind.split()):
            height = LANE // len(kind.split())
            parts.append(
                _rect(x0, x1, y + number * height, height, style, f"{style}: {since:+.1f} s to {until:+.1f} s")
            )
        start = at
    return parts


def _rect(x0: float, x1: float, y: float, height: float, style: str, hover: str) -> str:
    return (
        f'<rect class="{style}" x="{x0:.1f}" y="{y:.1f}" width="{max(0.8, x1 - x0):.1f}" height="{height}">'
        f"<title>{escape(hover)}</title></rect>"
    )


def _spans(spans: Sequence[Span], axis: Axis, y: int) -> list[str]:
    parts = []
    for span in spans:
        x0, x1 = axis.x(span.began), axis.x(span.ended)
        parts.append(_rect(x0, x1, y, LANE, span.style, span.hover or span.text))
        if x1 - x0 > 6.5 * len(span.text) + 6:
            dark = span.style in ("standby", "detached", "phase1", "phase4")
            style = "small" if dark else "inside"
            parts.append(f'<text class="{style}" x="{x0 + 4:.1f}" y="{y + 15}">{escape(span.text)}</text>')
    return parts


def _after(spans: Sequence[Span], axis: Axis, y: int, style: str) -> list[str]:
    """What spans that are too narrow for words say, beside them."""
    if not spans:
        return []
    text = " · ".join(span.hover or span.text for span in spans)
    x0, x1 = axis.x(spans[0].began), axis.x(spans[-1].ended)
    room = 6.5 * len(text)
    if x1 + room < WIDTH:
        return [f'<text class="{style}" x="{x1 + 6:.1f}" y="{y + 15}">{escape(text)}</text>']
    if x0 - room > LEFT:
        return [f'<text class="{style}" x="{x0 - 6:.1f}" y="{y + 15}" text-anchor="end">{escape(text)}</text>']
    return []


def _ticks(axis: Axis, bottom: int) -> list[str]:
    length = axis.ended - axis.began
    step = next((s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120) if length / s <= 14), 300)
    parts, number = [], int((axis.began - axis.zero) / step)
    while axis.zero + number * step <= axis.ended:
        x = axis.x(axis.zero + number * step)
        if axis.zero + number * step >= axis.began:
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
            parts.append(
                f'<text class="small" x="{x:.1f}" y="{bottom + 12}" text-anchor="middle">{number * step:g} s</text>'
            )
        number += 1
    return parts


def role_style(what: str) -> str:
    """How a node's state is drawn."""
    if what in ("primary", "standby"):
        return what
    if what.startswith("standby"):
        return "detached"
    return "busy" if what in ("copying", "rewinding", "starting") else "down"


def picture(
    axis: Axis,
    faults: Sequence[Span],
    gone: Sequence[Span],
    writes: Mapping[str, Sequence[Write]],
    bands: Sequence[Band],
    steps: Sequence[Span],
) -> str:
    """The whole picture. `gone`: for how long nobody could write."""
    lanes: list[tuple[str, list[str]]] = []
    y = 0

    def lane(name: str, parts: list[str]) -> None:
        nonlocal y
        lanes.append((name, parts))
        y += LANE + GAP

    lane("fault", _spans(faults, axis, y))
    if gone:
        brackets = [_rect(axis.x(g.began), axis.x(g.ended), y + 7, 8, g.style, g.text) for g in gone]
        lane("outage", brackets + _after(gone, axis, y, "red"))
    for path, mine in writes.items():
        lane(path, _lane_of_writes(mine, axis, y))
    for node in sorted({band.name for band in bands}):
        spans = [
            Span(b.began, b.ended, f"{b.what} (term {b.term})" if b.term else b.what, role_style(b.what))
            for b in bands
            if b.name == node
        ]
        lane(node, _spans(spans, axis, y))
    if steps:
        lane("failover", _spans(steps, axis, y) + _after(steps, axis, y, "small"))
    shade = [
        f'<rect class="fault-shade" x="{axis.x(f.began):.1f}" y="0" width="{axis.x(f.ended) - axis.x(f.began):.1f}"'
        f' height="{y}"/>'
        for f in faults
        if f.ended != NEVER
    ]
    names = [
        f'<text class="label" x="0" y="{number * (LANE + GAP) + 15}">{escape(name)}</text>'
        for number, (name, _) in enumerate(lanes)
    ]
    body = "\n".join([*_ticks(axis, y), *shade, *names, *(part for _, parts in lanes for part in parts)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 18}" role="img"'
        ' aria-label="what clients and nodes saw over time">'
        f'<style>{STYLE}</style>{PATTERNS}<rect width="100%" height="100%" fill="#fff"/>{body}</svg>'
    )


def strip(earlier: Sequence[float], mine: float | None, bar_s: float) -> str:
    """Outages of several runs on one line, the latest among them, and the bar. Seconds."""
    longest = max([bar_s, 0.1, *earlier, *([mine] if mine is not None else [])]) * 1.1

    def x(value: float) -> float:
        return 10 + value / longest * (WIDTH - 120)

    dots = [f'<circle class="dot" cx="{x(v):.1f}" cy="16" r="6"><title>{v:.2f} s</title></circle>' for v in earlier]
    if mine is not None:
        dots.append(
            f'<circle class="mark" cx="{x(mine):.1f}" cy="16" r="6"><title>this run: {mine:.2f} s</title></circle>'
        )
        dots.append(f'<text class="red" x="{x(mine):.1f}" y="40" text-anchor="middle">this run</text>')
    if bar_s:
        dots.append(f'<line class="axis" x1="{x(bar_s):.1f}" x2="{x(bar_s):.1f}" y1="0" y2="30"/>')
        dots.append(f'<text class="small" x="{x(bar_s) + 4:.1f}" y="10">bar {bar_s:g} s</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 46" role="img"'
        ' aria-label="outages of several runs">'
        f'<style>{STYLE}</style><line class="axis" x1="10" x2="{WIDTH - 110}" y1="16" y2="16"/>{"".join(dots)}</svg>'
    )
