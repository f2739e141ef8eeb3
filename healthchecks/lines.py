"""A check's answer: lines like Fly's, and whether they pass. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from healthchecks.text import duration


@dataclass(frozen=True, slots=True)
class Line:
    """One finished check. A warning passes: it is for people, and no restart would cure it."""

    name: str
    text: str
    passed: bool = True
    warning: bool = False
    seconds: float | None = None  # how long it took; None: it was not finished

    def __str__(self) -> str:
        mark = "✓" if self.passed else "✗"
        text = f"warning: {self.text}" if self.warning and self.passed else self.text
        if self.seconds is None:
            return f"[{mark}] {self.name}: {text}"
        return f"[{mark}] {self.name}: {text} ({duration(self.seconds)})"


@dataclass(frozen=True, slots=True)
class NotProcessed:
    """A check that was not begun before the deadline."""

    name: str

    def __str__(self) -> str:
        return f"[-] {self.name}: Not processed"


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to a probe: its body, and whether the node passes."""

    passed: bool
    body: str
    lines: tuple[Line, ...] = ()

    @property
    def status(self) -> int:
        return 200 if self.passed else 500

    @property
    def warned(self) -> bool:
        return any(line.warning for line in self.lines)


def timed_out(name: str, seconds: float) -> Line:
    return Line(name, "Timed out", passed=False, seconds=seconds)


def report(lines: Iterable[Line | NotProcessed]) -> Report:
    """All lines in their order, without a newline at the end. Passes when every one was run and passed."""
    every = tuple(lines)
    done = tuple(line for line in every if isinstance(line, Line))
    passed = len(done) == len(every) and all(line.passed for line in done)
    return Report(passed, "\n".join(str(line) for line in every), done)
