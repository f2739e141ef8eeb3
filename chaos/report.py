"""What drills showed, for people (one HTML page) and for machines (JSON, JUnit). Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from xml.sax.saxutils import quoteattr

from chaos.history import NEVER, Verdict
from chaos.phases import NAMES
from chaos.results import Result
from chaos.timeline import Axis, Span, picture

FORMAT_VERSION = 1


def as_dict(result: Result) -> dict[str, object]:
    """A result for machines. Times in seconds, moments relative to the fault."""

    def since_fault(moment: float | None) -> float | None:
        return round(moment - result.fault, 3) if moment is not None else None

    d = result.durability
    return {
        "drill": result.drill,
        "about": result.about,
        "seed": result.seed,
        "victim": result.victim,
        "passed": result.passed,
        "bar_s": result.bar_s,
        "limit_s": result.limit_s,
        "outage_s": {o.path: round(o.length_s, 3) if o.length_s != NEVER else None for o in result.outages},
        "failovers": result.failovers,
        "phases_s": {k: _round(v) for k, v in result.phases.named().items()} if result.phases else None,
        "cause": result.phases.cause if result.phases else "",
        "mended_s": since_fault(result.mended),
        "healed_s": since_fault(result.healed),
        "acknowledged": d.acknowledged if d else None,
        "lost": result.lost if d else None,
        "doubled": len(d.doubled) if d else None,
        "doubly_acknowledged": result.doubled,
        "unknown": d.unknown if d else None,
        "unknown_there": d.unknown_there if d else None,
        "errors": result.errors,
        "verdicts": [{"checker": v.checker, "ok": v.ok, "text": v.text} for v in result.verdicts],
        "events": [{"at_s": since_fault(e.at), "kind": e.kind, "text": e.text, "by": e.by} for e in result.events],
    }


def _round(value: float | None) -> float | None:
    return round(value, 3) if value is not None else None


def to_json(results: Sequence[Result], about: Mapping[str, str]) -> str:
    body = {"format_version": FORMAT_VERSION, "about": dict(about), "results": [as_dict(r) for r in results]}
    return json.dumps(body, indent=2, ensure_ascii=False)


def to_junit(results: Sequence[Result], about: Mapping[str, str]) -> str:
    """A suite per drill, a test case per verdict."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>"]
    for r in results:
        failed = sum(v.ok is False for v in r.verdicts)
        undecided = sum(v.ok is None for v in r.verdicts)
        lines.append(
            f"<testsuite name={quoteattr(r.drill)} tests={quoteattr(str(len(r.verdicts)))}"
            f' failures="{failed}" skipped="{undecided}" time="{r.ended - r.began:.1f}">'
        )
        told = {**about, "seed": str(r.seed), "lost": str(r.lost), "outage_s": f"{r.outage_s}"}
        properties = "".join(f"<property name={quoteattr(k)} value={quoteattr(v)}/>" for k, v in told.items())
        lines.append(f"<properties>{properties}</properties>")
        for v in r.verdicts:
            inner = ""
            if v.ok is False:
                again = f"again with: flypg drill run {r.drill} --seed {r.seed}"
                inner = f"<failure message={quoteattr(v.text)}>{escape(again)}</failure>"
            elif v.ok is None:
                inner = f"<skipped message={quoteattr(v.text)}/>"
            lines.append(f"<testcase classname={quoteattr(r.drill)} name={quoteattr(v.checker)}>{inner}</testcase>")
        lines.append("</testsuite>")
    lines.append("</testsuites>")
    return "\n".join(lines) + "\n"


