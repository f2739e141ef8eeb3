"""The tables in docs/checks.md and docs/metrics.md. `python -m healthchecks.documentation` writes them anew."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from healthchecks.config import HttpConfig, Thresholds, fly
from healthchecks.exposition import Definition
from healthchecks.history import PHASE_HELP
from healthchecks.own_metrics import DEFINITIONS
from healthchecks.pg_families import definitions
from healthchecks.settings import CHECKS, METRICS, PROFILE

DOCS = Path(__file__).parent.parent / "docs"
PHASES = Definition("flypg_failover_phase_seconds", "histogram", PHASE_HELP, ("cluster", "node", "phase"))


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def metrics_table(found: Iterable[Definition]) -> str:
    lines = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for each in found:
        since = f" (PostgreSQL {each.since} and later)" if each.since else ""
        labels = ", ".join(each.labels)
        lines.append(f"| `{each.name}` | {each.type} | {labels} | {each.help}{since} |")
    return "\n".join(lines)


def checks_table() -> str:
    lines = ["| setting | default | Fly's | meaning |", "| --- | --- | --- | --- |"]
    lines.append(f"| `{PROFILE}` | flypg | fly | whose thresholds the others start from |")
    ours, theirs = Thresholds(), fly()
    for key in CHECKS:
        default, strict = (_shown(getattr(limits, key.field)) for limits in (ours, theirs))
        lines.append(f"| `{key.key}` | {default} | {strict} | {key.help} |")
    return "\n".join(lines)


def metric_settings_table() -> str:
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for key in METRICS:
        lines.append(f"| `{key.key}` | {_shown(getattr(HttpConfig(), key.field))} | {key.help} |")
    return "\n".join(lines)


def tables() -> dict[str, dict[str, str]]:
    """By file, by the name between the marks."""
    return {
        "checks.md": {"settings": checks_table()},
        "metrics.md": {
            "settings": metric_settings_table(),
            "flypg": metrics_table([*DEFINITIONS.values(), PHASES]),
            "postgres": metrics_table(definitions()),
        },
    }


def with_tables(text: str, found: dict[str, str]) -> str:
    """`text` with what stands between the marks of each table replaced. Raises ValueError when a mark is missing."""
    for name, table in found.items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
        at, until = text.index(begin) + len(begin), text.index(end)
        text = f"{text[:at]}\n{table}\n{text[until:]}"
    return text


def main() -> None:
    for file, found in tables().items():
        path = DOCS / file
        path.write_text(with_tables(path.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
