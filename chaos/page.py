"""What drills showed, for people: one HTML page that needs nothing else. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape

from chaos.history import NEVER, Outcome, Verdict, Write
from chaos.phases import NAMES
from chaos.report import Earlier, seconds
from chaos.results import Result
from chaos.timeline import Axis, Span, picture, strip

SHOWN = 10  # runs in a comparison
PAGE_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1100px;margin:24px auto;padding:0 16px;background:#fff}
h1{font-size:22px;margin:0 0 4px}h2{font-size:18px;margin:32px 0 4px;border-top:1px solid #dde1e7;padding-top:18px}
h3{font-size:14px;margin:18px 0 2px}
p{margin:4px 0 10px}.dim{color:#666}table{border-collapse:collapse;margin:4px 0 14px}
td,th{padding:3px 12px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid #eceff3;font-size:14px}
td:last-child{overflow-wrap:anywhere}td:first-child,td.num{overflow-wrap:normal;white-space:nowrap}
th{color:#555;font-weight:600}.num{text-align:right;font-variant-numeric:tabular-nums}
.pass{color:#1b7837;font-weight:700}.fail{color:#c0392b;font-weight:700}.open{color:#8a6d00;font-weight:700}
.story{font-size:17px;max-width:900px;margin:8px 0 12px}.bad{border-left:4px solid #c0392b;background:#fdf1ef;
padding:8px 14px;margin:8px 0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:10px 0 16px}
.fact{border:1px solid #dde1e7;border-radius:6px;padding:6px 12px}
.fact b{display:block;font-size:20px;font-variant-numeric:tabular-nums}.fact span{color:#666;font-size:12px}
.wide{overflow-x:auto}.wide svg{width:100%;min-width:720px;height:auto;display:block}
.legend{font-size:12px;color:#555}.legend span{white-space:nowrap;margin-right:12px}
.legend i{display:inline-block;width:14px;height:10px;margin-right:4px;border-radius:2px}
code{background:#f3f5f8;padding:1px 5px;border-radius:3px}
"""
COLOURS = (
    ("acknowledged", "#2166ac"),
    ("failed", "repeating-linear-gradient(45deg,#c0392b 0 3px,#f6c9c3 3px 6px)"),
    ("waiting", "radial-gradient(#b58900 30%,#fdf3d8 35%) 0 0/6px 6px"),
    ("no clear answer", "#b58900"),
    ("primary", "#1b7837"),
    ("standby", "#a6c8e8"),
    ("standby that does not stream", "repeating-linear-gradient(45deg,#a6c8e8 0 2px,#e4edf6 2px 6px)"),
    ("starting, rewinding or copying", "#8e6bbf"),
    ("down", "#6b6b6b"),
)
LEGEND = (
    '<p class="legend">'
    + "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in COLOURS)
    + "<br>5432: port of the primary, 6432: pooled, 5434: read-only. steady: a client that keeps its connection,"
    " fresh: one that connects anew for each write.</p>"
)


def to_html(
    results: Sequence[Result], about: Mapping[str, str], earlier: Mapping[str, Sequence[Earlier]] | None = None
) -> str:
    """`earlier`: runs of each drill that these are compared with, oldest first."""
    passed = sum(r.passed for r in results)
    word = "pass" if passed == len(results) else "fail"
    told = " · ".join(f"{escape(k)} {escape(v)}" for k, v in about.items())
    parts = [_section(r, number, results, (earlier or {}).get(r.drill, ())) for number, r in enumerate(results)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>flypg drills:'
        f" {passed} of {len(results)} passed</title>"
        f"<style>{PAGE_STYLE}</style></head><body><h1>Failover drills: "
        f'<span class="{word}">{passed} of {len(results)} passed</span></h1><p class="dim">{told}</p>'
        + (_summary(results) if len(results) > 1 else "")
        + "".join(parts)
        + "</body></html>"
    )


def _word(ok: bool | None) -> str:
    name = {True: "pass", False: "fail", None: "open"}[ok]
    return f'<span class="{name}">{ {True: "✓ pass", False: "✗ FAIL", None: "? undecided"}[ok] }</span>'


def _summary(results: Sequence[Result]) -> str:
    rows = [
        "<table><tr><th>drill</th><th>verdict</th><th class=num>write outage</th><th class=num>bar</th>"
        "<th class=num>lost</th><th class=num>acknowledged</th><th class=num>failovers</th></tr>"
    ]
    for number, r in enumerate(results):
        acknowledged = r.durability.acknowledged if r.durability else 0
        rows.append(
            f'<tr><td><a href="#d{number}">{escape(r.drill)}</a></td><td>{_word(r.passed)}</td>'
            f"<td class=num>{seconds(r.outage_s)}</td>"
            f"<td class=num>{seconds(r.bar_s) if r.drill != 'soak' else '–'}</td>"
            f"<td class=num>{r.lost}</td><td class=num>{acknowledged}</td><td class=num>{r.failovers}</td></tr>"
        )
    names = sorted({r.drill for r in results})
    repeated = [(name, [r.outage_s for r in results if r.drill == name and r.outage_s is not None]) for name in names]
    medians = [f"{escape(n)} {seconds(statistics.median(v))} ({len(v)} runs)" for n, v in repeated if len(v) > 1]
    table = f'<div class="wide">{"".join(rows)}</table></div>'
    return table + (f"<p>Median outage: {'; '.join(medians)}</p>" if medians else "")


