"""The log: one line per event on standard error, for people (`name | text`) or for machines (JSON), without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TextIO

HIDDEN = "***"
SHORTEST_SECRET = 4  # shorter ones would be found in ordinary words
# What looks like a secret, whoever wrote it: libpq's `password=…`, the user info of a URL, SCRAM verifiers.
LOOKS_SECRET = (
    (
        re.compile(r"(?i)\b(password|passwd|pgpassword|token|secret)(\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,;&]+)"),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"(\w://[^\s:/@]*):[^\s@/]+@"), rf"\1:{HIDDEN}@"),
    (re.compile(r"SCRAM-SHA-256\$\d+:[^\s'\"]+"), HIDDEN),
)
ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Redactor:
    """Takes secrets out of texts: those it was told, and what looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[str, ...] = ()
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Hide these too, from now on."""
        known = {*self._secrets, *(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)}
        self._secrets = tuple(sorted(known, key=len, reverse=True))  # one may contain another

    def __call__(self, text: str) -> str:
        for pattern, instead in LOOKS_SECRET:
            text = pattern.sub(instead, text)
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


class _Lines(logging.Formatter):
    """`name | text key=value …`; levels above info are named, so that they stand out."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
        # Each part by itself: quoting would change a secret beyond recognition.
        extra = (f"{key}={_quoted(self._redact(_text(value)))}" for key, value in _extra(record).items())
        text = " ".join([level + self._redact(record.getMessage()), *extra])
        if record.exc_info:
            text += "\n" + self._redact(self.formatException(record.exc_info))
        return "\n".join(f"{_name(record)} | {line}" for line in text.splitlines() or [""])


class _Json(logging.Formatter):
    """One JSON object a line: at (UTC), level, name, event, then the extra fields."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {
            "at": at,
            "level": record.levelname.lower(),
            "name": _name(record),
            "event": self._redact(record.getMessage()),
        }
        for key, value in _extra(record).items():
            line.setdefault(key, self._clean(value))
        if record.exc_info:
            line["trace"] = self._redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)

    def _clean(self, value: object) -> object:
        """A value as JSON has it, without secrets."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(item) for item in value]
        if isinstance(value, dict):
            return {str(key): self._clean(item) for key, item in value.items()}
        return self._redact(str(value))


def setup(
    *, json_lines: bool, level: str = "info", secrets: Iterable[str] = (), stream: TextIO | None = None
) -> Redactor:
    """Send every log line of this process to standard error. The answer learns of secrets that come up later."""
    redact = Redactor(secrets)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json(redact) if json_lines else _Lines(redact))
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Libraries that tell each request; and what apscheduler and boto3 say at info is their own affair.
    for noisy in ("asyncio", "aiohttp.access", "apscheduler", "boto3", "botocore", "urllib3", "s3transfer"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    return redact


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in ORDINARY}


def _name(record: logging.LogRecord) -> str:
    return record.name.removeprefix("flypg.")


def _text(value: object) -> str:
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(str(item) for item in value)
    return str(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r"[\s\"=]", text) else text
