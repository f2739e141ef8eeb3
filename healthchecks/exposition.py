"""Metric families, and Prometheus' text format for them. Pure.

prometheus-client renders the agent's own histograms and the process; PostgreSQL's families are rendered here, because
it would rename their counters (`…_total`), while the names that dashboards know have to stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Value = int | float | bool | str | None  # str: a number in words, as Decimal's are


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric as documented. `since`: the PostgreSQL version it needs; "" for every one."""

    name: str
    type: str  # gauge, counter, untyped, histogram
    help: str
    labels: tuple[str, ...] = ()
    since: str = ""


@dataclass(slots=True)
class Family:
    """A metric with its samples: label text (without braces) and value."""

    definition: Definition
    samples: dict[str, Value] = field(default_factory=dict)

    def add(self, labels: str, value: Value) -> None:
        """The same labels twice would spoil the whole scrape: the greater value stays."""
        before = self.samples.get(labels)
        if before is not None and value is not None and float(before) >= float(value):
            return
        self.samples[labels] = value


def escaped(text: str) -> str:
    if "\\" in text or '"' in text or "\n" in text:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return text


def label_text(names: Sequence[str], values: Iterable[object]) -> str:
    """`datname="app",state="idle"`."""
    return ",".join(
        f'{name}="{escaped("" if value is None else str(value))}"' for name, value in zip(names, values, strict=True)
    )


def number(value: Value) -> str:
    """None is NaN: the metric exists, and its value is not known."""
    if value is None:
        return "NaN"
    if value is True or value is False:
        return "1" if value else "0"
    if isinstance(value, int):
        return str(value)
    as_float = float(value)
    if as_float == float("inf"):
        return "+Inf"
    if as_float == float("-inf"):
        return "-Inf"
    return "NaN" if as_float != as_float else repr(as_float)


def render(families: Iterable[Family]) -> str:
    """The families that have samples, each once, with HELP and TYPE."""
    out: list[str] = []
    for family in families:
        if not family.samples:
            continue
        definition = family.definition
        name = definition.name
        text = definition.help.replace("\\", "\\\\").replace("\n", "\\n")
        out.append(f"# HELP {name} {text}\n# TYPE {name} {definition.type}\n")
        for labels, value in family.samples.items():
            out.append(f"{name}{{{labels}}} {number(value)}\n" if labels else f"{name} {number(value)}\n")
    return "".join(out)
