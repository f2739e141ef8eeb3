"""What a node concludes about its primary: steps of time and answers, and the verdict after each."""

from __future__ import annotations

import pytest

from cluster.model import Answer
from postgres.evidence import Evidence

Step = tuple[str, float, bool, float | None]  # what, elapsed, new connection refused, age of the stream


def silent(elapsed: float, age: float | None = None, refused: bool = False) -> Step:
    return ("unanswered", elapsed, refused, age)


OK: Step = ("answered", 0, False, None)
GONE: Step = ("refused", 0, False, None)

STORIES: list[tuple[str, list[Step], Answer]] = [
    ("nothing asked yet", [], Answer.UNKNOWN),
    ("an answer", [OK], Answer.OK),
    ("a live host with nothing listening", [OK, GONE], Answer.REFUSED),
    ("it came back", [GONE, OK], Answer.OK),
    ("a short silence is nothing", [OK, *[silent(0.1)] * 9], Answer.OK),
    ("a long one is", [OK, *[silent(0.1)] * 11], Answer.SILENT),
    ("the pause before the question counts", [OK, ("waited", 0.4, False, None), *[silent(0.1)] * 7], Answer.SILENT),
    ("silent, though WAL still comes", [OK, *[silent(0.1, age=0.2)] * 30], Answer.OK),
    ("and then WAL stops, too", [OK, *[silent(0.1, age=0.2)] * 30, silent(0.1, age=1.1)], Answer.SILENT),
    ("refused anew, the open connection hangs", [OK, *[silent(0.1, refused=True)] * 11], Answer.REFUSED),
    ("never answered since we began", [*[silent(0.1)] * 11], Answer.SILENT),
    ("we slept for an hour ourselves", [OK, silent(3600.0), silent(0.1)], Answer.OK),
    ("an answer ends the silence", [OK, *[silent(0.1)] * 9, OK, *[silent(0.1)] * 9], Answer.OK),
]


@pytest.mark.parametrize(("steps", "expected"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES])
def test_evidence(steps: list[Step], expected: Answer) -> None:
    evidence = Evidence(suspect_after_s=1.0)
    for what, elapsed, refused, age in steps:
        match what:
            case "answered":
                evidence.answered()
            case "refused":
                evidence.refused()
            case "waited":
                evidence.waited(elapsed)
            case _:
                evidence.unanswered(elapsed, new_refused=refused, stream_age_s=age)
    assert evidence.answer is expected
