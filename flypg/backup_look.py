"""What nodes say of their backups when they are asked, and what follows for the cluster. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

HOW = "name a repository: FLYPG_SNAPSHOT_URL=s3://BUCKET/PREFIX (docs/backups.md)"
NONE = f"no backups: {HOW}"
OVERDUE_S = 3600.0  # a run that is later than this is worth a word


@dataclass(frozen=True, slots=True)
class BackupLook:
    """One node's word on backups, by its clock. Names as in `GET /node`; None or "" means that it is not known."""

    repository: str = ""
    snapshots: int = 0
    newest_id: str = ""
    newest_age_s: float | None = None
    newest_bytes: int | None = None
    newest_verified: bool = False
    oldest_age_s: float | None = None
    verified_age_s: float | None = None
    verified_s: float | None = None
    next_in_s: float | None = None
    running: str = ""
    archiving: bool = False
    archive_lag_s: float | None = None
    archive_lag_bytes: int | None = None
    archive_ready_segments: int | None = None
    archive_last: str = ""
    gap_age_s: float | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def parse_backups(found: object) -> BackupLook | None:
    """The part `backups` of a node's answer. What is of another type than it should be is left out."""
    if not isinstance(found, Mapping):
        return None
    given: dict[str, Any] = {}
    for field in fields(BackupLook):
        value = found.get(field.name)
        if isinstance(field.default, tuple):
            given[field.name] = tuple(str(v) for v in value) if isinstance(value, list | tuple) else ()
        elif _fits(value, field.default):
            given[field.name] = value
    return BackupLook(**given)


def _fits(value: object, default: object) -> bool:
    if default is None:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def combined(looks: Mapping[Any, BackupLook | None], primary: object) -> BackupLook | None:
    """What the cluster's backups are. The primary archives; of snapshots, who knows of a younger one knows more."""
    given = [look for look in looks.values() if look is not None]
    if not given:
        return None
    own = looks.get(primary)
    best = min(given, key=lambda b: (b.newest_age_s is None, b.newest_age_s or 0.0, b is not own))
    running = next((b.running for b in given if b.running), "")
    problems = tuple(dict.fromkeys(p for b in (own, best) if b is not None for p in b.problems))
    if own is None:
        return replace(best, running=running, archive_lag_s=None, archive_lag_bytes=None)
    return replace(
        best,
        running=running,
        problems=problems,
        warnings=own.warnings,
        archiving=own.archiving,
        archive_lag_s=own.archive_lag_s,
        archive_lag_bytes=own.archive_lag_bytes,
        archive_ready_segments=own.archive_ready_segments,
        archive_last=own.archive_last,
    )


def span(seconds: float) -> str:
    """A duration as a person says it: `40 s`, `12 min`, `3 h`, `2 days`."""
    for limit, length, unit in ((120, 1, "s"), (7200, 60, "min"), (2 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def size(count: int) -> str:
    """Bytes as a person reads them."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TB"


def snapshot_words(backups: BackupLook) -> str:
    """The last snapshot, and whether it can be restored."""
    if backups.newest_age_s is None:
        return "no snapshot yet"
    parts = [f"snapshot {backups.newest_id}".rstrip() + f" {span(max(0.0, backups.newest_age_s))} ago"]
    if backups.newest_bytes is not None:
        parts.append(size(backups.newest_bytes))
    if backups.newest_verified:
        took = f", restored in {backups.verified_s:.0f} s" if backups.verified_s is not None else ""
        parts.append(f"verified{took}")
    else:
        parts.append("not verified")
    return ", ".join(parts)


def next_words(backups: BackupLook) -> str:
    """What runs, or when the next run is."""
    if backups.running:
        doing = {"snapshot": "a snapshot is being taken", "verify": "a restore test runs", "sweep": "tidying up"}
        return doing.get(backups.running, backups.running)
    if backups.next_in_s is None:
        return "none is planned"
    if backups.next_in_s < 0:
        late = -backups.next_in_s
        return f"next overdue by {span(late)}" if late > OVERDUE_S else "next due now"
    return f"next in {span(backups.next_in_s)}"


def archive_words(backups: BackupLook) -> str:
    """How far the archive is behind: what would be lost with every node."""
    if not backups.archiving:
        return "WAL is not archived: a restore reaches the last snapshot"
    if backups.archive_lag_bytes is None:
        return "WAL archive: not known how far behind"
    if backups.archive_lag_s is None:
        text = f"WAL archive {size(backups.archive_lag_bytes)} behind"
    elif backups.archive_lag_s < 1:
        return "WAL archive up to date"
    else:
        text = f"WAL archive {span(backups.archive_lag_s)} behind ({size(backups.archive_lag_bytes)})"
    waiting = backups.archive_ready_segments or 0
    return f"{text}, {waiting} files wait" if waiting > 1 else text


def backups_data(backups: BackupLook | None) -> dict[str, object]:
    """For `flypg status --json`. Keys are only ever added."""
    if backups is None:
        return {"configured": False, "problems": [NONE]}
    return {"configured": True, **asdict(backups), "rpo_s": backups.archive_lag_s}
