"""What a command answers: a code and a sentence. Only `main` prints and exits. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    FAILED = 1  # it was tried and did not work
    BAD_INPUT = 2  # an option, a setting or a file must be changed first; nothing was done
    REFUSED = 3  # understood, but not now; the text says why, nothing was changed
    UNREACHABLE = 4  # etcd or the cluster could not be reached; nothing was changed
    TIMED_OUT = 5  # still under way when we stopped waiting


EXIT_CODES = """\
exit codes:
  0  done
  1  tried, and it failed
  2  bad input: an option, a setting or a file must be changed first
  3  refused: understood, but not now; the text says why, nothing was changed
  4  etcd or the cluster cannot be reached; nothing was changed
  5  still under way when we stopped waiting; `flypg status` shows how it goes on"""


@dataclass(frozen=True, slots=True)
class Reply:
    """A command's answer. `data` is what --json prints; None when a command has nothing beyond its text."""

    exit: Exit
    text: str = ""
    data: object = None

    @property
    def ok(self) -> bool:
        return self.exit is Exit.OK


def done(text: str, data: object = None) -> Reply:
    return Reply(Exit.OK, text, data)


def refused(why: str) -> Reply:
    return Reply(Exit.REFUSED, why)


class BadInput(Exception):
    """What was typed cannot be carried out; the message says what to type instead. Ends with exit code 2."""


class Refused(Exception):
    """Not now; the message says why. Ends with exit code 3."""
