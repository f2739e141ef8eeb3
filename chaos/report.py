"""What drills showed, for machines: JSON and JUnit. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from xml.sax.saxutils import quoteattr

from chaos.history import NEVER
from chaos.results import Result

FORMAT_VERSION = 1
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_dict(result: Result) -> dict[str, object]:
    """A result for machines. Times in seconds, moments relative to the fault."""

    def since_fault(moment: float | None) -> float | None:
        return round(moment - result.fault, 3) if moment is not None else None

    d = result.durability
    return {
        "drill": result.drill,
        "about": result.about,
        "when": result.when,
        "again": result.replay,
        "seed": result.seed,
        "victim": result.victim,
        "passed": result.passed,
        "bar_s": result.bar_s,
        "limit_s": _finite(result.limit_s),
        "outage_s": {o.path: _finite(o.length_s) for o in result.outages},
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
        "faults": [
            {"name": b.name, "at_s": since_fault(b.began), "mended_s": since_fault(b.ended)} for b in result.faults
        ],
        "verdicts": [{"checker": v.checker, "ok": v.ok, "text": v.text} for v in result.verdicts],
        "events": [{"at_s": since_fault(e.at), "kind": e.kind, "text": e.text, "by": e.by} for e in result.events],
    }


def _round(value: float | None) -> float | None:
    return round(value, 3) if value is not None else None


def _finite(value: float) -> float | None:
    """JSON has no word for what never ends."""
    return None if value == NEVER else round(value, 3)


def to_json(results: Sequence[Result], about: Mapping[str, str]) -> str:
    body = {"format_version": FORMAT_VERSION, "about": dict(about), "results": [as_dict(r) for r in results]}
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier run of a drill, as its JSON tells it. `outage_s` None: writes never came back."""

    when: str
    commit: str
    outage_s: float | None
    lost: int
    passed: bool


def earlier_runs(text: str) -> dict[str, list[Earlier]]:
    """Drill -> its runs in a JSON report. Raises ValueError when the text is no such report."""
    try:
        body = json.loads(text)
    except ValueError:
        raise ValueError("it is no JSON") from None
    try:
        if body["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format_version is {body['format_version']}, not {FORMAT_VERSION}")
        found: dict[str, list[Earlier]] = {}
        for r in body["results"]:
            outages = list(r["outage_s"].values())
            longest = max(outages) if outages and None not in outages else None
            run = Earlier(r.get("when", ""), body["about"].get("commit", ""), longest, r["lost"] or 0, r["passed"])
            found.setdefault(r["drill"], []).append(run)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no report of drills: {error!r}") from None
    return found


def _attribute(text: str) -> str:
    return quoteattr(NOT_XML.sub("?", text))


def to_junit(results: Sequence[Result], about: Mapping[str, str]) -> str:
    """A suite per run of a drill, a test case per verdict."""
    counts = [v.ok for r in results for v in r.verdicts]
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    lines.append(f'<testsuites name="flypg drills" tests="{len(counts)}" failures="{counts.count(False)}" errors="0">')
    for number, r in enumerate(results):
        failed = sum(v.ok is False for v in r.verdicts)
        undecided = sum(v.ok is None for v in r.verdicts)
        when = r.when.removesuffix(" UTC").replace(" ", "T")
        lines.append(
            f"<testsuite name={_attribute(r.drill)} tests={_attribute(str(len(r.verdicts)))}"
            f' failures="{failed}" errors="0" skipped="{undecided}" time="{max(0.0, r.ended - r.began):.1f}"'
            f' timestamp={_attribute(when)} hostname="localhost" id="{number}" package="flypg.drill">'
        )
        told = {**about, "seed": str(r.seed), "lost": str(r.lost), "outage_s": f"{r.outage_s}"}
        properties = "".join(f"<property name={_attribute(k)} value={_attribute(v)}/>" for k, v in told.items())
        lines.append(f"<properties>{properties}</properties>")
        for v in r.verdicts:
            inner = ""
            if v.ok is False:
                again = escape(NOT_XML.sub("?", f"again with: {r.replay}"))
                inner = f'<failure message={_attribute(v.text)} type="verdict">{again}</failure>'
            elif v.ok is None:
                inner = f"<skipped message={_attribute(v.text)}/>"
            name = f"classname={_attribute(f'drill.{r.drill}')} name={_attribute(v.checker)}"
            lines.append(f'<testcase {name} time="0">{inner}</testcase>')
        lines.append(f"<system-out>{escape(NOT_XML.sub('?', r.line))}</system-out><system-err/>")
        lines.append("</testsuite>")
    lines.append("</testsuites>")
    return "\n".join(lines) + "\n"


def seconds(value: float | None) -> str:
    """A time for people."""
    if value is None:
        return "–"
    return "for ever" if value == NEVER else f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
