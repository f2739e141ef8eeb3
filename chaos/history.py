"""What clients noted while things were broken on purpose: one value per operation. Pure.

All times are seconds of the machine's monotonic clock, which every process and namespace of a test bench shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NEVER = float("inf")


class Outcome(StrEnum):
    OK = "ok"  # acknowledged, without a warning that the wait for standbys was cut short
    FAIL = "fail"  # certainly did not happen
    UNKNOWN = "unknown"  # the statement had left and no clear answer came: it may have happened


@dataclass(frozen=True, slots=True)
class Write:
    """One row that a client tried to insert, under an id used only once."""

    path: str  # which kind of client, e.g. "steady" or "fresh"
    id: int
    invoked: float
    done: float
    outcome: Outcome
    error: str = ""  # what the client saw, shortened; "" when acknowledged
    server: str = ""  # address:port of the server that answered; "" when none did
    timeline: int = 0  # timeline of that server; 0 when unknown

    @property
    def acknowledged(self) -> bool:
        return self.outcome is Outcome.OK


@dataclass(frozen=True, slots=True)
class Read:
    """The newest row of one client that a reader saw."""

    invoked: float
    done: float
    ok: bool
    newest: int = 0
    server: str = ""  # address:port of the server that answered


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a checker found. `ok` None: it could not tell."""

    checker: str
    ok: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class RegisterOp:
    """A read or a write of one key. An unknown write may take effect at any time after `invoked` (`done` is NEVER)."""

    key: int
    is_write: bool
    value: int | None  # written, or read; None: there was nothing yet
    invoked: float
    done: float


@dataclass(frozen=True, slots=True)
class Step:
    """One micro-operation of a list transaction: append `value` to `key`, or read the whole list."""

    append: bool
    key: int
    value: int = 0
    read: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction of appends and reads."""

    id: int
    invoked: float
    done: float
    outcome: Outcome
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class BankRead:
    """All balances, read in one snapshot."""

    at: float
    server: str
    balances: tuple[int, ...]
