"""The outages of `make bench-peers` as bars, in SVG without scripts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

LEFT, WIDTH, BAR, GAP = 150, 900, 15, 12
COLOURS = ("#2166ac", "#b2182b", "#ef8a62", "#8e6bbf", "#6b6b6b")
STYLE = "text{font:12px system-ui,sans-serif;fill:#333}.small{font-size:11px;fill:#555}"


def picture(systems: Sequence[str], outages: Mapping[str, Mapping[str, float | None]]) -> str:
    """`outages`: fault -> system -> median in seconds; None: for ever, drawn as a bar that leaves the picture."""
    lengths = [s for row in outages.values() for s in row.values() if s is not None]
    scale = (WIDTH - LEFT - 90) / max([1.0, *lengths])
    parts, y = [], 34
    for number, system in enumerate(systems):
        x = LEFT + number * 150
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 17}" y="18">{escape(system)}</text>')
    for fault, row in outages.items():
        shown = [(number, system) for number, system in enumerate(systems) if system in row]
        parts.append(f'<text x="8" y="{y + len(shown) * BAR / 2 + 4:g}">{escape(fault)}</text>')
        for number, system in shown:
            seconds = row[system]
            width = WIDTH - LEFT if seconds is None else max(1.0, seconds * scale)
            text = "for ever" if seconds is None else f"{seconds:.2f} s"
            colour = COLOURS[number % len(COLOURS)]
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{colour}"/>')
            at = LEFT + 6 if seconds is None else LEFT + width + 5
            parts.append(f'<text class="small" x="{at:.1f}" y="{y + BAR - 5}">{text}</text>')
            y += BAR
        y += GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" aria-label="write outages">'
    return f'{head}<style>{STYLE}</style><rect width="{WIDTH}" height="{y}" fill="#fff"/>{"".join(parts)}</svg>\n'
