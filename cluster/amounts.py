"""Durations and sizes as people write them. Pure."""

from __future__ import annotations

import re

SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)\Z")


def parse_seconds(found: str) -> float | None:
    """The seconds behind `10`, `0.5`, `500ms`, `5m`, `1h` or `2d`; None when it is no duration."""
    match = AMOUNT.match(found.strip())
    unit = SECONDS.get(match[2].lower()) if match else None
    return float(match[1]) * unit if match and unit is not None else None


def parse_bytes(found: str) -> int | None:
    """The bytes behind `1048576`, `16MB` or `1.5GiB` (powers of 1024); None when it is no size."""
    match = AMOUNT.match(found.strip())
    if not match:
        return None
    unit = match[2].upper().replace("IB", "B")
    factor = BYTES.get(unit if unit in BYTES else unit + "B")
    return int(float(match[1]) * factor) if factor is not None else None
