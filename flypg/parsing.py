"""argparse with better manners: a typo gets a suggestion, commands are listed by subject, help keeps its layout."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that suggests what was meant."""

    def __init__(self, **options: object) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)  # an abbreviation in a script breaks when an option is added
        super().__init__(**options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        message, known = self._said_better(message)
        lines = [f"{self.prog}: {message}"]
        if known:
            lines.append(f"did you mean: {known}?")
        lines.append(f"see: {self.prog} --help")
        self.exit(2, "\n".join(lines) + "\n")

    def _said_better(self, message: str) -> tuple[str, str]:
        """The message in our words, and the nearest known word ("" when there is none)."""
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            typed, choices = found.group(1), re.findall(r"[\w-]+", found.group(2))
            what = "command" if self.commands() else "value"
            return f"unknown {what}: {typed}", nearest(typed, choices)
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            typed = found.group(1)
            if typed.startswith("-"):
                return f"unknown option: {typed}", nearest(typed.split("=")[0], self.options())
            return f"unexpected argument: {typed}", ""
        if found := re.search(r"the following arguments are required: (.*)", message):
            commands = ", ".join(self.commands())
            return f"missing: {found.group(1)}" + (f", one of {commands}" if commands else ""), ""
        return message, ""

    def commands(self) -> list[str]:
        return [name for a in self._actions if isinstance(a, argparse._SubParsersAction) for name in a.choices]

    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As in argparse, but what a command does not know is complained of by that command, with its own options."""
        known, extra = super().parse_known_args(args, namespace)
        if extra and not self.commands():
            self.error("unrecognized arguments: " + " ".join(extra))
        return known, extra


def nearest(typed: str, choices: Iterable[str]) -> str:
    """The known word most like `typed`; "" when none is near."""
    found = difflib.get_close_matches(typed, list(choices), n=1, cutoff=0.55)
    return found[0] if found else ""


def listing(groups: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> str:
    """Commands by subject: a heading, then one line each."""
    lines: list[str] = []
    for heading, rows in groups:
        lines += ["", f"{heading}:", *(f"  {name:<18} {what}" for name, what in rows)]
    return "\n".join(lines).lstrip("\n")


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def seconds(text: str) -> float:
    """A duration in seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value
