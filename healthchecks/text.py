"""Numbers as Fly's checks print them: Go's durations after rounding, sizes in 1024s. Pure."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

NANOSECOND, MICROSECOND, MILLISECOND, SECOND = 1, 1_000, 1_000_000, 1_000_000_000
SIZES = ("B", "KB", "MB", "GB", "TB")
FORBIDDEN = ("leader", "replica", "primary")  # what load balancers and flyctl look for in the role check


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _rounded(nanoseconds: int, to: int) -> int:
    return (nanoseconds + to // 2) // to * to


def duration(seconds: float) -> str:
    """`1.23s`, `6.3ms`, `569.43µs`, `1m2.3s`: two decimals of the unit it is printed in. Negative counts as zero."""
    ns = max(0, round(seconds * SECOND))
    for unit in (SECOND, MILLISECOND, MICROSECOND):
        if ns > unit:
            ns = _rounded(ns, unit // 100)
            break
    if ns == 0:
        return "0s"
    if ns < MICROSECOND:
        return f"{ns}ns"
    if ns < MILLISECOND:
        return f"{_plain(Decimal(ns) / MICROSECOND)}µs"
    if ns < SECOND:
        return f"{_plain(Decimal(ns) / MILLISECOND)}ms"
    minutes, rest = divmod(ns, 60 * SECOND)
    hours, minutes = divmod(minutes, 60)
    tail = f"{_plain(Decimal(rest) / SECOND)}s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail


def size(count: int) -> str:
    """`860.81 MB`, `1 KB`, `0 B`."""
    power = 0
    while power < len(SIZES) - 1 and count >= 1024 ** (power + 1):
        power += 1
    value = (Decimal(count) / 1024**power).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return f"{_plain(value)} {SIZES[power]}"


def without_roles(text: str) -> str:
    """A reason in which nobody can mistake a word for a role: `HTTP check expects string leader` must not match it."""
    for word in FORBIDDEN:
        lowered = text.lower()
        while (at := lowered.find(word)) >= 0:
            text = text[:at] + word[0] + "…" + text[at + len(word) :]
            lowered = text.lower()
    return text