PAGE_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1100px;margin:24px auto;padding:0 16px;background:#fff}
h1{font-size:22px;margin:0 0 4px}h2{font-size:18px;margin:32px 0 4px;border-top:1px solid #dde1e7;padding-top:18px}
p{margin:4px 0 10px}.dim{color:#666}table{border-collapse:collapse;margin:8px 0 14px}
td,th{padding:3px 12px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid #eceff3;font-size:14px}
th{color:#555;font-weight:600}.num{text-align:right;font-variant-numeric:tabular-nums}
.pass{color:#1b7837;font-weight:700}.fail{color:#c0392b;font-weight:700}.open{color:#8a6d00;font-weight:700}
.facts{display:flex;flex-wrap:wrap;gap:10px;margin:10px 0}
.fact{border:1px solid #dde1e7;border-radius:6px;padding:6px 14px;min-width:110px}
.fact b{display:block;font-size:20px;font-variant-numeric:tabular-nums}.fact span{color:#666;font-size:12px}
svg{width:100%;height:auto}.legend{font-size:12px;color:#555}.legend i{display:inline-block;width:14px;height:10px;
margin:0 4px 0 12px;border-radius:2px}code{background:#f3f5f8;padding:1px 5px;border-radius:3px}
"""
LEGEND = (
    '<p class="legend">Writes per 0.1 s:<i style="background:#2166ac"></i>acknowledged'
    '<i style="background:repeating-linear-gradient(45deg,#c0392b 0 3px,#f6c9c3 3px 6px)"></i>failed'
    '<i style="background:radial-gradient(#b58900 30%,#fdf3d8 35%) 0 0/6px 6px"></i>waiting'
    '<i style="background:#b58900"></i>no clear answer'
    '<i style="background:#1b7837"></i>primary<i style="background:#a6c8e8"></i>standby'
    '<i style="background:#6b6b6b"></i>down</p>'
)


def to_html(results: Sequence[Result], about: Mapping[str, str]) -> str:
    """One page that needs nothing else."""
    passed = sum(r.passed for r in results)
    word = "pass" if passed == len(results) else "fail"
    told = " · ".join(f"{escape(k)} {escape(v)}" for k, v in about.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>flypg drills</title>'
        f"<style>{PAGE_STYLE}</style></head><body><h1>Failover drills: "
        f'<span class="{word}">{passed} of {len(results)} passed</span></h1><p class="dim">{told}</p>'
        + (_summary(results) if len(results) > 1 else "")
        + "".join(_section(r, number) for number, r in enumerate(results))
        + "</body></html>"
    )


def _word(ok: bool | None) -> str:
    name = {True: "pass", False: "fail", None: "open"}[ok]
    return f'<span class="{name}">{ {True: "✓ pass", False: "✗ FAIL", None: "? undecided"}[ok] }</span>'


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return "for ever" if value == NEVER else f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def _summary(results: Sequence[Result]) -> str:
    rows = [
        "<table><tr><th>drill</th><th>verdict</th><th class=num>write outage</th><th class=num>bar</th>"
        "<th class=num>lost</th><th class=num>acknowledged</th><th class=num>failovers</th></tr>"
    ]
    for number, r in enumerate(results):
        acknowledged = r.durability.acknowledged if r.durability else 0
        rows.append(
            f'<tr><td><a href="#d{number}">{escape(r.drill)}</a></td><td>{_word(r.passed)}</td>'
            f"<td class=num>{seconds(r.outage_s)}</td><td class=num>{seconds(r.bar_s)}</td>"
            f"<td class=num>{r.lost}</td><td class=num>{acknowledged}</td><td class=num>{r.failovers}</td></tr>"
        )
    names = sorted({r.drill for r in results})
    repeated = [(name, [r.outage_s for r in results if r.drill == name and r.outage_s is not None]) for name in names]
    medians = [f"{escape(n)} {seconds(statistics.median(v))} ({len(v)} runs)" for n, v in repeated if len(v) > 1]
    return "".join(rows) + "</table>" + (f"<p>Median outage: {'; '.join(medians)}</p>" if medians else "")


def _fact(value: str, name: str) -> str:
    return f'<div class="fact"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def _section(r: Result, number: int) -> str:
    victim = f" on {escape(r.victim)}" if r.victim else ""
    facts = [_fact(seconds(r.outage_s), f"write outage (RTO), bar {seconds(r.bar_s)}")]
    if r.durability is not None:
        facts.append(_fact(f"{r.lost} of {r.durability.acknowledged}", "acknowledged writes lost (RPO)"))
        facts.append(_fact(str(r.durability.unknown), f"without a clear answer, {r.durability.unknown_there} there"))
    facts.append(_fact(str(r.doubled), "acknowledged by a deposed server"))
    facts.append(_fact(str(r.failovers), "changes of primary"))
    if r.healed is not None:
        facts.append(_fact(seconds(r.healed - r.mended), "to be complete again"))
    again = f"<code>flypg drill run {escape(r.drill)} --seed {r.seed}</code>"
    return (
        f'<h2 id="d{number}">{_word(r.passed)} {escape(r.drill)}</h2><p>{escape(r.about)}{victim}'
        f'<span class="dim"> · {r.when} · seed {r.seed} · again: {again}</span></p>'
        f'<div class="facts">{"".join(facts)}</div>{_drawing(r)}{LEGEND}'
        + _verdicts(r.verdicts)
        + _phases(r)
        + _errors(r)
        + _events(r)
    )


def _drawing(r: Result) -> str:
    if not r.fault:
        return ""
    axis = Axis(r.began, r.ended, r.fault)
    fault = Span(r.fault, max(r.mended, r.fault + 0.05), r.drill, "fault")
    writes = {path: [w for w in r.writes if w.path == path] for path in dict.fromkeys(w.path for w in r.writes)}
    whole = picture(axis, [fault], dict(writes), r.roles, _steps(r))
    longest = max((o.ended - r.fault for o in r.outages if o.ended != NEVER), default=0.0)
    if r.drill == "soak" or r.ended - r.began < 4 * (longest + 2):
        return whole
    near = Axis(r.fault - 1, r.fault + longest + 1, r.fault)  # the moment that matters, of a long run
    close = picture(near, [fault], dict(writes), r.roles, _steps(r))
    return f"{close}<p class=dim>The same, from beginning to end:</p>{whole}"


def _steps(r: Result) -> list[Span]:
    if r.phases is None:
        return []
    spans, at = [], r.fault
    for number, (name, length) in enumerate(r.phases.named().items()):
        if length is not None:
            spans.append(Span(at, at + length, name, f"phase{number}", f"{name}: {seconds(length)}"))
            at += length
    return spans


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [f"<tr><td>{_word(v.ok)}</td><td>{escape(v.checker)}</td><td>{escape(v.text)}</td></tr>" for v in verdicts]
    return f"<table><tr><th>verdict</th><th>checker</th><th>why</th></tr>{''.join(rows)}</table>"


def _phases(r: Result) -> str:
    if r.phases is None:
        return "<p>No change of primary.</p>"
    named = r.phases.named()
    cells = "".join(f"<td class=num>{seconds(named[name])}</td>" for name in NAMES)
    head = "".join(f"<th class=num>{name}</th>" for name in NAMES)
    return (
        f"<p>Term {r.phases.term} was opened because: {escape(r.phases.cause)}. New primary:"
        f" {escape(r.phases.primary)}.</p><table><tr>{head}</tr><tr>{cells}</tr></table>"
    )


def _errors(r: Result) -> str:
    if not r.errors:
        return "<p>No client saw an error.</p>"
    rows = "".join(
        f"<tr><td class=num>{count}</td><td>{escape(text)}</td></tr>" for text, count in list(r.errors.items())[:12]
    )
    return f"<table><tr><th class=num>times</th><th>error a client saw</th></tr>{rows}</table>"


def _events(r: Result) -> str:
    rows = "".join(
        f"<tr><td class=num>{e.at - r.fault:+.3f} s</td><td>{escape(e.kind)}</td><td>{escape(e.text)}</td></tr>"
        for e in r.events
    )
    return (
        f"<table><tr><th class=num>since the fault</th><th>decided</th><th>why</th></tr>{rows}</table>" if rows else ""
    )
