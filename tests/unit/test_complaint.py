"""What is told of a data directory that could not be taken over."""

from __future__ import annotations

import pytest

from postgres.adoption import complaint

NOTICE = "2026-11-30 10:00:59 UTC [9] NOTICE:  database system was shut down at 2026-11-30 10:00:55 UTC"
EXISTS = '2026-11-30 10:00:59 UTC [9] ERROR:  role "postgres" already exists'
FATAL = '2026-11-30 10:00:59 UTC [9] FATAL:  could not access file "timescale_of_old": No such file or directory'


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ((NOTICE, EXISTS, FATAL, NOTICE), FATAL),
        ((EXISTS, NOTICE), f"{EXISTS} {NOTICE}"),
        ((), ""),
    ],
    ids=["what it died of, not what was expected", "nothing unexpected: all of it", "nothing at all"],
)
def test_complaint(said: tuple[str, ...], told: str) -> None:
    assert complaint("\n".join(said).encode()) == told
