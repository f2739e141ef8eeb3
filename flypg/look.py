"""What a node says of itself when it is asked over HTTP, just now: `GET /node`. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.model import NodeId, Position, parse_lsn
from flypg.backup_look import BackupLook, parse_backups


@dataclass(frozen=True, slots=True)
class StandbyLag:
    """How far a standby is behind, as its primary sees it. None: unknown."""

    bytes: int | None
    s: float | None


@dataclass(frozen=True, slots=True)
class NodeLook:
    """A fresh look at one node. None or "" means that it does not say."""

    state: str = ""  # "primary" or "standby" while PostgreSQL answers; "" otherwise: what it reported counts
    position: Position | None = None  # WAL on its disk
    streaming: bool | None = None
    lag_s: float | None = None
    progress: str = ""  # of a copy or rewind that runs
    problem: str = ""
    certificate: str = ""  # what is to be said of its certificate
    tls_pending: bool = False  # its servers are still to show one
    standbys: Mapping[NodeId, StandbyLag] = field(default_factory=dict)
    backups: BackupLook | None = None  # None: it has none, or does not say


Looks = Mapping[NodeId, NodeLook | None]  # None: it did not answer


def parse_look(body: bytes) -> NodeLook | None:
    """The answer of `GET /node`; None when it is none. Unknown keys are of a newer version, and left alone."""
    try:
        data = json.loads(body)
    except ValueError:
        return None
    if not isinstance(data, Mapping) or "node" not in data:
        return None
    postgres = data.get("postgres")
    postgres = postgres if isinstance(postgres, Mapping) else {}
    timeline, lsn = postgres.get("timeline"), _lsn(postgres.get("lsn"))
    certificate = data.get("certificate")
    certificate = certificate if isinstance(certificate, Mapping) else {}
    streaming, recovery = postgres.get("streaming"), postgres.get("in_recovery")
    answers = postgres.get("state") == "up" and isinstance(recovery, bool)
    return NodeLook(
        state=("standby" if recovery else "primary") if answers else "",
        position=Position(timeline, lsn) if isinstance(timeline, int) and lsn is not None else None,
        streaming=streaming if isinstance(streaming, bool) else None,
        lag_s=_number(postgres.get("lag_s")),
        progress=_progress(postgres.get("job")),
        problem=_text(data.get("problem")) or _note(postgres.get("job")),
        certificate=_text(certificate.get("problem")) or _text(certificate.get("warning")),
        tls_pending=certificate.get("shown") is False,
        standbys=_standbys(postgres.get("standbys")),
        backups=parse_backups(data.get("backups")),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _lsn(value: object) -> int | None:
    if not isinstance(value, str):
        return None
    try:
        return parse_lsn(value)
    except ValueError:
        return None


def _progress(job: object) -> str:
    """`copy: 41 % of 2.1 GB` while a job runs, else ""."""
    if not isinstance(job, Mapping) or job.get("running") is not True:
        return ""
    return ": ".join(part for part in (_text(job.get("kind")), _text(job.get("progress"))) if part)


def _note(job: object) -> str:
    """Why a job that runs is not done as it was wished, else ""."""
    return _text(job.get("note")) if isinstance(job, Mapping) and job.get("running") is True else ""


def _standbys(rows: object) -> dict[NodeId, StandbyLag]:
    found = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, Mapping) and isinstance(row.get("node"), str):
            lag = _number(row.get("lag_bytes"))
            found[NodeId(row["node"])] = StandbyLag(None if lag is None else int(lag), _number(row.get("lag_s")))
    return found


def lag_of(node: NodeId, primary: NodeLook | None, look: NodeLook | None) -> StandbyLag:
    """How far `node` is behind: by its primary's word, else by the two positions, which are of two moments."""
    seen = primary.standbys.get(node) if primary is not None else None
    behind_s = seen.s if seen is not None and seen.s is not None else look.lag_s if look is not None else None
    if seen is not None and seen.bytes is not None:
        return StandbyLag(seen.bytes, behind_s)
    if primary is None or look is None or primary.position is None or look.position is None:
        return StandbyLag(None, behind_s)
    if primary.position.timeline != look.position.timeline:
        return StandbyLag(None, behind_s)  # positions on two timelines cannot be compared
    return StandbyLag(max(0, primary.position.lsn - look.position.lsn), behind_s)
