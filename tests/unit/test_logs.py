"""Log lines: their two forms, and that no secret gets into either."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from cluster import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(
    *, json_lines: bool, secrets: tuple[str, ...] = (), level: str = "info"
) -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    logs.setup(json_lines=json_lines, secrets=secrets, stream=stream, level=level)
    return logging.getLogger("flypg.keeper"), stream


def test_lines_for_people() -> None:
    log, stream = written(json_lines=False)
    log.info("decision", extra={"why": "n1 is furthest", "actions": ["promote n1"], "term": 3, "empty": ""})
    log.warning("two\nlines")
    log.debug("unheard")
    assert stream.getvalue().splitlines() == [
        'keeper | decision why="n1 is furthest" actions="promote n1" term=3 empty=""',
        "keeper | WARNING: two",
        "keeper | lines",
    ]


def test_lines_for_machines() -> None:
    log, stream = written(json_lines=True)
    log.info("decision %d", 1, extra={"why": "ünicode", "actions": ("a", "b"), "lag": None})
    found = json.loads(stream.getvalue())
    assert found.pop("at").endswith("Z")
    assert found == {
        "level": "info",
        "name": "keeper",
        "event": "decision 1",
        "why": "ünicode",
        "actions": ["a", "b"],
        "lag": None,
    }


def test_an_exception_keeps_one_name_per_line() -> None:
    for json_lines in (False, True):
        log, stream = written(json_lines=json_lines)
        try:
            raise ValueError("boom")
        except ValueError:
            log.exception("failed")
        lines = stream.getvalue().splitlines()
        assert "boom" in stream.getvalue()
        assert all(line.startswith(("keeper | ", '{"at"')) for line in lines)


SECRETS = [
    ("a known one", "it is swordfish, yes"),
    ("libpq", "host=h password=hunter2 dbname=d"),
    ("quoted", "password = 'hun ter2'"),
    ("a URL", "postgres://u:hunter2@h/d"),
    ("a verifier", "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:a2V5hunter2"),
]


@pytest.mark.parametrize("json_lines", [False, True])
@pytest.mark.parametrize(("story", "text"), SECRETS, ids=[s[0] for s in SECRETS])
def test_no_secret_is_logged(story: str, text: str, json_lines: bool) -> None:
    log, stream = written(json_lines=json_lines, secrets=("swordfish", "sword", "x"))
    log.info(text, extra={"field": text, "list": [text], "dict": {"k": text}})
    for secret in ("swordfish", "hunter2", "ter2"):
        assert secret not in stream.getvalue()
    assert logs.HIDDEN in stream.getvalue()


def test_a_secret_that_comes_up_later_is_hidden_from_then_on() -> None:
    stream = io.StringIO()
    redact = logs.setup(json_lines=False, stream=stream)
    redact.add(["generated-one"])
    logging.getLogger("x").info("made generated-one")
    assert stream.getvalue() == "x | made ***\n"
