"""How the certificate of a node is, as a line of a check and for `flypg status`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from healthchecks.config import Thresholds
from healthchecks.lines import Line
from healthchecks.text import duration

AUTHORITY_WARN_S = 180 * 86400.0  # clients must be given the next one before


@dataclass(frozen=True, slots=True)
class CertificateStats:
    """The certificate that PostgreSQL and PgBouncer of this node show."""

    shown: bool  # do they, seen from outside?
    own: bool  # an operator's, else of the cluster's authority
    left_s: float | None  # until it ends, negative once it has; None: there is none
    authority_left_s: float | None  # of the cluster's authority; None: there is none
    problem: str = ""
    wanted: bool = True  # False: TLS is switched off


def judge_certificate(found: CertificateStats | None, limits: Thresholds) -> list[Line]:
    """A line that warns and never fails: a certificate that has ended still encrypts. No line without TLS."""
    if found is None or (not found.wanted and found.left_s is None):
        return []
    return [Line("certificate", found.problem or words(found, limits), warning=warns(found, limits))]


def warns(found: CertificateStats, limits: Thresholds) -> bool:
    limit_s, left_s, authority_s = limits.certificate_warn_s, found.left_s, found.authority_left_s
    if found.problem or left_s is None or left_s <= 0:
        return True
    return bool(limit_s) and (
        left_s < limit_s or (not found.own and authority_s is not None and authority_s < AUTHORITY_WARN_S)
    )


def words(found: CertificateStats, limits: Thresholds) -> str:
    """How long it still holds."""
    whose = "the operator's" if found.own else "signed by the cluster's authority"
    if found.left_s is None:
        return "there is none yet"
    if found.left_s <= 0:
        return f"it ended {duration(-found.left_s)} ago; {whose}"
    text = f"it ends in {duration(found.left_s)}; {whose}"
    if not found.own and found.authority_left_s is not None and found.authority_left_s < AUTHORITY_WARN_S:
        text += f", which ends in {duration(found.authority_left_s)}: flypg tls rotate --ca"
    return text


def certificate_json(found: CertificateStats | None) -> dict[str, Any] | None:
    """For GET /node."""
    if found is None or (not found.wanted and found.left_s is None):
        return None
    return {
        "shown": found.shown,
        "own": found.own,
        "left_s": round(found.left_s, 3) if found.left_s is not None else None,
        "authority_left_s": round(found.authority_left_s, 3) if found.authority_left_s is not None else None,
        "problem": found.problem,
        "warning": words(found, Thresholds()) if warns(found, Thresholds()) else "",
    }
