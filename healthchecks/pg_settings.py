"""pg_settings_*: numeric and boolean settings in base units, under the names of postgres_exporter. Pure."""

from __future__ import annotations

import re

from healthchecks.exposition import Definition, Family, label_text
from postgres.metrics_queries import Rows

UNIT = re.compile(r"(\d*)\s*([A-Za-z]+)\Z")
BYTES = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
UNKNOWN = re.compile(r"[^a-zA-Z0-9_]")


def converted(setting: str, unit: str, vartype: str) -> tuple[float, str] | None:
    """The value in base units, and "bytes", "seconds" or "". None when it is no number, or the unit is not known.

    -1 means "off" or "automatic" in many settings, in whatever unit, and stays -1."""
    if vartype == "bool":
        return (1.0 if setting == "on" else 0.0), ""
    try:
        value = float(setting)
    except ValueError:
        return None
    if not unit:
        return value, ""
    match = UNIT.match(unit)
    if match is None:
        return None
    times = float(match[1] or 1)
    for factors, suffix in ((BYTES, "bytes"), (SECONDS, "seconds")):
        factor = factors.get(match[2])
        if factor is not None:
            return (value if value < 0 else value * times * factor), suffix
    return None


def families(rows: Rows, server: str) -> list[Family]:
    """One family per setting."""
    labels = label_text(("server",), (server,))
    found: list[Family] = []
    for name, setting, unit, description, vartype in rows.rows:
        value = converted(setting, unit, vartype)
        if value is None:
            continue
        number, suffix = value
        full = f"pg_settings_{UNKNOWN.sub('_', name)}" + (f"_{suffix}" if suffix else "")
        text = f"{description} [Units converted to {suffix}.]" if suffix else description
        found.append(Family(Definition(full, "gauge", text, ("server",)), {labels: number}))
    return found
