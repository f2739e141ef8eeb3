"""The line about the certificate: it warns in time, and never fails."""

from __future__ import annotations

import pytest

from healthchecks.certificate import AUTHORITY_WARN_S, CertificateStats, certificate_json, judge_certificate
from healthchecks.config import Thresholds

DAY_S = 86400.0
FINE = CertificateStats(shown=True, own=False, left_s=200 * DAY_S, authority_left_s=3000 * DAY_S)
STORIES = [
    ("all is well", FINE, False, "ends in"),
    ("it ends soon", CertificateStats(True, True, 9 * DAY_S, None), True, "the operator's"),
    ("it has ended", CertificateStats(True, True, -DAY_S, None), True, "ended"),
    ("the authority ends", CertificateStats(True, False, 100 * DAY_S, AUTHORITY_WARN_S - 1), True, "rotate --ca"),
    ("an operator's needs none", CertificateStats(True, True, 100 * DAY_S, 5.0), False, "ends in"),
    ("a problem", CertificateStats(True, False, 100 * DAY_S, 3000 * DAY_S, "sealed"), True, "sealed"),
    ("none yet", CertificateStats(False, False, None, None), True, "none yet"),
]


@pytest.mark.parametrize(("story", "found", "warns", "says"), STORIES, ids=[s[0] for s in STORIES])
def test_the_line(story: str, found: CertificateStats, warns: bool, says: str) -> None:
    (line,) = judge_certificate(found, Thresholds())
    assert (line.passed, line.warning) == (True, warns)
    assert says in line.text
    said = certificate_json(found)
    assert said is not None and bool(said["warning"]) is warns


def test_no_line_where_tls_is_off() -> None:
    off = CertificateStats(False, False, None, None, wanted=False)
    assert judge_certificate(off, Thresholds()) == judge_certificate(None, Thresholds()) == []
    assert certificate_json(off) is certificate_json(None) is None