def story(r: Result) -> str:
    """What happened, in a few sentences for somebody who was not there."""
    if not r.fault:
        return "Nothing was broken: the cluster was not ready for it."
    told = [f"{r.about[:1].upper()}{r.about[1:]}" + (f" ({r.victim})." if r.victim else ".")]
    if r.outage_s == NEVER:
        told.append("Writes never came back.")
    elif r.outage_s is not None:
        told.append(f"Clients could not write for {seconds(r.outage_s)} at most.")
    if r.phases is not None and r.drill != "soak":
        lengths = r.phases.named()
        noticed, rest = lengths["detect"], [v for name, v in lengths.items() if name != "detect" and v is not None]
        told.append(f"Noticed after {seconds(noticed)}: {r.phases.cause}.")
        if r.phases.primary and rest:
            told.append(f"{r.phases.primary} had taken over {seconds(sum(rest))} later.")
    elif r.failovers:
        told.append(f"The primary changed {r.failovers} times." if r.failovers > 1 else "The primary changed once.")
    else:
        told.append("The primary stayed the same.")
    if r.durability is not None:
        many = r.durability.acknowledged
        told.append(
            f"{r.lost} of {many} acknowledged writes are lost."
            if r.lost
            else f"All {many} acknowledged writes are there."
        )
    if r.doubled:
        told.append(f"{r.doubled} writes were acknowledged by a server that had been deposed.")
    if r.healed is not None and r.drill != "soak":
        told.append(f"All nodes were complete again {seconds(max(0.0, r.healed - r.mended))} after it was mended.")
    elif r.healed is None:
        told.append("The cluster did not become complete again.")
    return " ".join(told)


def _fact(value: str, name: str) -> str:
    return f'<div class="fact"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def _section(r: Result, number: int, results: Sequence[Result], earlier: Sequence[Earlier]) -> str:
    bar = f", bar {seconds(r.bar_s)}" if r.drill != "soak" else ""
    facts = [_fact(seconds(r.outage_s), f"write outage (RTO){bar}")]
    if r.durability is not None:
        facts.append(_fact(f"{r.lost} of {r.durability.acknowledged}", "acknowledged writes lost (RPO)"))
        facts.append(_fact(str(r.durability.unknown), f"without a clear answer, {r.durability.unknown_there} there"))
    facts.append(_fact(str(r.doubled), "acknowledged by a deposed server"))
    facts.append(_fact(str(r.failovers), "changes of primary"))
    if r.healed is not None and r.drill != "soak":
        facts.append(_fact(seconds(max(0.0, r.healed - r.mended)), "to be complete again"))
    bad = "".join(f"<br>{escape(v.checker)}: {escape(v.text)}" for v in r.verdicts if v.ok is False)
    return (
        f'<h2 id="d{number}">{_word(r.passed)} {escape(r.drill)}</h2><p class="story">{escape(story(r))}</p>'
        + (f'<p class="bad"><b>Why it failed</b>{bad}</p>' if bad else "")
        + f'<div class="facts">{"".join(facts)}</div>{_drawing(r)}'
        + (LEGEND if r.fault else "")
        + _broken(r)
        + _verdicts(r.verdicts)
        + _phases(r)
        + _errors(r)
        + _events(r)
        + _compared(r, number, results, earlier)
        + f'<p class="dim">{escape(r.when)} · seed {r.seed} · again: <code>{escape(r.replay)}</code></p>'
    )


def _drawing(r: Result) -> str:
    if not r.fault:
        return ""
    axis = Axis(r.began, r.ended, r.fault)
    faults = [
        Span(b.began, max(b.ended, b.began + 0.05), str(number), "fault", f"{number}: {b.name}")
        for number, b in enumerate(r.faults, start=1)
    ]
    faults = faults or [Span(r.fault, max(r.mended, r.fault + 0.05), r.drill, "fault")]
    lanes: dict[str, Sequence[Write]] = {}
    for path in sorted(
        {w.path for w in r.writes}, key=lambda path: (path.startswith("pooled"), path != "steady", path)
    ):
        lanes[_named(path)] = [w for w in r.writes if w.path == path]
    if r.reads:
        outcomes = {True: Outcome.OK, False: Outcome.FAIL}
        lanes["5434 reads"] = [Write("reads", 0, read.invoked, read.done, outcomes[read.ok]) for read in r.reads]
    away = max((o for o in r.outages if o.ended != NEVER), key=lambda o: o.length_s, default=None)
    gone = [Span(away.began, away.ended, f"no writes for {seconds(away.length_s)}", "gone")] if away else []
    gone = gone if r.drill != "soak" and gone and gone[0].ended - gone[0].began >= 0.1 else []
    whole = picture(axis, faults, gone, lanes, r.roles, _steps(r))
    longest = max((o.ended - r.fault for o in r.outages if o.ended != NEVER), default=0.0)
    if r.drill == "soak" or r.ended - r.began < 4 * (longest + 2):
        return f'<div class="wide">{whole}</div>'
    near = Axis(r.fault - 1, r.fault + longest + 1, r.fault)  # the moment that matters, of a long run
    close = picture(near, faults, gone, lanes, r.roles, _steps(r))
    return (
        f'<div class="wide">{close}</div><p class="dim">The same, from beginning to end:</p>'
        f'<div class="wide">{whole}</div>'
    )


