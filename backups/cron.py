"""A schedule in the five fields of cron, as cron reads them. Pure.

APScheduler's own reading of such a line differs: there 0 is Monday, 7 is nothing, and a day must fit both the day of
the month and the day of the week where cron asks for either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days, by month
PIECE = re.compile(r"(\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d+))?\Z")


@dataclass(frozen=True, slots=True)
class Cron:
    """When: all of these, except that either kind of day is enough when both are given."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]  # of the month; empty: any
    months: tuple[int, ...]
    weekdays: tuple[int, ...]  # 0 is Sunday; empty: any


def read_cron(line: str) -> Cron:
    """Raises ValueError, which says what is wrong with which field."""
    fields = line.split()
    if len(fields) != 5:
        raise ValueError("must be five fields as in cron, in UTC, or off")
    minutes = _numbers("minute", fields[0], 0, 59)
    hours = _numbers("hour", fields[1], 0, 23)
    days = _numbers("day of the month", fields[2], 1, 31)
    months = _numbers("month", fields[3], 1, 12, MONTHS)
    weekdays = sorted({n % 7 for n in _numbers("day of the week", fields[4], 0, 7, WEEKDAYS)})
    any_day, any_weekday = fields[2].startswith("*"), fields[4].startswith("*")
    if any_weekday and min(days) > max(LONGEST[m - 1] for m in months):
        raise ValueError(f"never comes: there is no day {min(days)} in any of these months")
    return Cron(
        tuple(minutes),
        tuple(hours),
        () if any_day and len(days) == 31 else tuple(days),
        tuple(months),
        () if any_weekday and len(weekdays) == 7 else tuple(weekdays),
    )


def _numbers(what: str, text: str, low: int, high: int, names: tuple[str, ...] = ()) -> list[int]:
    """The numbers that a field stands for: `*`, `5`, `1-5`, `*/15`, `10-30/5`, `mon`, and lists of them."""
    found: set[int] = set()
    for piece in text.lower().split(","):
        match = PIECE.match(piece)
        if match is None:
            raise ValueError(f"{what} {piece!r} is not understood")
        step = int(match["step"] or 1)
        first = low if match["first"] is None else _number(what, match["first"], low, high, names)
        last = first if match["first"] and not match["step"] else high
        last = last if match["last"] is None else _number(what, match["last"], low, high, names)
        if step < 1 or first > last:
            raise ValueError(f"{what} {piece!r} is nothing")
        found.update(range(first, last + 1, step))
    return sorted(found)


def _number(what: str, word: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if word in names:
        return names.index(word) + (1 if low else 0)
    if not word.isdecimal() or not low <= int(word) <= high:
        raise ValueError(f"{what} {word!r} is not from {low} to {high}" + (f" or {names[0]}…" if names else ""))
    return int(word)
