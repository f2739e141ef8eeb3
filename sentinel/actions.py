"""What the leading sentinel can do next. Values, safe to repeat. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model import View


@dataclass(frozen=True, slots=True)
class PutView:
    """Replace the view. `kind` and `text` become an event ("" writes none); `outcomes` answer requests."""

    view: View
    kind: str = ""
    text: str = ""
    node: str = ""
    outcomes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a request that changes nothing: refused, or done already."""

    request: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Resign:
    """Hand the lead to a sentinel on another node."""


Action = PutView | Answer | Resign


@dataclass(frozen=True, slots=True)
class Decision:
    """At most one action a turn, and the reason; without an action the reason says what is waited for."""

    action: Action | None
    why: str


def wait(why: str) -> Decision:
    return Decision(None, why)