def _broken(r: Result) -> str:
    """What was broken, where it was more than one thing; numbered as in the picture."""
    rows = "".join(
        f"<tr><td class=num>{number}</td><td>{escape(b.name)}</td><td>{escape(b.what)}</td>"
        f"<td class=num>{b.began - r.fault:+.1f} s</td><td class=num>{b.ended - b.began:.1f} s</td></tr>"
        for number, b in enumerate(r.faults, start=1)
    )
    head = "<tr><th class=num>fault</th><th>what</th><th>node</th><th class=num>at</th><th class=num>for</th></tr>"
    return f'<h3>What was broken</h3><div class="wide"><table>{head}{rows}</table></div>' if rows else ""


def _named(path: str) -> str:
    """What a lane of writes is called."""
    if path.startswith("pooled "):
        return f"6432 {path.removeprefix('pooled ')}"
    return path if path.startswith("inside ") else f"5432 {path}"


def _steps(r: Result) -> list[Span]:
    if r.phases is None or r.drill == "soak":
        return []
    spans, at = [], r.fault
    for number, (name, length) in enumerate(r.phases.named().items()):
        if length is not None:
            spans.append(Span(at, at + length, name, f"phase{number}", f"{name} {seconds(length)}"))
            at += length
    return spans


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    order = {False: 0, None: 1, True: 2}
    rows = [
        f"<tr><td>{_word(v.ok)}</td><td>{escape(v.checker)}</td><td>{escape(v.text)}</td></tr>"
        for v in sorted(verdicts, key=lambda v: order[v.ok])
    ]
    return f"<table><tr><th>verdict</th><th>checker</th><th>why</th></tr>{''.join(rows)}</table>"


def _phases(r: Result) -> str:
    if r.phases is None or r.drill == "soak":
        return ""
    named = r.phases.named()
    cells = "".join(f"<td class=num>{seconds(named[name])}</td>" for name in NAMES)
    head = "".join(f"<th class=num>{name}</th>" for name in NAMES)
    return (
        f"<h3>The failover</h3><p>Term {r.phases.term} was opened because: {escape(r.phases.cause)}. New primary:"
        f' {escape(r.phases.primary)}.</p><div class="wide"><table><tr>{head}</tr><tr>{cells}</tr></table></div>'
    )


def _errors(r: Result) -> str:
    if not r.errors:
        return "<p>No client saw an error.</p>"
    rows = "".join(
        f"<tr><td class=num>{count}</td><td>{escape(text)}</td></tr>" for text, count in list(r.errors.items())[:12]
    )
    return f"<h3>Errors that clients saw</h3><table><tr><th class=num>times</th><th>error</th></tr>{rows}</table>"


def _events(r: Result) -> str:
    rows = "".join(
        f"<tr><td class=num>{e.at - r.fault:+.2f} s</td><td>{escape(e.kind)}</td><td>{escape(e.text)}</td></tr>"
        for e in r.events
    )
    head = "<tr><th class=num>since the fault</th><th>what</th><th>why</th></tr>"
    return f"<h3>What was decided, and why</h3><table>{head}{rows}</table>" if rows else ""


def _compared(r: Result, number: int, results: Sequence[Result], earlier: Sequence[Earlier]) -> str:
    """Beside earlier runs of the same drill, and those of this report."""
    before = [
        Earlier(o.when, "this report", None if o.outage_s == NEVER else o.outage_s, o.lost, o.passed)
        for o in results[:number]
        if o.drill == r.drill
    ]
    runs = [*earlier, *before][-SHOWN:]
    if not runs:
        return ""
    rows = "".join(
        f"<tr><td>{escape(run.when)}</td><td>{escape(run.commit)}</td><td>{_word(run.passed)}</td>"
        f"<td class=num>{'for ever' if run.outage_s is None else seconds(run.outage_s)}</td>"
        f"<td class=num>{run.lost}</td></tr>"
        for run in runs
    )
    known = [run.outage_s for run in runs if run.outage_s is not None]
    median = f", median outage {seconds(statistics.median(known))}" if known else ""
    mine = r.outage_s if r.outage_s not in (None, NEVER) else None
    return (
        f"<h3>Earlier runs</h3><p>{len(runs)} before this one{median}; this one {seconds(r.outage_s)}.</p>"
        f'<div class="wide">{strip(known, mine, r.bar_s)}</div>'
        "<table><tr><th>when</th><th>commit</th><th>verdict</th><th class=num>write outage</th><th class=num>lost</th>"
        f"</tr>{rows}</table>"
    )
