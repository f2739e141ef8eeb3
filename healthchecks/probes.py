"""Patroni's probe paths, for load balancers that know them already: the same paths, status codes and `?lag=`. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.model import Phase
from healthchecks.role import Claim, Facts, Role
from postgres.instance import Run

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|KB|MB|GB|TB)?\Z")
UNITS = {None: 1, "B": 1, "kB": 1 << 10, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


@dataclass(frozen=True, slots=True)
class Asked:
    """A probe and what the node knows."""

    facts: Facts
    claim: Claim
    lag_limit: int | None  # bytes; None: any lag will do
    behind_bytes: int | None  # received and not replayed; None: unknown, which is no small lag
    stale_after_s: float


def parse_lag(text: str | None) -> int | None:
    """`1048576`, `10MB`. None when absent; raises ValueError when it is no size."""
    if text is None:
        return None
    match = SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"lag={text!r} is no size like 1048576 or 16MB")
    return int(float(match[1]) * UNITS[match[2]])


def _running(asked: Asked) -> bool:
    local = asked.facts.instance
    return local is not None and local.run is Run.UP and asked.facts.instance_age_s <= asked.stale_after_s


def _primary(asked: Asked) -> bool:
    return asked.claim.role is Role.PRIMARY


def _replica(asked: Asked) -> bool:
    if asked.claim.role is not Role.STANDBY:
        return False
    if asked.lag_limit is None:
        return True
    return asked.behind_bytes is not None and asked.behind_bytes <= asked.lag_limit


def _voter(asked: Asked) -> bool:
    view = asked.facts.view
    rule = view.rule if view is not None and view.phase is Phase.OPEN else None
    return rule is not None and asked.facts.node in rule.voters


def _streaming(asked: Asked) -> bool:
    local = asked.facts.instance
    return local is not None and local.streaming


def _live(asked: Asked) -> bool:
    return asked.facts.instance_age_s <= 3 * asked.stale_after_s


PROBES: Mapping[str, Callable[[Asked], bool]] = {
    "/primary": _primary,
    "/master": _primary,
    "/read-write": _primary,
    "/leader": _primary,
    "/replica": _replica,
    "/read-only": lambda asked: _primary(asked) or _replica(asked),
    "/sync": lambda asked: _replica(asked) and _voter(asked),
    "/synchronous": lambda asked: _replica(asked) and _voter(asked),
    "/quorum": lambda asked: _replica(asked) and _voter(asked),
    "/read-only-sync": lambda asked: _primary(asked) or (_replica(asked) and _voter(asked)),
    "/read-only-quorum": lambda asked: _primary(asked) or (_replica(asked) and _voter(asked)),
    "/async": lambda asked: _replica(asked) and not _voter(asked),
    "/asynchronous": lambda asked: _replica(asked) and not _voter(asked),
    "/health": _running,
    "/liveness": _live,
    "/readiness": lambda asked: _primary(asked) or (_replica(asked) and _streaming(asked)),
}


def probe(path: str, asked: Asked) -> int:
    """200 when the node is what the path names, else 503."""
    return 200 if PROBES[path](asked) else 503
